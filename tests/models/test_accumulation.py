"""Accumulated gradients are those of one large batch."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, numpy

import keras_tfm as tfm
from keras_tfm.models.objectives import LinearCrossentropy, TokenCrossentropy

SIZES = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=23, max_sequence_length=8, dropout=0.0)
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 23, (12, 8)).astype("int32")
LENGTHS = np.array([8, 8, 8, 1, 2, 1, 3, 8, 4, 2, 1, 1])  # batches of very different numbers of tokens
MASK = np.arange(8) < LENGTHS[:, None]
LABELS = np.where(MASK, RNG.integers(0, 23, IDS.shape), -100).astype("int32")


def trained(optimizer, loss, batch_size, weights=None):
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**SIZES)), 0.1)
    model.compile(optimizer, loss, metrics=None)
    x = {"token_ids": IDS, "padding_mask": MASK}
    model.fit(x, LABELS, sample_weight=weights, batch_size=batch_size, epochs=2, shuffle=False, verbose=0)
    return [numpy(v) for v in model.trainable_variables], model


OPTIMIZERS = {
    "clipped": lambda **more: keras.optimizers.SGD(0.5, global_clipnorm=0.5, **more),
    "adam": lambda **more: keras.optimizers.AdamW(1e-2, epsilon=1e-3, **more),
}


@pytest.mark.parametrize("name", OPTIMIZERS if BACKEND != "jax" else ["adam"])
@pytest.mark.parametrize("loss", [TokenCrossentropy, LinearCrossentropy])
def test_accumulated_is_one_large_batch(name, loss):
    make = OPTIMIZERS[name]
    weights = np.linspace(0.5, 2.0, 12) if loss is TokenCrossentropy else None
    large, _ = trained(make(), loss(), 6, weights)
    accumulated, model = trained(make(gradient_accumulation_steps=3), loss(), 2, weights)
    plain, _ = trained(make(), loss(), 2, weights)
    for mine, theirs in zip(accumulated, large, strict=True):
        assert_close(mine, theirs, 2e-5)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(plain, large, strict=True))
    assert int(model.optimizer._iterations) == 12


def test_saved_in_the_middle(tmp_path):
    """Between two updates: what was accumulated, tokens too, is in the file."""
    _, model = trained(keras.optimizers.SGD(0.5, gradient_accumulation_steps=5), TokenCrossentropy(), 2)
    assert int(model.optimizer._iterations) == 12
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    x = {"token_ids": IDS, "padding_mask": MASK}
    for m in (model, again):
        m.fit(x, LABELS, batch_size=4, shuffle=False, verbose=0)
    for mine, theirs in zip(again.trainable_variables, model.trainable_variables, strict=True):
        assert_close(numpy(mine), numpy(theirs))


def test_clipped_by_the_norm_that_gradients_have():
    """On TensorFlow, Keras takes the norm of a lookup's gradient before it sums the rows of equal tokens."""
    rate, norm = 0.5, 1e-3
    model = fill_weights(tfm.TextClassifier(tfm.models.bert(**SIZES)), 0.3)
    for part in (model.head, *(layer for layer in model.backbone.layers if layer.name != "token_embedding")):
        part.trainable = False
    before = [numpy(v) for v in model.trainable_variables]
    assert len(before) == 1  # the token table
    model.compile(keras.optimizers.SGD(rate, global_clipnorm=norm), metrics=None)
    model.fit(np.tile(np.arange(4, dtype="int32"), (4, 2)), np.ones(4, "int32"), batch_size=4, verbose=0)
    moved = [numpy(v) - b for v, b in zip(model.trainable_variables, before, strict=True)]
    assert abs(np.sqrt(sum((m.astype("float64") ** 2).sum() for m in moved)) / (rate * norm) - 1) < 1e-2
