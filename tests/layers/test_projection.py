"""`project` is its layer: plain, under LoRA, quantized, and in another dtype."""

import keras
import numpy as np
import pytest
from helpers import assert_close, numpy

from keras_tfm.layers.projection import project

X = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")
HEADS = np.random.default_rng(1).normal(size=(2, 5, 3, 4)).astype("float32")


def dense(**options):
    return keras.layers.Dense(7, bias_initializer="normal", **options), X


def into_heads(**options):
    return keras.layers.EinsumDense(
        "btd,dnh->btnh", (None, 3, 4), bias_axes="nh", bias_initializer="normal", **options
    ), X


def out_of_heads(**options):
    return keras.layers.EinsumDense(
        "btnh,nhd->btd", (None, 6), bias_axes="d", bias_initializer="normal", **options
    ), HEADS


def no_bias(**options):
    return keras.layers.Dense(7, use_bias=False, **options), X


KINDS = pytest.mark.parametrize("make", [dense, into_heads, out_of_heads, no_bias])


@KINDS
def test_equals_the_layer(make):
    layer, x = make()
    x = keras.ops.convert_to_tensor(x)
    expected = layer(x)
    assert_close(project(layer, x), expected)
    assert numpy(project(layer, x)).shape == numpy(expected).shape


@KINDS
def test_lora_counts(make):
    layer, x = make()
    x = keras.ops.convert_to_tensor(x)
    before = numpy(layer(x))
    layer.enable_lora(2)
    assert_close(project(layer, x), before)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    assert_close(project(layer, x), layer(x))
    assert np.abs(numpy(project(layer, x)) - before).max() > 0.1


@KINDS
def test_quantized_layers_compute_themselves(make):
    layer, x = make()
    x = keras.ops.convert_to_tensor(x)
    exact = numpy(layer(x))
    layer.quantize("int8")
    np.testing.assert_array_equal(numpy(project(layer, x)), numpy(layer(x)))
    assert 0 < np.abs(numpy(project(layer, x)) - exact).max() < 0.2


def test_activations_and_other_dtypes_are_the_layers():
    for layer, x in (dense(activation="relu"), dense(dtype="bfloat16")):
        x = keras.ops.convert_to_tensor(x)
        assert_close(project(layer, x), layer(x))
