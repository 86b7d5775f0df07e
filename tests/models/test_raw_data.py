"""Raw rows straight into `fit`, `evaluate` and `predict`, for every task; packed rows are padded ones, closer."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
from data.word_piece import train_word_piece
from helpers import BACKEND, assert_close, fill_weights, numpy

import keras_tfm as tfm
from keras_tfm.data import Examples, pack

TOKENIZER = train_word_piece()
TINY = dict(
    num_layers=1,
    hidden_dim=16,
    num_heads=2,
    vocabulary_size=TOKENIZER.vocabulary_size,
    max_sequence_length=32,
    dropout=0.0,
)
TEXTS = ["a bowl of soup", "soup", "the soup of the day is a soup of beans", "beans and soup", "hot soup", "day"]


def encoder(**options):
    return tfm.models.bert(**{**TINY, **options})


def batches(data):
    return [data[index] for index in range(len(data))]


def test_words_and_tags():
    words = [text.split() for text in TEXTS]
    tags = [["B" if word == "soup" else "O" for word in row] for row in words]
    model = tfm.TokenClassifier(encoder(pooler=False), labels=["O", "B"], tokenizer=TOKENIZER)
    model.compile(keras.optimizers.Adam(1e-2))
    model.fit(words, tags, epochs=30 if BACKEND == "torch" else 12, batch_size=2, verbose=0, validation_split=0.2)
    assert model.evaluate(words, tags, verbose=0)[1] > 0.9
    logits = model.predict(words, verbose=0)
    assert logits.shape[0] == 6
    assert logits.shape[2] == 2
    x, y = model.dataset(words, tags, batch_size=6)[0]
    assert set(x) <= set(model._input_keys)
    assert (y >= 0).sum() == sum(map(len, words))
    with pytest.raises(ValueError, match="which is not of labels"):
        model.evaluate([["soup"]], [["X"]])
    with pytest.raises(ValueError, match="Either num_classes or labels"):
        tfm.TokenClassifier(encoder())


def test_questions():
    contexts = ["the soup of the day is a soup of beans", "beans and hot soup"]
    answers = [{"text": "beans", "answer_start": 33}, None]
    pairs = list(zip(["what soup", "what day"], contexts, strict=True))
    model = tfm.QuestionAnswerer(encoder(pooler=False), tokenizer=TOKENIZER)
    model.compile(keras.optimizers.Adam(3e-2))
    model.fit(pairs, answers, epochs=25, verbose=0)
    examples = tfm.data.question_examples(*zip(*pairs, strict=True), tokenizer=TOKENIZER, max_length=32, stride=8)
    logits = model.predict(examples, verbose=0)
    found = tfm.data.best_answers(examples, contexts, logits["start_logits"], logits["end_logits"])
    assert found == ["beans", ""]


def test_sources_and_targets():
    backbone = tfm.models.transformer(**TINY, metadata={"decoder_start_token_id": 1})
    model = tfm.Seq2SeqLM(backbone, tokenizer=TOKENIZER)
    model.compile(keras.optimizers.Adam(1e-2), "linear_crossentropy")
    history = model.fit(TEXTS, TEXTS[::-1], epochs=3, batch_size=2, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    (x, y), *_ = batches(model.dataset(TEXTS, TEXTS[::-1], batch_size=6))
    assert set(x) == {"token_ids", "padding_mask", "decoder_token_ids", "decoder_padding_mask"}
    assert (x["decoder_token_ids"][:, 0] == 1).all()
    np.testing.assert_array_equal(x["decoder_token_ids"][:, 1:][y[:, 1:] >= 0], y[:, :-1][y[:, 1:] >= 0])
    with pytest.raises(ValueError, match="target texts"):
        model.fit(TEXTS)


def test_masked_texts():
    model = tfm.MaskedLM(encoder(pooler=False), tokenizer=TOKENIZER, masking={"rate": 0.5, "whole_words": True})
    model.compile(keras.optimizers.Adam(1e-2))
    data = model.dataset(TEXTS, batch_size=3, shuffle=True, seed=3)
    first = batches(data)
    assert all(((y >= 0) <= (x["padding_mask"])).all() for x, y in first)
    assert all((y >= 0).any() for _, y in first)
    data.on_epoch_end()
    hidden = [sorted(row.tolist() for _, y in epoch for row in y) for epoch in (first, batches(data))]
    assert hidden[0] != hidden[1]  # other tokens in another epoch
    again = model.dataset(TEXTS, batch_size=3, shuffle=True, seed=3)
    for (x, y), (other, labels) in zip(first, batches(again), strict=True):
        np.testing.assert_array_equal(x["token_ids"], other["token_ids"])
        np.testing.assert_array_equal(y, labels)
    history = model.fit(TEXTS, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    plain = model.predict(TEXTS[:1], verbose=0)
    assert_close(plain, model(TOKENIZER(TEXTS[:1])), 1e-4)
    again = tfm.MaskedLM.from_config(model.get_config())
    assert again.masking == {"rate": 0.5, "whole_words": True}


WORDS = [text.split() for text in TEXTS]
PACKED = {
    "text": lambda: (tfm.TextClassifier(encoder(), 3, tokenizer=TOKENIZER), TEXTS, [0, 1, 2, 0, 1, 2]),
    "text, first": lambda: (
        tfm.TextClassifier(encoder(pooler=False), labels=["a", "b"], tokenizer=TOKENIZER),
        TEXTS,
        ["a", "b", "b", "a", "a", "b"],
    ),
    "causal": lambda: (tfm.CausalLM(tfm.models.gpt(**TINY), tokenizer=TOKENIZER), TEXTS, None),
    "token": lambda: (
        tfm.TokenClassifier(encoder(pooler=False), 2, tokenizer=TOKENIZER),
        WORDS,
        [[len(word) % 2 for word in row] for row in WORDS],
    ),
}


@pytest.mark.parametrize("task", PACKED if BACKEND != "jax" else ["text", "causal"])
def test_packed_is_padded(task):
    found = []
    for length in (None, 24):
        model, rows, labels = PACKED[task]()
        fill_weights(model, 0.2)
        model.compile(keras.optimizers.SGD(0.5), metrics=None)
        data = model.dataset(rows, labels, batch_size=8, pack=length)
        assert len(data) == 1
        history = model.fit(data, verbose=0)
        found.append((history.history["loss"], [numpy(v) for v in model.trainable_variables], data[0]))
    (loss, variables, (x, _)), (packed_loss, packed_variables, (packed, _)) = found
    assert len(packed["token_ids"]) < len(x["token_ids"])
    assert packed["padding_mask"].sum() == x["padding_mask"].sum()
    assert_close(np.array(packed_loss), np.array(loss), 2e-5)
    for mine, theirs in zip(packed_variables, variables, strict=True):
        assert_close(mine, theirs, 2e-5)


def test_packed_masks_see_their_own_text_alone():
    model = fill_weights(tfm.MaskedLM(encoder(pooler=False), tokenizer=TOKENIZER), 0.2)
    (x, y), *_ = batches(model.dataset(TEXTS, batch_size=8, pack=24, seed=0))
    assert {"segment_ids", "positions"} <= set(x)
    assert (y >= 0).any()
    logits = numpy(model(x))
    row, start = np.argwhere(x["segment_ids"] == 2)[0]
    end = start + int((x["segment_ids"][row] == 2).sum())
    alone = numpy(model(x["token_ids"][row : row + 1, start:end]))
    assert_close(logits[row, start:end], alone[0], 1e-4)


def test_what_cannot_be_packed():
    model = tfm.TextClassifier(encoder(), tokenizer=TOKENIZER, pooling="mean")
    with pytest.raises(ValueError, match="pooling is 'mean'"):
        model.fit(model.dataset(TEXTS, [0, 1] * 3, pack=24), verbose=0)
    with pytest.raises(ValueError, match="sample_weight is of rows"):
        model.dataset(TEXTS, [0, 1] * 3, pack=24, sample_weight=[1.0] * 6)
    with pytest.raises(ValueError, match="where a row has length=4"):
        model.dataset(TEXTS, [0, 1] * 3, pack=4)
    with pytest.raises(ValueError, match="A tag for each word needs words"):
        tfm.TokenClassifier(encoder(), 2, tokenizer=TOKENIZER).fit(TEXTS, [[0]] * 6)


def test_examples_and_packed_arrays_as_they_are():
    model = tfm.CausalLM(tfm.models.gpt(**TINY), tokenizer=TOKENIZER)
    model.compile(keras.optimizers.Adam(1e-2))
    examples = tfm.data.causal_examples(TEXTS, TOKENIZER, 8, end_token=False)
    assert isinstance(examples, Examples)
    assert np.isfinite(model.fit(examples, batch_size=2, verbose=0).history["loss"]).all()
    arrays = pack(examples, 16)
    inputs = {name: arrays[name] for name in ("token_ids", "padding_mask", "segment_ids", "positions")}
    assert np.isfinite(model.fit(inputs, verbose=0).history["loss"]).all()


def test_no_row_is_padded_beyond_the_models_positions(monkeypatch):
    """Lengths are rounded up to few for XLA, but to no more than there are positions or packed tokens."""
    monkeypatch.setattr("keras_tfm.models.raw_rows.backend.NAME", "jax")
    words = [["soup"] * 40, ["beans"] * 3]
    tagger = tfm.TokenClassifier(encoder(pooler=False, max_sequence_length=20), 2, tokenizer=TOKENIZER)
    assert tagger.dataset(words, [[0] * 40, [1] * 3])[0][0]["token_ids"].shape == (2, 20)
    assert tagger.dataset(words[1:], [[1] * 3])[0][0]["token_ids"].shape == (1, 16)
    model = tfm.TextClassifier(encoder(), tokenizer=TOKENIZER)
    assert model.dataset(TEXTS, [0, 1] * 3, pack=24)[0][0]["token_ids"].shape[1] == 24
    generator = tfm.CausalLM(tfm.models.gpt(**{**TINY, "max_sequence_length": 9}))
    examples = tfm.data.causal_examples(TEXTS, TOKENIZER, 9, end_token=False)
    assert generator.dataset(examples)[0][0]["token_ids"].shape[1] == 9


def test_part_of_the_examples_trains():
    model = tfm.CausalLM(tfm.models.gpt(**TINY), tokenizer=TOKENIZER)
    examples = tfm.data.causal_examples(TEXTS, TOKENIZER, 8, end_token=False)
    assert isinstance(examples[1:], Examples)
    assert len(examples[:-1]) == len(examples) - 1
    history = model.fit(examples, validation_split=0.3, batch_size=2, verbose=0).history
    assert np.isfinite(history["val_loss"]).all()


def test_predict_and_evaluate_draw_nothing():
    model = tfm.TextClassifier(encoder(), 2, tokenizer=TOKENIZER)
    model.compile("sgd")
    before = random.getstate()
    model.predict(TEXTS, verbose=0)
    model.evaluate(TEXTS, [0, 1] * 3, verbose=0)
    assert random.getstate() == before
    model.fit(TEXTS, [0, 1] * 3, verbose=0)
    assert random.getstate() != before
    masked = tfm.MaskedLM(encoder(pooler=False), tokenizer=TOKENIZER)
    assert masked.dataset(TEXTS).batches.seed != masked.dataset(TEXTS).batches.seed


def test_labels_and_rows_that_a_task_cannot_use():
    masked = tfm.MaskedLM(encoder(pooler=False), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match="makes the labels itself"):
        masked.fit(TEXTS, [0, 1] * 3, verbose=0)
    questions = tfm.QuestionAnswerer(encoder(pooler=False), tokenizer=TOKENIZER)
    with pytest.raises(ValueError, match=r"takes pairs.*got 'a bowl"):
        questions.fit(TEXTS, [None] * 6, verbose=0)
