"""Dropout, DropPath and LayerScale."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import BACKEND, assert_close, normal, numpy, reset_seeds

from keras_tfm.layers import Dropout, DropPath, LayerScale

ONES = np.ones((400, 3, 5), "float32")


@pytest.mark.parametrize("layer", [Dropout, DropPath])
def test_inference_is_the_identity(layer):
    x = normal(2, 3, 4)
    for training in (None, False):
        np.testing.assert_array_equal(numpy(layer(0.5)(x, training=training)), x)
    np.testing.assert_array_equal(numpy(layer(0.0)(x, training=True)), x)


@pytest.mark.filterwarnings("error")
def test_quantization_passes_them_over_without_a_word():
    for layer in (Dropout(0.5), DropPath(0.5)):
        layer.quantize("int8")
        assert layer.quantization_mode is None


def test_dropout_works_on_elements():
    kept = numpy(Dropout(0.3, seed=1)(ONES, training=True))
    assert abs((kept == 0).mean() - 0.3) < 5 * math.sqrt(0.21 / kept.size)
    np.testing.assert_allclose(kept[kept != 0], 1 / 0.7, rtol=1e-4)
    assert np.ptp(kept, axis=(1, 2)).max() > 0


def test_drop_path_works_on_samples():
    kept = numpy(DropPath(0.3, seed=1)(ONES, training=True))
    assert np.all(np.ptp(kept, axis=(1, 2)) == 0)
    assert abs((kept[:, 0, 0] == 0).mean() - 0.3) < 5 * math.sqrt(0.21 / 400)
    np.testing.assert_allclose(kept[kept != 0], 1 / 0.7, rtol=1e-4)


@pytest.mark.parametrize("layer", [Dropout, DropPath])
def test_everything_dropped_is_zero(layer):
    assert not numpy(layer(1.0)(ONES, training=True)).any()


@pytest.mark.parametrize("layer", [Dropout, DropPath])
def test_seeds(layer):
    first, again, other = layer(0.5, seed=1), layer(0.5, seed=1), layer(0.5, seed=2)
    draws = [numpy(made(ONES, training=True)) for made in (first, again, other, first)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    assert (draws[0] != draws[3]).any()  # each call draws anew
    reset_seeds(first)
    reset_seeds(other)
    np.testing.assert_array_equal(numpy(first(ONES, training=True)), numpy(other(ONES, training=True)))


def test_layer_scale_is_a_gain_per_channel():
    layer, x = LayerScale(0.25), normal(2, 3, 4)
    np.testing.assert_allclose(numpy(layer(x)), x * 0.25, rtol=1e-6)
    assert [tuple(w.shape) for w in layer.trainable_weights] == [(4,)]
    gains = normal(4, seed=1)
    layer.gain.assign(gains)
    assert_close(layer(x), x * gains, 1e-6)
    assert numpy(LayerScale()(x)).max() == pytest.approx(x.max() * 1e-5, rel=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has shapes unknown before running")
def test_drop_path_of_unknown_batch():
    import tensorflow as tf

    layer = DropPath(0.5, seed=1)
    compiled = tf.function(lambda x: layer(x, training=True), input_signature=[tf.TensorSpec((None, None, 5))])
    assert np.all(np.ptp(compiled(ONES).numpy(), axis=(1, 2)) == 0)
