"""Activations against their formulas."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from helpers import assert_close
from keras import ops

from keras_tfm.ops import activations

X = np.linspace(-6, 6, 49).astype("float32")
PHI = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X])
TANH = 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3)))
FORMULAS = {
    "gelu": X * PHI,
    "gelu_tanh": TANH,
    "gelu_new": TANH,
    "quick_gelu": X / (1 + np.exp(-1.702 * X)),
    "squared_relu": np.maximum(X, 0) ** 2,
    "relu2": np.maximum(X, 0) ** 2,
    "relu": np.maximum(X, 0),
    "silu": X / (1 + np.exp(-X)),
    "swish": X / (1 + np.exp(-X)),
    "linear": X,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_named_activations(name):
    assert_close(activations.get(name)(ops.convert_to_tensor(X)), FORMULAS[name], 2e-6)


def test_exact_and_approximate_gelu_differ():
    assert np.abs(FORMULAS["gelu"] - FORMULAS["gelu_tanh"]).max() > 1e-4


def test_callables_and_none():
    assert activations.get(ops.sin) is ops.sin
    assert activations.get(None) is keras.activations.linear


@pytest.mark.parametrize("name, near", [("gelu_than", "gelu_tanh"), ("sillu", "silu"), ("quickgelu", "quick_gelu")])
def test_unknown_names_suggest_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"Unknown activation='{name}'.*'{near}'"):
        activations.get(name)


def test_names_like_nothing_list_what_is_known():
    with pytest.raises(ValueError, match=r"Unknown activation='xyzzy'.*'squared_relu'"):
        activations.get("xyzzy")
