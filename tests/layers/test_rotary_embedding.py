"""Rotary embedding as a layer."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, normal, numpy
from keras import ops

from keras_tfm.layers import RotaryEmbedding
from keras_tfm.ops import positions

X = normal(2, 6, 3, 8)
SCALINGS = [
    None,
    {"kind": "linear", "factor": 2.0},
    {"kind": "dynamic", "factor": 2.0, "original_max_length": 4},
    {"kind": "yarn", "factor": 4.0, "original_max_length": 64},
    {"kind": "llama3", "factor": 8.0, "original_max_length": 64, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {
        "kind": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_length": 4,
        "factor": 3.0,
    },
]


def by_hand(x: np.ndarray, places: np.ndarray, frequencies: np.ndarray, factor: float = 1.0) -> np.ndarray:
    half = len(frequencies)
    numbers = (
        (x[..., :half] + 1j * x[..., half : 2 * half]) * factor * np.exp(1j * places[:, :, None, None] * frequencies)
    )
    return np.concatenate([numbers.real, numbers.imag, x[..., 2 * half :]], -1)


@pytest.mark.parametrize("length", [3, 6])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: s["kind"] if s else "none")
def test_scalings_reach_the_angles(scaling, length):
    """ "dynamic" and "longrope" change where the run is longer than the original length, here 4."""
    places, kind = np.arange(length)[None], scaling and scaling["kind"]
    if kind == "dynamic":
        frequencies = numpy(positions.rope_dynamic_frequencies(8, 10_000.0, 2.0, 4, length))
    else:
        frequencies = positions.rope_frequencies(8, 10_000.0, scaling, long=length > 4)
    expected = by_hand(X[:, :length], places, frequencies, positions.rope_attention_factor(scaling))
    assert_close(RotaryEmbedding(scaling=scaling)(X[:, :length]), expected)


def test_base_fraction_and_positions():
    places = np.array([[5, 0, 900, 3, 2, 7], [0, 1, 2, 3, 4, 5]], "int32")
    expected = by_hand(X, places, positions.rope_frequencies(4, 500.0))
    assert_close(RotaryEmbedding(base=500.0, fraction=0.5)(X, positions=places), expected, 2e-4)
    np.testing.assert_array_equal(numpy(RotaryEmbedding(fraction=0.5)(X))[..., 4:], X[..., 4:])


def test_the_hook_turns_queries_and_keys_as_the_layer_does():
    layer = RotaryEmbedding(interleaved=True)
    query, key = layer.rotate(ops.convert_to_tensor(X), ops.convert_to_tensor(X[:, :, :1]), None)
    assert_close(query, layer(X), 0)
    assert_close(key, layer(X[:, :, :1]), 0)


def test_low_precision_turns_by_float32_angles():
    """At position 2000, bfloat16 angles would be off by radians."""
    x, places = np.tile(X[:1, :1], (1, 6, 1, 1)), np.array([[0, 500, 1001, 1500, 1777, 2000]], "int32")
    exact = RotaryEmbedding()(numpy(ops.cast(x, "bfloat16")), positions=places)
    assert_close(RotaryEmbedding(dtype="bfloat16")(x, positions=places), exact, 1e-2)
