"""Words with tags as tokens with labels; each tag is on its word's first piece, or counted as cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.word_piece import SENTENCES, train_word_piece
from keras_tfm.data import Tokenizer, token_examples, train_tokenizer

pytestmark = pytest.mark.once

TOKENIZER = train_word_piece()
KINDS = {kind: train_tokenizer(SENTENCES, 300, kind) for kind in ("wordpiece", "bpe", "byte_bpe", "unigram")}
NAMES = ["O", "B-PER", "I-PER", "B-LOC"]
WORDS = st.sampled_from(
    ["soup", "waiter", "Straße", "naïve", "don't", "", "\u200b", "two words", "日本語", "[SEP]", "😀"]
)
ROWS = st.lists(
    st.lists(st.tuples(WORDS | st.text(max_size=5), st.integers(-1, 3)), max_size=7), min_size=1, max_size=4
)


def split(rows):
    return [[word for word, _ in row] for row in rows], [[tag for _, tag in row] for row in rows]


@given(ROWS, st.sampled_from(sorted(KINDS)), st.sampled_from([None, 3, 6]), st.booleans())
def test_each_tag_is_on_its_words_first_piece_or_cut(rows, kind, max_length, all_pieces):
    tokenizer = KINDS[kind]
    words, tags = split(rows)
    examples = token_examples(words, tags, tokenizer, max_length=max_length, label_all_pieces=all_pieces)
    assert len(examples) == len(rows)
    missing = 0
    for example, row_words, row_tags in zip(examples, words, tags, strict=True):
        ids, word_ids, labels = example["token_ids"], example["word_ids"], example["labels"]
        assert {array.shape for array in example.values()} == {ids.shape}
        assert {array.dtype for array in example.values()} == {np.dtype("int32")}
        assert ids.tolist() == tokenizer.encode([" ".join(row_words)], max_length)[0].ids  # those of the text
        for word, tag in enumerate(row_tags):
            place = np.flatnonzero(word_ids == word)
            if not place.size:
                missing += tag >= 0
                continue
            tag = tag if tag >= 0 else -100
            assert labels[place[0]] == tag
            assert (labels[place[1:]] == (tag if all_pieces else -100)).all()
        assert (labels[word_ids < 0] == -100).all()
    assert examples.cut_labels == missing


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_pieces_are_of_the_words_they_spell(kind):
    words = ["The", "soup", "was", "cold,", "waiter."]
    (example,) = token_examples([words], [[0] * 5], KINDS[kind])
    for word, spelt in enumerate(words):
        ids = example["token_ids"][example["word_ids"] == word]
        assert KINDS[kind].decode(ids).strip().replace(" ", "") == spelt


def test_word_ids_are_those_of_tokenizers():
    """Of pre-split words, as `transformers` would have it."""
    words = [sentence.split() for sentence in SENTENCES]
    examples = token_examples(words, [[0] * len(row) for row in words], TOKENIZER)
    for row, example in zip(words, examples, strict=True):
        theirs = TOKENIZER.tokenizer.encode(row, is_pretokenized=True)
        assert example["token_ids"].tolist() == theirs.ids
        assert example["word_ids"].tolist() == [-1 if i is None else i for i in theirs.word_ids]


def test_a_space_behind_a_piece_does_not_make_it_the_next_words():
    from tokenizers import Tokenizer as Base
    from tokenizers import models, pre_tokenizers

    base = Base(models.WordLevel({"a ": 0, "b": 1, "?": 2}, unk_token="?"))
    base.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    (example,) = token_examples([["a", "b"]], [[5, 6]], base)
    assert (example["token_ids"].tolist(), example["labels"].tolist()) == ([0, 1], [5, 6])


def test_names_become_numbers_and_pieces_go_on_inside():
    words, tags = [["waiters", "soups", "the"]], [["B-PER", "B-LOC", None]]
    pieces = [len(TOKENIZER.encode([word])[0].ids) - 2 for word in words[0]]
    assert min(pieces[:2]) > 1
    (example,) = token_examples(words, tags, TOKENIZER, labels=NAMES, label_all_pieces=True)
    inside = [1, *[2] * (pieces[0] - 1)], [3] * pieces[1]  # there is no I-LOC
    assert example["labels"].tolist() == [-100, *inside[0], *inside[1], *[-100] * pieces[2], -100]
    examples = token_examples(words, tags, TOKENIZER)
    assert examples.labels == ("B-LOC", "B-PER")
    assert examples[0]["labels"].tolist().count(1) == 1


def test_cuts_are_counted():
    tokenizer = train_word_piece(max_length=4)
    examples = token_examples([["the", "soup", "was", "cold"], ["soup"]], [[1, 1, 0, -1], [2]], tokenizer)
    assert (examples.cut_rows, examples.cut_tokens, examples.cut_labels) == (1, 2, 1)
    assert token_examples([["soup", "\u200b"]], [[1, 1]], TOKENIZER).cut_labels == 1  # of which nothing is left


@pytest.mark.parametrize(
    "words, tags, options, message",
    [
        ([], [], {}, "list of tags for each"),
        ([["a"]], [], {}, "0 and 1"),
        ([["a"], ["a", "b"]], [[0], [0]], {}, r"words\[1\] has 2 words.*1 tags"),
        ([[3]], [[0]], {}, r"words\[0\].*3"),
        ([["a"]], [["PER"]], {"labels": ["B-PER", "O"]}, r"tags\[0\] has 'PER'.*Did you mean 'B-PER'"),
        ([["a"]], [[2]], {"labels": ["O", "X"]}, "below 2.*2"),
        ([["a", "b"]], [[0, "O"]], {}, "all names or all numbers"),
        ([["a"]], [[0.5]], {}, r"tags\[0\].*0\.5"),
        ([["a"]], [["O"]], {"labels": ["O", "O"]}, "differ"),
    ],
)
def test_words_and_tags_that_do_not_go_together_are_named(words, tags, options, message):
    with pytest.raises(ValueError, match=message):
        token_examples(words, tags, TOKENIZER, **options)


def test_a_tokenizer_without_offsets_is_named_with_the_remedy(tmp_path):
    keras_hub = pytest.importorskip("keras_hub")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "soup"]
    from keras_tfm.data import KerasHubTokenizer

    theirs = KerasHubTokenizer(keras_hub.tokenizers.BertTokenizer(vocabulary=vocabulary))
    with pytest.raises(ValueError, match=r"KerasHubTokenizer does not say.*Tokenizer\.from_directory"):
        token_examples([["soup"]], [[1]], theirs)
    theirs.save(tmp_path)
    (example,) = token_examples([["the", "soup"]], [[1, 2]], Tokenizer.from_directory(tmp_path))
    assert example["labels"].tolist() == [-100, 1, 2, -100]
