"""Pooling over real tokens."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import assert_close, gradients, normal, numpy
from keras import ops

from keras_tfm.layers import Pooling

KINDS = ["first", "last", "mean", "max"]
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
X = normal(5, 5, 4) - 1.0  # mostly negative, so that a padded zero would win a maximum


def by_hand(kind: str, row: np.ndarray) -> np.ndarray:
    if not len(row):
        return np.zeros(4)
    return {"first": row[0], "last": row[-1], "mean": row.mean(0), "max": row.max(0)}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_pooling_sees_real_tokens_only(kind, dtype):
    expected = np.stack([by_hand(kind, x[m]) for x, m in zip(X, MASK, strict=True)])
    assert_close(Pooling(kind)(X, padding_mask=MASK.astype(dtype)), expected, 1e-6)
    garbage = np.where(MASK[..., None], X, 1e4).astype("float32")
    assert_close(Pooling(kind)(garbage, padding_mask=MASK), expected, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_mask_all_is_real(kind):
    expected = np.stack([by_hand(kind, x) for x in X])
    assert_close(Pooling(kind)(X), expected, 1e-6)
    assert_close(Pooling(kind)(X, padding_mask=np.ones((5, 5), bool)), expected, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_gets_no_gradient(kind):
    _, (grad,) = gradients(lambda x: Pooling(kind)(x, padding_mask=MASK), X)
    assert np.isfinite(grad).all()
    assert np.all(grad[~MASK] == 0)
    assert np.all(np.abs(grad[:4]).sum((1, 2)) > 0)


def test_the_mean_is_taken_in_float32():
    x = np.full((1, 3000, 2), 1.0, "float32")
    assert_close(Pooling("mean", dtype="bfloat16")(ops.cast(x, "bfloat16")), np.ones((1, 2)), 1e-3)


def test_the_pooled_vector_carries_no_mask():
    x = keras.layers.Embedding(5, 4, mask_zero=True)(np.array([[1, 2, 0]]))
    pooled = Pooling("mean")(x)
    assert_close(pooled, numpy(x)[:, :2].mean(1), 1e-6)
    assert getattr(pooled, "_keras_mask", None) is None
