"""A few rows times a weight, as XLA on a CPU does it soonest: the same product, made where it pays."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, numpy
from keras import ops

from keras_tfm.layers.projection import project
from keras_tfm.ops import few_rows
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
@pytest.mark.parametrize("rows", [1, 2, 16])
def test_a_projection_of_few_rows_is_the_projection(make, rows, monkeypatch):
    layer, x = make()
    x = drawn(rows, *x.shape[1:])
    expected = numpy(layer(x))
    made = []
    product = few_rows.product

    def watched(*arguments):
        made.append(product(*arguments))
        return made[-1]

    monkeypatch.setattr(few_rows, "product", watched)
    assert_close(project(layer, ops.convert_to_tensor(x)), expected, 1e-5)
    assert made.pop() is None  # training and calls of layers are as they were
    with recording():
        found = project(layer, ops.convert_to_tensor(x))
    assert (made.pop() is not None) == ON_CPU
    assert numpy(found).shape == expected.shape
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("rows", "width", "columns", "dtype", "pays"),
    [
        (1, 1024, 256, "float32", True),
        (1, 4, 1 << 16, "float32", True),
        (2, 1024, 256, "float32", True),
        (16, 1026, 512, "float32", True),
        (17, 1024, 256, "float32", False),  # so many are one product of threads by themselves
        (1, 1024, 255, "float32", False),  # too small to wake a thread for
        (8, 1024, 255, "float32", False),
        (1, 1026, 512, "float32", False),  # not four parts
        (1, 1024, 256, "bfloat16", False),  # which is widened first
        (8, 1024, 256, "bfloat16", False),
    ],
)
def test_where_another_product_pays(rows, width, columns, dtype, pays):
    x, weight = drawn(rows, width), drawn(width, columns)
    given = ops.cast(ops.convert_to_tensor(x), dtype)
    with recording():
        found = few_rows.product(given, keras.Variable(weight), columns)
    assert (found is not None) == (pays and ON_CPU)
    if found is not None:
        assert_close(found, x @ weight, 1e-3)
    assert few_rows.product(given, keras.Variable(weight), columns) is None


@pytest.mark.parametrize(
    ("rows", "entries", "pays"),
    [(2, 8192, True), (16, 1024, True), (1, 8192, False), (17, 8192, False), (2, 8193, False)],
)
def test_rows_times_a_table(rows, entries, pays):
    x, table = drawn(rows, 256), drawn(entries, 256)
    with recording():
        found = few_rows.by_table(ops.convert_to_tensor(x), ops.convert_to_tensor(table))
    assert (found is not None) == (pays and ON_CPU)
    if found is not None:
        assert_close(found, x @ table.T, 1e-3)
    assert few_rows.by_table(ops.convert_to_tensor(x), ops.convert_to_tensor(table)) is None


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX's functions are always XLA's")
def test_what_is_to_be_computed_is_where_xla_compiles():
    import tensorflow as tf

    from keras_tfm.ops.backend import as_computed

    x = tf.constant([[1.0, 2.0]])
    assert as_computed(x) is x
    compiled = tf.function(lambda x: tf.transpose(as_computed(2 * x)), jit_compile=True)
    assert compiled(x).numpy().tolist() == [[2.0], [4.0]]
    assert "opt-barrier" in compiled.experimental_get_compiler_ir(x)(stage="hlo")


def test_shapes_are_all_that_a_projection_asks_for():
    assert few_rows.shapes((8,)) == set()
    assert few_rows.shapes((6, 7)) == set()
    assert few_rows.shapes((1024, 256)) == {(4, 256, 256)}
    assert few_rows.shapes((512, 8, 64)) == {(512, 512), (4, 128, 512), (4096, 64), (4, 1024, 64)}


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
