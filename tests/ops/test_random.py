"""Dropout's draws."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy
from keras import ops

from keras_tfm.ops.random import dropout

SHAPE = (101, 203)  # an odd number of elements


def draw(rate: float, seed: int = 0, dtype: str = "float32", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return numpy(dropout(ops.ones(shape, dtype=dtype), rate, keras.random.SeedGenerator(seed)))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate_scale_and_mean(rate):
    kept = draw(rate)
    sigma = math.sqrt(rate * (1 - rate) / kept.size)
    assert abs((kept == 0).mean() - rate) < 5 * sigma
    np.testing.assert_allclose(kept[kept != 0], 1 / (1 - rate), rtol=2e-4)
    assert abs(kept.mean() - 1) < 5 * sigma / (1 - rate)


@pytest.mark.parametrize("lag", [1, 2, 3, SHAPE[1]])
def test_draws_are_independent_of_their_neighbours(lag):
    """Two draws share a random word: they must not share its bits."""
    zeros = (draw(0.3) == 0).ravel() - 0.3
    correlation = (zeros[lag:] * zeros[:-lag]).mean() / (0.3 * 0.7)
    assert abs(correlation) < 5 / math.sqrt(zeros.size)


def test_no_dropout_is_the_tensor_itself_and_full_dropout_zero():
    x = ops.ones((2, 3))
    assert dropout(x, 0.0, None) is x
    assert not numpy(dropout(x, 1.0, keras.random.SeedGenerator(0))).any()


def test_rates_next_to_one_stay_finite():
    kept = draw(1 - 2**-20)
    assert np.isfinite(kept).all()
    assert (kept == 0).mean() > 0.99


def test_seeds_reproduce_and_advance():
    np.testing.assert_array_equal(draw(0.5, seed=1), draw(0.5, seed=1))
    assert (draw(0.5, seed=1) != draw(0.5, seed=2)).mean() > 0.4
    generator = keras.random.SeedGenerator(1)
    first, second = (numpy(dropout(ops.ones(SHAPE), 0.5, generator)) for _ in range(2))
    np.testing.assert_array_equal(first, draw(0.5, seed=1))
    assert (first != second).mean() > 0.4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_keeps_dtype_and_rate(dtype):
    x = ops.ones(SHAPE, dtype=dtype)
    result = dropout(x, 0.25, keras.random.SeedGenerator(0))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    values = numpy(result).astype("float32")
    np.testing.assert_allclose(values[values != 0], 1 / 0.75, rtol=1e-2)
    assert abs((values == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / values.size)


def test_dropped_elements_have_no_gradient():
    from helpers import gradients

    x = np.random.default_rng(0).normal(size=(8, 9)).astype("float32") + 5
    output, (grad,) = gradients(lambda x: dropout(x, 0.5, keras.random.SeedGenerator(0)), x)
    assert np.all(grad[output == 0] == 0)
    assert np.all(grad[output != 0] != 0)


@pytest.mark.skipif(BACKEND == "torch", reason="torch runs eagerly here")
def test_compiled_draws_are_the_eager_ones():
    if BACKEND == "tensorflow":
        import tensorflow as tf

        generator = keras.random.SeedGenerator(3)
        compiled = tf.function(lambda x: dropout(x, 0.5, generator), input_signature=[tf.TensorSpec((None, None))])
        result = compiled(np.ones(SHAPE, "float32"))
    else:
        import jax

        generator = keras.random.SeedGenerator(3)

        def stateless(x, state):
            with keras.StatelessScope(state_mapping=[(generator.state, state)]):
                return dropout(x, 0.5, generator)

        result = jax.jit(stateless)(np.ones(SHAPE, "float32"), generator.state.value)
    np.testing.assert_array_equal(numpy(result), draw(0.5, seed=3))
