"""Language models trained with the loss that holds no logits: the same losses, the same steps."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, numpy

import keras_tfm as tfm
from keras_tfm.models.objectives import LinearCrossentropy, TokenAccuracy, TokenCrossentropy

TINY = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=23, max_sequence_length=12, dropout=0.0)
IDS = np.random.default_rng(0).integers(1, 23, (6, 8)).astype("int32")
LABELS = np.where(np.random.default_rng(1).random((6, 8)) < 0.5, IDS, -100).astype("int32")


def causal(**options):
    config = tfm.models.gpt(**TINY).config.replace(head_bias=True, logit_scale=0.5, logit_softcap=3.0)
    return tfm.CausalLM(tfm.models.gpt(config, **options))


def masked():
    return tfm.MaskedLM(tfm.models.bert(**TINY, pooler=False))


def untied():
    return tfm.CausalLM(tfm.models.gpt(**TINY, tie_embeddings=False))


def seq2seq():
    return tfm.Seq2SeqLM(tfm.models.transformer(**TINY))


MODELS = {"causal": causal, "masked": masked, "untied": untied, "seq2seq": seq2seq}


def inputs(name):
    return {"token_ids": IDS, "decoder_token_ids": IDS} if name == "seq2seq" else {"token_ids": IDS}


@pytest.mark.parametrize("name", MODELS if BACKEND != "jax" else ["causal", "masked"])
def test_fit_and_evaluate_are_those_of_whole_logits(name):
    results = []
    for loss in (
        TokenCrossentropy(label_smoothing=0.1, z_loss=1e-3),
        LinearCrossentropy(label_smoothing=0.1, z_loss=1e-3, chunk=7),
    ):
        model = fill_weights(MODELS[name](), 0.1)
        model.compile(keras.optimizers.SGD(0.5), loss, metrics=None)
        weights = np.linspace(0.5, 2.0, 6)
        history = model.fit(
            inputs(name), LABELS, sample_weight=weights, batch_size=3, epochs=2, shuffle=False, verbose=0
        )
        evaluated = model.evaluate(inputs(name), LABELS, verbose=0)
        results.append((history.history["loss"], evaluated, [numpy(v) for v in model.trainable_variables]))
        assert model(inputs(name)).shape == (6, 8, 23)  # logits as ever outside of a step
        assert model.predict(inputs(name), verbose=0).shape == (6, 8, 23)
    (losses, evaluated, variables), (mine, my_evaluated, my_variables) = results
    assert_close(np.array(mine), np.array(losses), 1e-4)
    assert_close(np.array(my_evaluated), np.array(evaluated), 1e-4)
    for ours, theirs in zip(my_variables, variables, strict=True):
        assert_close(ours, theirs, 1e-4)


@pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing here")
def test_compiled_by_xla():
    model = fill_weights(causal(), 0.1)
    model.compile(keras.optimizers.SGD(0.5), "linear_crossentropy", jit_compile=True)
    other = fill_weights(causal(), 0.1)
    other.compile(keras.optimizers.SGD(0.5), TokenCrossentropy(), metrics=None, jit_compile=True)
    losses = [
        m.fit(IDS, LABELS, batch_size=4, epochs=2, shuffle=False, verbose=0).history["loss"] for m in (model, other)
    ]
    assert_close(np.array(losses[0]), np.array(losses[1]), 1e-4)


def test_saved_and_compiled_again(tmp_path):
    model = fill_weights(causal(), 0.1)
    model.compile(keras.optimizers.Adam(1e-2), LinearCrossentropy(z_loss=1e-3, chunk=5))
    model.fit(IDS, verbose=0)  # labels made of the tokens
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(again.loss, LinearCrossentropy)
    assert (again.loss.chunk, again.loss.z_loss) == (5, 1e-3)
    assert_close(np.array(again.evaluate(IDS, verbose=0)), np.array(model.evaluate(IDS, verbose=0)))


def test_half_precision_and_frozen_tables():
    model = fill_weights(causal(dtype="mixed_bfloat16"), 0.1)
    model.backbone.token_embedding.trainable = False
    before = numpy(model.backbone.token_embedding.table.embeddings)
    model.compile(keras.optimizers.SGD(0.1), "linear_crossentropy")
    first = model.evaluate(IDS, verbose=0)
    model.fit(IDS, epochs=3, verbose=0)
    assert model.evaluate(IDS, verbose=0) < first
    np.testing.assert_array_equal(numpy(model.backbone.token_embedding.table.embeddings), before)


def test_outside_of_a_step_it_takes_logits():
    logits = np.random.default_rng(2).normal(size=(6, 8, 23)).astype("float32")
    assert_close(LinearCrossentropy()(LABELS, logits), TokenCrossentropy()(LABELS, logits))


def test_what_it_cannot_do():
    with pytest.raises(ValueError, match="metrics need logits"):
        causal().compile(loss="linear_crossentropy", metrics=[TokenAccuracy()])
    with pytest.raises(ValueError, match="label_smoothing must be"):
        TokenCrossentropy(label_smoothing=1.0)
    with pytest.raises(ValueError, match="z_loss must not be negative"):
        LinearCrossentropy(z_loss=-1.0)
    with pytest.raises(ValueError, match="chunk must be"):
        LinearCrossentropy(chunk=0)
    model = causal()
    model.quantize("int8")
    model.compile(loss="linear_crossentropy")
    with pytest.raises(ValueError, match="quantized to int8"):
        model.fit(IDS, verbose=0)
