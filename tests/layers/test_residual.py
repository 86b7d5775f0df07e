"""Norm placements against y = output_norm(x + residual_norm(f(input_norm(x))))."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy, reset_seeds
from keras import ops

from keras_tfm.layers import Residual
from keras_tfm.layers.residual import PLACEMENTS

X = normal(2, 6, 8)


def by_hand(kind: str, weights: dict[str, np.ndarray], place: str, x: np.ndarray) -> np.ndarray:
    if f"{place}/gamma" not in weights and f"{place}/scale" not in weights:
        return x
    if kind == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"{place}/scale"]
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{place}/gamma"]
        + weights[f"{place}/beta"]
    )


def norm_weights(layer: Residual) -> dict[str, np.ndarray]:
    return {"/".join(w.path.split("/")[-2:]): numpy(w).astype(np.float64) for w in layer.weights}


@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_placements_are_one_formula(placement, kind):
    layer = Residual(kind, placement)
    layer.build(X.shape)
    weights = norm_weights(fill_weights(layer))
    places = {"pre": 1, "post": 1, "sandwich": 2, "residual": 1, "none": 0}[placement]
    assert len(weights) == places * (2 if kind == "layer_norm" else 1)

    def f(x):
        return x * 3.0 + 1.0

    branch = by_hand(kind, weights, "residual_norm", f(by_hand(kind, weights, "input_norm", X)))
    expected = by_hand(kind, weights, "output_norm", X + branch)
    x = ops.convert_to_tensor(X)
    assert_close(layer.leave(x, f(layer.enter(x))), expected, 1e-5)
    assert_close(layer(x, f(layer.enter(x))), expected, 1e-5)


def test_where_each_placement_norms():
    assert PLACEMENTS == {
        "pre": ("input_norm",),
        "post": ("output_norm",),
        "sandwich": ("input_norm", "residual_norm"),
        "residual": ("residual_norm",),
        "none": (),
    }


def test_scale_dropout_and_drop_path_work_on_the_branch():
    layer = Residual("layer_norm", "none", dropout=0.5, drop_path=0.5, layer_scale=0.25)
    x, branch = np.full((64, 6, 8), 10.0, "float32"), np.ones((64, 6, 8), "float32")
    np.testing.assert_array_equal(numpy(layer(x, branch)), np.full_like(x, 10.25))
    reset_seeds(layer)
    added = numpy(layer(x, branch, training=True)) - 10
    assert set(np.unique(added)) == {0.0, 1.0}  # 0.25 * 2 * 2
    dropped_paths = (added == 0).all(axis=(1, 2))
    assert 0.2 < dropped_paths.mean() < 0.8
    assert 0.4 < (added[~dropped_paths] == 0).mean() < 0.6
