"""One row times a weight, in parts of the weight's rows: the same product, made where it pays."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, numpy
from keras import ops

from keras_tfm.layers.projection import project
from keras_tfm.ops import one_row
from keras_tfm.ops.backend import device, recording

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="torch has its own products: keras_tfm.generation.products")
DRAWN = np.random.default_rng(0)
ON_CPU = device() == "cpu"


def drawn(*shape):
    return DRAWN.normal(size=shape).astype("float32")


def dense():
    return keras.layers.Dense(256, bias_initializer="normal"), drawn(1, 1, 1024)


def no_bias():
    return keras.layers.Dense(1024, use_bias=False), drawn(1, 1, 256)


def into_heads():
    return keras.layers.EinsumDense("btd,dnh->btnh", (None, 8, 64), bias_axes="nh"), drawn(1, 1, 512)


def out_of_heads():
    return keras.layers.EinsumDense("btnh,nhd->btd", (None, 512), bias_axes="d"), drawn(1, 1, 8, 64)


@pytest.mark.parametrize("make", [dense, no_bias, into_heads, out_of_heads])
def test_a_projection_in_parts_is_the_projection(make, monkeypatch):
    layer, x = make()
    expected = numpy(layer(x))
    made = []
    product = one_row.product
    monkeypatch.setattr(one_row, "product", lambda *arguments: made.append(1) or product(*arguments))
    assert_close(project(layer, ops.convert_to_tensor(x)), expected, 1e-5)
    assert not made  # training and calls of layers are as they were
    with recording():
        found = project(layer, ops.convert_to_tensor(x))
    assert bool(made) == ON_CPU
    assert numpy(found).shape == expected.shape
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("rows", "width", "columns", "dtype", "parts"),
    [
        (1, 1024, 256, "float32", True),
        (1, 4, 1 << 16, "float32", True),
        (2, 1024, 256, "float32", False),  # more rows are one product of threads by themselves
        (1, 1024, 255, "float32", False),  # too small to wake a thread for
        (1, 1026, 512, "float32", False),  # not four parts
        (1, 1024, 256, "bfloat16", False),  # which is widened first
    ],
)
def test_where_parts_are_multiplied(rows, width, columns, dtype, parts):
    x = ops.zeros((rows, width), dtype)
    with recording():
        assert one_row.in_parts(x, columns) == (parts and ON_CPU)
    assert not one_row.in_parts(x, columns)


def test_shapes_are_all_that_a_projection_asks_for():
    assert one_row.shapes((8,)) == set()
    assert one_row.shapes((6, 7)) == set()
    assert one_row.shapes((1024, 256)) == {(4, 256, 256)}
    assert one_row.shapes((512, 8, 64)) == {(512, 512), (4, 128, 512), (4096, 64), (4, 1024, 64)}


@pytest.mark.skipif(BACKEND != "jax", reason="XLA's program is read through JAX")
def test_the_weight_is_not_copied():
    import jax

    layer, x = out_of_heads()
    layer(x)

    def steps(x, kernel):
        with recording(), keras.StatelessScope(state_mapping=[(layer.kernel, kernel)]):
            return jax.lax.fori_loop(0, 9, lambda _, x: project(layer, x).reshape(x.shape), x)

    program = jax.jit(steps).lower(x, layer.kernel.value).compile().as_text()
    assert "f32[4,1,512]" in program  # the parts' results
    weights = [line.split(" = ")[1] for line in program.splitlines() if " = f32[4,128,512]" in line]
    assert weights
    assert not [line for line in weights if " copy(" in line or " fusion(" in line]
