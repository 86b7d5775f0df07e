"""Strings to padded batches of ids, and the tokenizer's files."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.word_piece import SENTENCES, train_word_piece
from keras_tfm.data import Tokenizer, as_tokenizer
from keras_tfm.data.accepted import from_directory, from_json

PAD, UNK, CLS, SEP = 0, 1, 2, 3
pytestmark = pytest.mark.once

TOKENIZER = train_word_piece()


def same_batch(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_row_is_the_tokens_between_cls_and_sep():
    batch = TOKENIZER(["the soup", "the soup was cold , and so was the waiter ."])
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "token_ids": "int32",
        "padding_mask": "bool",
        "token_type_ids": "int32",
    }
    ids, mask = batch["token_ids"], batch["padding_mask"]
    assert (ids[:, 0] == CLS).all()
    for row, kept in zip(ids, mask, strict=True):
        assert row[kept][-1] == SEP
        assert (row[~kept] == PAD).all()
    assert mask[1].all()
    assert not mask[0].all()
    assert TOKENIZER.decode(ids[0]) == "the soup"
    assert TOKENIZER.decode(ids[0], skip_special_tokens=False).startswith("[CLS] the soup [SEP] [PAD]")


def test_pairs_have_two_types():
    batch = TOKENIZER([("the soup", "cold"), ("the film", "dull , dull , dull")])
    for row in range(2):
        kept = batch["padding_mask"][row]
        ids, types = batch["token_ids"][row][kept], batch["token_type_ids"][row][kept]
        second = int(np.flatnonzero(ids == SEP)[0]) + 1
        assert (types[:second] == 0).all()
        assert (types[second:] == 1).all()
        assert (ids == SEP).sum() == 2
    assert (batch["token_type_ids"][~batch["padding_mask"]] == 0).all()


def test_left_padding_is_right_padding_moved():
    left = train_word_piece(padding_side="left")(SENTENCES)
    right = TOKENIZER(SENTENCES)
    for row, length in enumerate(right["padding_mask"].sum(1)):
        np.testing.assert_array_equal(left["token_ids"][row, -length:], right["token_ids"][row, :length])
        assert left["padding_mask"][row, -length:].all()
        assert not left["padding_mask"][row, :-length].any()


def test_padding_side_is_checked():
    with pytest.raises(ValueError, match=r"padding_side.*'middle'"):
        train_word_piece(padding_side="middle")


def test_pad_to_widens_and_never_cuts():
    assert TOKENIZER(["soup"], pad_to=9)["token_ids"].shape == (1, 9)
    natural = TOKENIZER(SENTENCES)["token_ids"].shape
    assert TOKENIZER(SENTENCES, pad_to=2)["token_ids"].shape == natural


def test_truncation_keeps_the_special_tokens_and_is_counted():
    tokenizer = train_word_piece(max_length=6)
    assert tokenizer.truncated == 0
    batch = tokenizer(["soup", *SENTENCES])
    assert batch["token_ids"].shape[1] == 6
    long = batch["padding_mask"].all(1)
    assert (batch["token_ids"][long, 0] == CLS).all()
    assert (batch["token_ids"][long, -1] == SEP).all()
    whole = tokenizer(["soup", *SENTENCES], max_length=10_000)["padding_mask"].sum(1)
    assert tokenizer.truncated == (whole > 6).sum() > 0
    assert whole.max() > 6  # max_length of the call overrides the tokenizer's, for this call only
    assert tokenizer(SENTENCES)["token_ids"].shape[1] == 6


def test_padding_and_truncation_of_the_file_are_set_aside():
    from tokenizers import Tokenizer as Base

    base = Base.from_str(TOKENIZER.to_json()["tokenizer"])
    base.enable_truncation(4)
    base.enable_padding(length=50)
    text = base.to_str()
    tokenizer = Tokenizer(base)
    same_batch(tokenizer(SENTENCES), TOKENIZER(SENTENCES))
    assert tokenizer.to_json()["tokenizer"] == text  # yet they are kept for writing


def test_special_ids():
    assert [TOKENIZER.special_id(role) for role in ("pad", "cls", "sep", "mask")] == [0, 2, 3, 4]
    assert TOKENIZER.special_id("bos") is None
    assert TOKENIZER.vocabulary_size == TOKENIZER.tokenizer.get_vocab_size()


@pytest.mark.parametrize("named", ["[UNK]", {"content": "[UNK]", "lstrip": False}])
def test_settings_name_special_tokens(named):
    tokenizer = train_word_piece(settings={"bos_token": named, "eos_token": "not in the vocabulary"})
    assert tokenizer.special_id("bos") == UNK
    assert tokenizer.special_id("eos") is None


def test_save_and_read_back(tmp_path):
    tokenizer = train_word_piece(
        padding_side="left", max_length=7, settings={"model_max_length": 7, "padding_side": "left", "note": "é"}
    )
    tokenizer.save(tmp_path / "new" / "folder")
    again = Tokenizer.from_directory(tmp_path / "new" / "folder")
    assert (again.max_length, again.padding_side, again.settings) == (7, "left", tokenizer.settings)
    same_batch(again(SENTENCES), tokenizer(SENTENCES))
    assert Tokenizer.from_directory(tmp_path / "new" / "folder", max_length=5).max_length == 5


@pytest.mark.parametrize("limit", [1e30, 10**30, None, "many"])
def test_a_length_limit_that_says_nothing_is_none(tmp_path, limit):
    train_word_piece(settings={"model_max_length": limit}).save(tmp_path)
    assert Tokenizer.from_directory(tmp_path).max_length is None


def test_json_round_trip():
    tokenizer = train_word_piece(padding_side="left", max_length=5, settings={"pad_token": "[MASK]"})
    again = Tokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.to_json() == tokenizer.to_json()
    assert again.digest() == tokenizer.digest()
    same_batch(again(SENTENCES), tokenizer(SENTENCES))


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_directory(tmp_path)


def test_broken_settings_are_named(tmp_path):
    TOKENIZER.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": ')
    with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
        Tokenizer.from_directory(tmp_path)


UNICODE = st.text(max_size=40) | st.sampled_from(
    ["", " ", "\0", "\u200d", "👩‍👩‍👧", "ﷺ" * 9, "İ", "e\u0301", "a\ud7ffb", "[SEP]", "\n\t"]
)


@given(st.lists(UNICODE, min_size=1, max_size=6), st.sampled_from([None, 2, 3, 8]), st.booleans())
def test_any_strings_make_a_batch(texts, max_length, left):
    tokenizer = train_word_piece(padding_side="left" if left else "right", max_length=max_length)
    batch = tokenizer(texts)
    ids, mask = batch["token_ids"], batch["padding_mask"]
    assert ids.shape == mask.shape == batch["token_type_ids"].shape
    assert ids.shape[0] == len(texts)
    assert mask.sum(1).max() == ids.shape[1]
    assert mask.sum(1).min() >= 2  # [CLS] [SEP]
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocabulary_size
    if max_length is not None:
        assert ids.shape[1] <= max_length
    for row, text in enumerate(texts):  # a row is what the text gives alone
        alone = tokenizer([text])
        np.testing.assert_array_equal(ids[row][mask[row]], alone["token_ids"][0])


def base_tokenizer():
    from tokenizers import Tokenizer as Base

    return Base.from_str(TOKENIZER.to_json()["tokenizer"])


def test_a_tokenizer_of_tokenizers_is_taken_and_left_as_it_was():
    base = base_tokenizer()
    base.enable_truncation(4)
    base.enable_padding(length=50)
    before = base.to_str()
    same_batch(as_tokenizer(base)(SENTENCES), TOKENIZER(SENTENCES))
    assert base.to_str() == before


def test_a_fast_tokenizer_of_transformers_is_taken_with_what_it_says():
    transformers = pytest.importorskip("transformers")
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "bos_token": "[UNK]"}
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=base_tokenizer(), model_max_length=7, **special)
    theirs.padding_side = "left"
    theirs.chat_template = "{{ messages }}"
    ours = as_tokenizer(theirs)
    assert (ours.max_length, ours.padding_side) == (7, "left")
    assert ours.special_id("bos") == UNK  # which no usual name would find
    assert ours.settings["chat_template"] == theirs.chat_template
    same_batch(ours(SENTENCES), train_word_piece(max_length=7, padding_side="left")(SENTENCES))
    same_batch(from_json(ours.to_json())(SENTENCES), ours(SENTENCES))
    expected = theirs(SENTENCES, padding=True, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ours(SENTENCES)["token_ids"], expected)
    theirs.model_max_length = int(1e30)  # its way of saying nothing
    assert as_tokenizer(theirs).max_length is None


def test_ours_is_taken_as_it_is():
    assert as_tokenizer(TOKENIZER) is TOKENIZER


@pytest.mark.parametrize("given", ["bert-base", 3, None, Tokenizer, str.split])
def test_what_is_no_tokenizer_is_refused(given):
    with pytest.raises(
        TypeError, match=r"tokenizer must be .*tokenizers\.Tokenizer.*transformers.*KerasHub.*got"
    ) as error:
        as_tokenizer(given)
    assert repr(given) in str(error.value)
    assert ("from_directory" in str(error.value)) == isinstance(given, str)


def test_a_directory_without_tokenizer_gives_none(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert from_directory(tmp_path) is None
    TOKENIZER.save(tmp_path)
    assert isinstance(from_directory(tmp_path, 5), Tokenizer)
    assert from_directory(tmp_path, 5).max_length == 5


def test_a_published_tokenizer_may_be_larger_than_its_model(tmp_path, caplog):
    import keras_tfm as tfm

    size = TOKENIZER.vocabulary_size
    backbone = tfm.models.bert(
        num_layers=1, hidden_dim=8, num_heads=2, intermediate_dim=8, vocabulary_size=size - 1, max_sequence_length=32
    )
    tfm.TextClassifier(backbone, num_classes=2).save_pretrained(tmp_path)
    TOKENIZER.save(tmp_path)
    model = tfm.TextClassifier.from_pretrained(tmp_path)
    assert f"{size} tokens for a model of {size - 1}" in caplog.text
    assert model.tokenizer.vocabulary_size == size
    with pytest.raises(ValueError, match=f"{size} tokens"):
        model.tokenizer = TOKENIZER


def test_no_texts_make_an_empty_batch():
    assert TOKENIZER([])["token_ids"].shape == (0, 1)
