"""The feed-forward layer against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy, reset_seeds

from keras_tfm.layers import FeedForward

X = normal(2, 6, 8)
ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
}


def weights(layer: FeedForward) -> dict[str, np.ndarray]:
    return {"/".join(w.path.split("/")[-2:]): numpy(w).astype(np.float64) for w in layer.weights}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_feed_forward_is_the_formula(activation, gated, use_bias):
    layer = FeedForward(16, activation, gated, use_bias=use_bias)
    layer.build((None, None, 8))
    w = weights(fill_weights(layer))
    assert len(w) == (2 + gated) * (1 + use_bias)
    up = X @ w["up/kernel"] + w.get("up/bias", 0)
    gate = X @ w["gate/kernel"] + w.get("gate/bias", 0) if gated else None
    hidden = ACTIVATIONS[activation](up) if gate is None else ACTIVATIONS[activation](gate) * up
    assert_close(layer(X), hidden @ w["down/kernel"] + w.get("down/bias", 0), 1e-5)


def test_dropout_works_on_the_intermediate_activations():
    layer = FeedForward(16, "linear", dropout=0.5, use_bias=False)
    layer.build((None, None, 16))
    layer.up.kernel.assign(np.eye(16))
    layer.down.kernel.assign(np.eye(16))
    x = np.ones((4, 6, 16), "float32")
    reset_seeds(layer)
    dropped = numpy(layer(x, training=True))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    np.testing.assert_array_equal(numpy(layer(x)), x)


def test_any_rank_of_input():
    layer = FeedForward(16)
    layer.build((None, 8))
    fill_weights(layer)
    assert_close(layer(X[:, 0]), numpy(layer(X))[:, 0], 1e-6)
