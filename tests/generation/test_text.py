"""Streams of text: whole characters, nothing of a stop string, and the same text in the end."""

from __future__ import annotations

import pytest
from helpers import fill_weights
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Base
from tokenizers import decoders, models, pre_tokenizers

import keras_tfm as tfm
from keras_tfm.data import Tokenizer
from keras_tfm.generation.text import INCOMPLETE, TextStream


def byte_tokenizer() -> Tokenizer:
    """One token for each byte: every character beyond ASCII is split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = Base(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    return Tokenizer(base)


BYTES = byte_tokenizer()
# Random models write nonsense; let it be letters.
LETTERS = {"forbidden_tokens": [i for i in range(256) if not BYTES.tokenizer.id_to_token(i).isascii()]}


def ids_of(text: str) -> list[int]:
    return BYTES.tokenizer.encode(text).ids


@given(text=st.text(max_size=30), cuts=st.lists(st.integers(1, 5), max_size=40))
def test_pieces_are_whole_and_add_up(text, cuts):
    ids, stream, pieces = ids_of(text), TextStream(BYTES), []
    for cut in cuts:
        pieces.append(stream.feed(ids[:cut]))
        ids = ids[cut:]
    pieces.append(stream.feed(ids, last=True))
    assert "".join(pieces) == text == stream.text
    if INCOMPLETE not in text:
        assert not any(INCOMPLETE in piece for piece in pieces)


@given(before=st.text("ab", max_size=6), after=st.text("abc", max_size=6), stop=st.text("ab", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_given_away(before, after, stop):
    text = before + stop + after
    stream, pieces = TextStream(BYTES, stops=["zzz", stop]), []
    for token in ids_of(text):
        pieces.append(stream.feed([token]))
    pieces.append(stream.feed([], last=True))
    expected = text[: text.index(stop)]
    assert "".join(pieces) == expected == stream.text
    assert stream.stopped
    assert stream.used == len(expected) + len(stop)  # ASCII: as many ids as characters


def test_a_beginning_of_a_stop_string_that_leads_nowhere_is_given():
    stream = TextStream(BYTES, stops=["stop"])
    assert stream.feed(ids_of("a sto")) == "a "
    assert stream.feed(ids_of("ne")) == "stone"
    assert stream.feed(ids_of(" st"), last=True) == " st"


def test_an_unfinished_character_is_shown_at_the_end_only():
    ids = ids_of("é")
    stream = TextStream(BYTES)
    assert stream.feed(ids[:1]) == ""
    assert stream.feed([], last=True) == INCOMPLETE


@pytest.fixture(scope="module")
def model():
    sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=256, max_sequence_length=300)
    backbone = tfm.models.gpt(position="rotary", **sizes)
    return fill_weights(tfm.CausalLM(backbone, tokenizer=BYTES), 0.4)


def test_streams_are_what_generate_gives(model):
    text = model.generate("once upon", 40, **LETTERS)
    pieces = list(model.stream("once upon", 40, **LETTERS))
    assert "".join(pieces) == text
    assert len(pieces) > 2
    options = dict(temperature=1.0, top_k=9, seed=5, **LETTERS)
    assert "".join(model.stream("once", 30, **options)) == model.generate("once", 30, **options)


def test_stop_strings_end_texts_one_by_one(model):
    plain = model.generate(["once upon", "a"], 40, **LETTERS)
    stop = plain[0][7:9]
    results = model.generate(["once upon", "a"], 40, stop=stop, return_details=True, **LETTERS)
    for text, result in zip(plain, results, strict=True):
        assert result.text == text.split(stop)[0]
        assert result.reason == ("stop" if stop in text else "length")
    assert "".join(model.stream("once upon", 40, stop=[stop], **LETTERS)) == plain[0].split(stop)[0]


def test_a_stream_may_be_left(model):
    stream = model.stream("once", 50)
    first = next(stream)
    stream.close()
    assert model.generate("once", 50).startswith(first)


def test_bad_streams(model):
    with pytest.raises(ValueError, match="one prompt"):
        model.stream(["a", "b"])
    with pytest.raises(ValueError, match="none of them empty"):
        model.stream("a", stop="")
