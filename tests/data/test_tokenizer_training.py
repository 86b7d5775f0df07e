"""Tokenizers of each kind, trained: their roles, what they add, and that transformers reads them alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.word_piece import SENTENCES
from keras_tfm.data import Tokenizer, train_tokenizer

pytestmark = pytest.mark.once

KINDS = ("wordpiece", "bpe", "byte_bpe", "unigram")
EXTRA = ("<extra_id_0>", "<|user|>")
TRAINED = {
    (kind, lowercase): train_tokenizer(SENTENCES, 300, kind, lowercase=lowercase, max_length=12, special_tokens=EXTRA)
    for kind in KINDS
    for lowercase in (False, True)
}
ROLES = {
    "wordpiece": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "bos": None, "eos": None},
    "bpe": {"pad": 0, "unk": 1, "bos": 2, "eos": 3, "mask": None},
    "byte_bpe": {"pad": 0, "bos": 0, "eos": 0, "unk": None, "mask": None},
    "unigram": {"pad": 0, "eos": 1, "unk": 2, "bos": None, "mask": None},
}
AROUND = {
    "wordpiece": (["[CLS]", "[SEP]"], ["[CLS]", "[SEP]", "[SEP]"]),
    "bpe": (["<s>"], ["<s>"]),
    "byte_bpe": ([], []),
    "unigram": (["</s>"], ["</s>", "</s>"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_roles_and_what_is_put_around_texts(kind):
    tokenizer = TRAINED[kind, False]
    assert {role: tokenizer.special_id(role) for role in ROLES[kind]} == ROLES[kind]
    special = [i for i, token in tokenizer.tokenizer.get_added_tokens_decoder().items() if token.special]
    assert special == list(range(len(special)))  # at the front, the kind's own first
    assert [tokenizer.tokenizer.token_to_id(token) for token in EXTRA] == special[-2:]
    for texts, around in zip(("the soup", ("the soup", "a film")), AROUND[kind], strict=True):
        encoding = tokenizer.encode([texts])[0]
        assert [token for token, i in zip(encoding.tokens, encoding.ids, strict=True) if i in special] == around
        assert max(encoding.type_ids) == (kind in ("wordpiece", "byte_bpe") and isinstance(texts, tuple))
    assert tokenizer.max_length == 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lowercase", [False, True])
def test_texts_come_back(kind, lowercase):
    tokenizer = TRAINED[kind, lowercase]
    for text in SENTENCES:
        decoded = tokenizer.decode(tokenizer.encode([text], 99)[0].ids)
        if kind == "wordpiece":
            decoded = decoded.replace(" ;", ";")  # its decoder keeps no account of spaces
        assert decoded.strip() == (text.lower() if lowercase else text)


@given(st.lists(st.text(max_size=20) | st.sampled_from(["<|user|>", "😀", "\0"]), min_size=1, max_size=4))
def test_bytes_know_every_text(texts):
    tokenizer = TRAINED["byte_bpe", False]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode([text], 999)[0].ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_is_saved(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = TRAINED[kind, True]
    tokenizer.save(tmp_path)
    pairs = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
    for cls in (transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer):
        theirs = cls.from_pretrained(tmp_path)
        for texts in ((SENTENCES,), tuple(zip(*pairs, strict=True))):
            expected = theirs(*map(list, texts), padding=True, truncation=True)
            ours = tokenizer(SENTENCES if len(texts) == 1 else pairs)
            np.testing.assert_array_equal(ours["token_ids"], expected["input_ids"])
            np.testing.assert_array_equal(ours["padding_mask"], expected["attention_mask"])
            assert ("token_type_ids" in expected) == (kind == "wordpiece")
            if kind == "wordpiece":
                np.testing.assert_array_equal(ours["token_type_ids"], expected["token_type_ids"])
        for role in ("pad", "unk", "bos", "eos", "mask"):
            assert getattr(theirs, f"{role}_token_id") == tokenizer.special_id(role)
        assert (theirs.model_max_length, theirs.padding_side) == (12, "right")
    again = Tokenizer.from_directory(tmp_path)
    assert again.digest() == tokenizer.digest() != TRAINED[kind, False].digest()
    assert {**again.settings, **tokenizer.settings} == again.settings
    np.testing.assert_array_equal(again(SENTENCES)["token_ids"], tokenizer(SENTENCES)["token_ids"])


def test_files_are_read_as_rows(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(SENTENCES[:3]), "utf-8")
    (tmp_path / "b.csv").write_text("text\n" + "\n".join(f'"{s}"' for s in SENTENCES[3:]), "utf-8")
    both = train_tokenizer([tmp_path / "a.txt", tmp_path / "b.csv"], 300)
    texts = train_tokenizer(iter(SENTENCES), 300)
    letters = [{piece for piece in made.tokenizer.get_vocab() if len(piece) == 1} for made in (both, texts)]
    assert letters[0] == letters[1] > {"T", "!", ";"}
    one = train_tokenizer(str(tmp_path / "a.txt"), 300, "byte_bpe")
    assert one.vocabulary_size < TRAINED["byte_bpe", False].vocabulary_size + 1
    assert one.decode(one.encode(["soup"])[0].ids) == "soup"
    (tmp_path / "c.csv").write_text("words\na\n")
    with pytest.raises(ValueError, match=r"c\.csv has a row without a 'text'.*\['words'\]"):
        train_tokenizer(tmp_path / "c.csv", 300)
    with pytest.raises(ValueError, match=r"a\.txt' is a file.*pathlib\.Path"):
        train_tokenizer([str(tmp_path / "a.txt")], 300)
    with pytest.raises(FileNotFoundError):
        train_tokenizer("nowhere.txt", 300)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_no_larger_than_asked_for(kind):
    assert train_tokenizer(SENTENCES * 3, 275, kind).vocabulary_size <= 275
    with pytest.raises(ValueError, match=r"vocabulary_size.*(at least|too small|not large enough)"):
        train_tokenizer(SENTENCES, 9, kind)
    assert train_tokenizer(["a"] * 3, 300, kind).vocabulary_size < 300


@pytest.mark.parametrize(
    "texts, options, message",
    [
        ([], {}, "no texts"),
        (["", " "], {}, "no texts"),
        (["soup", 3], {}, r"files_or_texts\[1\].*3"),
        ([3], {}, r"files_or_texts\[0\].*3"),
        (["soup"], {"kind": "sentencepiece"}, "'wordpiece'.*'sentencepiece'"),
        (["soup"], {"special_tokens": ["[CLS]"]}, r"new.*\['\[CLS\]'\]"),
        (["soup"], {"special_tokens": ["a", "a"]}, "new"),
        (["soup"], {"special_tokens": [""]}, "not empty"),
        (["soup"], {"special_tokens": "<mask>"}, "list of strings.*'<mask>'"),
    ],
)
def test_what_cannot_be_trained_on_is_named(texts, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, 300, **options)
