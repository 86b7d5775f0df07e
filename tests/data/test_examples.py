"""Documents as blocks of one stream or one by one, and sources with targets; what is cut is counted."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.word_piece import SENTENCES, train_word_piece
from keras_tfm.data import Tokenizer, causal_examples, pack, seq2seq_examples, train_tokenizer

pytestmark = pytest.mark.once

BYTES = train_tokenizer(SENTENCES, 300, "byte_bpe")
UNIGRAM = train_tokenizer(SENTENCES, 90, "unigram")
END = BYTES.special_id("eos")
DOCUMENTS = st.lists(
    st.text(max_size=12) | st.sampled_from(["", " ", "\0", "soup", "<|endoftext|>"]), min_size=1, max_size=8
)


def tokens_of(document, end_token=True):
    ids = BYTES.encode([document])[0].ids
    return ids if not ids or not end_token or ids[-1] == END else [*ids, END]


def asked(examples):
    """Every token that is a label, in order."""
    return [int(label) for example in examples for label in example["labels"] if label != -100]


@given(DOCUMENTS, st.integers(1, 9), st.booleans())
def test_blocks_are_the_stream(documents, length, end_token):
    stream = [token for document in documents for token in tokens_of(document, end_token)]
    if len(stream) < length:
        with pytest.raises(ValueError, match=f"{len(stream)} tokens.*length={length}"):
            causal_examples(documents, BYTES, length, end_token=end_token)
        return
    examples = causal_examples(documents, BYTES, length, end_token=end_token)
    assert all(example.keys() == {"token_ids"} and len(example["token_ids"]) == length for example in examples)
    joined = [int(token) for example in examples for token in example["token_ids"]]
    assert joined + stream[len(joined) :] == stream
    assert examples.cut_tokens == len(stream) - len(joined) < length
    assert examples.empty == sum(document == "" for document in documents)


@given(DOCUMENTS, st.integers(1, 9), st.booleans(), st.data())
def test_overlapping_examples_ask_for_each_token_once(documents, length, blocks, data):
    stride = data.draw(st.integers(1, length))
    streams = [ids for ids in map(tokens_of, documents) if ids]
    if blocks:
        streams = [list(chain(*streams))]
    if blocks and len(streams[0]) < length:
        return
    examples = causal_examples(iter(documents), BYTES, length, blocks=blocks, stride=stride)
    if stride == length:
        assert all("labels" not in example for example in examples)
    else:
        assert asked(examples) == [token for ids in streams for token in ids[1 : len(ids) - examples.cut_tokens]]
        for example in examples:
            place = np.flatnonzero(example["labels"] != -100)
            np.testing.assert_array_equal(example["labels"][place], example["token_ids"][place + 1])
    if blocks:
        for number, example in enumerate(examples):
            assert example["token_ids"].tolist() == streams[0][number * stride : number * stride + length]
        assert examples.cut_tokens == len(streams[0]) - ((len(examples) - 1) * stride + length) < stride


@given(DOCUMENTS, st.integers(1, 9))
def test_documents_by_themselves_lose_nothing(documents, length):
    examples = causal_examples(documents, BYTES, length, blocks=False)
    expected = [
        ids[start : start + length] for ids in map(tokens_of, documents) for start in range(0, len(ids), length)
    ]
    assert [example["token_ids"].tolist() for example in examples] == expected
    assert (examples.cut_tokens, examples.cut_rows) == (0, 0)


def test_the_tokenizers_limit_does_not_cut_documents():
    tokenizer = Tokenizer.from_json({**BYTES.to_json(), "max_length": 4})
    examples = causal_examples(SENTENCES, tokenizer, 8)
    np.testing.assert_array_equal(examples[0]["token_ids"], causal_examples(SENTENCES, BYTES, 8)[0]["token_ids"])
    assert (tokenizer.truncated, tokenizer.max_length) == (0, 4)


def test_many_documents_go_through_in_pieces():
    documents = [f"soup {i}" for i in range(2100)]
    stream = np.concatenate([example["token_ids"] for example in causal_examples(documents, BYTES, 1)])
    assert BYTES.decode(stream) == "".join(documents)


def test_blocks_can_be_packed_with_documents():
    packed = pack(causal_examples(SENTENCES, BYTES, 40, blocks=False, stride=30), 64)
    assert packed["labels"].shape == packed["token_ids"].shape


NO_END = Tokenizer.from_json({**BYTES.to_json(), "settings": {}})


@pytest.mark.parametrize(
    "documents, options, message",
    [
        ("soup", {}, "one string.*list"),
        ([], {}, "no documents"),
        (["soup", None], {}, r"documents\[1\].*None"),
        (["soup"], {"length": 0}, "length.*0"),
        (["soup"], {"stride": 0}, "stride.*0"),
        (["soup"], {"stride": 9}, "length=8.*9"),
        ([""], {}, "0 tokens together"),
        (["soup"], {"tokenizer": NO_END}, "no end token.*eos_token"),
    ],
)
def test_documents_that_make_no_examples_are_named(documents, options, message):
    with pytest.raises(ValueError, match=message):
        causal_examples(documents, **{"tokenizer": BYTES, "length": 8, **options})


def test_no_end_token_where_none_is_wanted():
    examples = causal_examples(["soup"], NO_END, 9, blocks=False, end_token=False)
    assert NO_END.decode(examples[0]["token_ids"]) == "soup"


# Sources with targets --------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=1, max_size=5),
    st.sampled_from([None, 3, 8]),
    st.sampled_from([None, 2, 6]),
)
def test_targets_are_the_decoders_tokens_moved_left(pairs, max_length, max_target_length):
    sources, targets = zip(*pairs, strict=True)
    examples = seq2seq_examples(
        iter(sources), targets, UNIGRAM, start_id=0, max_length=max_length, max_target_length=max_target_length
    )
    assert len(examples) == len(pairs)
    rows = tokens = 0
    for example, pair in zip(examples, pairs, strict=True):
        for name, text, limit in zip(("token_ids", "labels"), pair, (max_length, max_target_length), strict=True):
            whole = UNIGRAM.encode([text])[0].ids
            expected = UNIGRAM.encode([text], limit)[0].ids
            assert example[name].tolist() == expected
            assert expected[-1] == UNIGRAM.special_id("eos")
            rows += len(whole) > len(expected)
            tokens += len(whole) - len(expected)
        assert example["decoder_token_ids"].tolist() == [0, *example["labels"][:-1]]
    assert (examples.cut_rows, examples.cut_tokens) == (rows, tokens)


def test_a_shift_is_transformers_own():
    torch = pytest.importorskip("torch")
    bart = pytest.importorskip("transformers.models.bart.modeling_bart")
    (example,) = seq2seq_examples(["soup"], SENTENCES[:1], UNIGRAM, start_id=2)
    expected = bart.shift_tokens_right(torch.tensor(example["labels"][None].astype("int64")), 0, 2)[0]
    np.testing.assert_array_equal(example["decoder_token_ids"], expected)


def test_max_length_defaults_to_the_tokenizers():
    tokenizer = train_word_piece(max_length=5)
    examples = seq2seq_examples(SENTENCES, SENTENCES, tokenizer, start_id=0)
    assert {len(example[name]) for example in examples for name in example} == {5}
    assert examples.cut_rows == 2 * len(SENTENCES)


@pytest.mark.parametrize(
    "sources, targets, message",
    [
        ("soup", ["soup"], "sources.*one string"),
        (["soup"], "soup", "targets.*one string"),
        (["a", "b"], ["a"], "target for each source.*row 1"),
        (["a"], ["a", "b"], "target for each source.*row 1"),
        ([], [], "no sources"),
        (["a"], [3], r"targets\[0\].*3"),
        (["a", ""], ["a", "b"], r"Row 1 .*without tokens.*\('', 'b'\)"),
    ],
)
def test_sources_and_targets_that_do_not_go_together_are_named(sources, targets, message):
    with pytest.raises(ValueError, match=message):
        seq2seq_examples(sources, targets, BYTES, start_id=0)
