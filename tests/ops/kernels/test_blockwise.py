"""Attention in blocks: what `test_attention` asks of every kernel, and blocks that do not come out even; which are visited."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, gradients, normal, numpy
from keras import ops

from keras_tfm.ops import attention, explain_kernel
from keras_tfm.ops.kernels import LONG, Request, backend, blockwise
from keras_tfm.ops.kernels.blockwise import blocks

BATCH, LENGTH, HEADS, DIM = 2, 13, 4, 4
PADDING = np.arange(LENGTH) < np.array([[13], [5]])
SEGMENTS = np.array([[1] * 4 + [2] * 6 + [3] * 3, [1] * 2 + [2] * 3 + [0] * 8], "int32")
MASK = np.random.default_rng(4).random((BATCH, HEADS, LENGTH, LENGTH)) < 0.4
SINKS = np.array([-1.0, 0.0, 0.5, 2.0], "float32")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal, padding": {"causal": True, "padding_mask": PADDING},
    "window": {"window": 3},
    "causal, window, segments": {"causal": True, "window": 4, "segment_ids": SEGMENTS, "padding_mask": PADDING},
    "global": {"window": 2, "global_tokens": 2, "padding_mask": PADDING},
    "mask, cap, sinks": {"attention_mask": MASK, "softcap": 0.7, "sinks": SINKS},
}


def qkv(kv_heads: int = 2, length: int = LENGTH) -> tuple[np.ndarray, ...]:
    return tuple(normal(BATCH, length, heads, DIM, seed=seed) for seed, heads in enumerate((HEADS, kv_heads, kv_heads)))


def sized(monkeypatch, queries: int, keys: int) -> None:
    monkeypatch.setattr(blockwise, "QUERIES", queries)
    monkeypatch.setattr(blockwise, "TALLER", 1)
    monkeypatch.setattr(blockwise, "KEYS", keys)


def call(kernel: str, options: dict[str, Any]):
    return lambda query, key, value: attention(query, key, value, kernel=kernel, **options)


@pytest.mark.parametrize("sizes", [(4, 3), (5, 512), (1, 6)] if BACKEND != "jax" else [(4, 3)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_blocks_that_do_not_come_out_even(case, sizes, monkeypatch):
    sized(monkeypatch, *sizes)
    expected, wanted = gradients(call("reference", CASES[case]), *qkv())
    output, found = gradients(call("blockwise", CASES[case]), *qkv())
    assert_close(output, expected, 3e-6)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, 2e-5)


@pytest.mark.parametrize("kernel", ["reference", "dense", "blockwise"])
def test_sinks_have_their_gradient(kernel, monkeypatch):
    """By central differences in the sinks; a row without keys leaves them alone."""
    sized(monkeypatch, 4, 3)
    inputs = [ops.convert_to_tensor(x) for x in qkv()]
    options = {"attention_mask": MASK & PADDING[:, None, :, None]}

    def of(sinks):
        return attention(*inputs, sinks=sinks, kernel=kernel, **options)

    output, (found,) = gradients(of, SINKS)
    weights = np.cos(np.arange(output.size)).reshape(output.shape)
    for place in range(HEADS):
        step = np.zeros(HEADS, "float32")
        step[place] = 1e-2
        up, down = (numpy(of(ops.convert_to_tensor(SINKS + sign * step))).astype(np.float64) for sign in (1, -1))
        np.testing.assert_allclose(found[place], ((up - down) * weights).sum() / 2e-2, rtol=2e-3, atol=1e-4)


def test_the_gradient_drops_what_the_output_dropped(monkeypatch):
    """With dropout, by central differences: each call draws alike."""
    sized(monkeypatch, 4, 3)

    def of(*arrays):
        seed = keras.random.SeedGenerator(7)
        return attention(*arrays, causal=True, softcap=2.0, dropout=0.4, seed=seed, kernel="blockwise")

    inputs = qkv()
    output, found = gradients(of, *inputs)
    plain = call("dense", {"causal": True, "softcap": 2.0})(*map(ops.convert_to_tensor, inputs))
    assert np.abs(output - numpy(plain)).max() > 0.1
    weights = np.cos(np.arange(output.size)).reshape(output.shape)
    for place, grad in enumerate(found):
        direction = normal(*grad.shape, seed=11 + place)
        values = []
        for sign in (1, -1):
            moved = [x + sign * 1e-3 * direction if i == place else x for i, x in enumerate(inputs)]
            values.append((numpy(of(*map(ops.convert_to_tensor, moved))).astype(np.float64) * weights).sum())
        np.testing.assert_allclose((grad * direction).sum(), (values[0] - values[1]) / 2e-3, rtol=5e-3, atol=5e-3)


def visited(**options: Any) -> np.ndarray:
    """Which key blocks each block of queries visits: (query blocks, key blocks) boolean, of 24 tokens in blocks of 4."""
    segment_ids = options.pop("segment_ids", None)
    query, key, value = (ops.convert_to_tensor(x) for x in qkv(length=24))
    request = Request(query, key, value, query_segment_ids=segment_ids, key_segment_ids=segment_ids, **options)
    settings = blockwise._settings(request)
    words = blocks.arrange(settings, request)
    order, whole, count = numpy(words["order"]), numpy(words["whole"]), numpy(words["count"])
    allowed = np.broadcast_to(True if request.mask() is None else numpy(request.mask()), (2, HEADS, 24, 24))
    found = np.zeros(order.shape, bool)
    for row, (keys, unmasked, many) in enumerate(zip(order, whole, count, strict=True)):
        assert sorted(keys) == list(range(6))
        for part in (keys[:unmasked], keys[unmasked:many]):
            assert list(part) == sorted(part)
        pairs = allowed[:, :, 4 * row : 4 * row + 4].reshape(2, HEADS, 4, 6, 4)[:, :, :, keys[:many]]
        all_of_it = pairs.all((0, 1, 2, 4))
        assert all_of_it[:unmasked].all()
        if not request.global_tokens:  # part of a block by the window, part by being global: not recognised
            assert not all_of_it[unmasked:].any()
        found[row, keys[:many]] = True
    return found


def test_only_blocks_that_someone_sees_are_visited(monkeypatch):
    sized(monkeypatch, 4, 4)
    near = np.abs(np.arange(6)[:, None] - np.arange(6)[None])
    past = np.tri(6, dtype=bool)
    assert visited().all()
    np.testing.assert_array_equal(visited(causal=True), past)
    np.testing.assert_array_equal(visited(causal=True, window=4), past & (near <= 1))
    np.testing.assert_array_equal(visited(window=5), near <= 2)
    np.testing.assert_array_equal(visited(window=4), near <= 1)
    first = np.minimum(np.arange(6)[:, None], np.arange(6)[None]) == 0
    np.testing.assert_array_equal(visited(window=4, global_tokens=3), (near <= 1) | first)
    tokens = ops.convert_to_tensor(np.arange(24) < np.array([[9], [3]]))
    np.testing.assert_array_equal(visited(padding_mask=tokens), np.arange(6)[None] < np.full((6, 1), 3))
    packed = ops.convert_to_tensor(np.repeat([[0, 1, 2]] * 2, 8, axis=1))  # three segments of two blocks
    np.testing.assert_array_equal(visited(segment_ids=packed), near * 0 + np.kron(np.eye(3), np.ones((2, 2))) > 0)
    mask = np.zeros((2, 24, 24), bool)
    mask[1, 5, 9] = mask[0, 23, 0] = True
    np.testing.assert_array_equal(np.argwhere(visited(attention_mask=ops.convert_to_tensor(mask))), [[1, 2], [5, 0]])


def test_what_is_not_visited_is_not_read(monkeypatch):
    """Keys of NaN beyond the window poison no output."""
    sized(monkeypatch, 4, 4)
    query, key, value = qkv(length=24)
    key[:, 16:] = value[:, 16:] = np.nan
    output = numpy(call("blockwise", {"causal": True, "window": 4})(*map(ops.convert_to_tensor, (query, key, value))))
    assert np.isfinite(output[:, :16]).all()
    assert np.isnan(output[:, 16:]).all()


@pytest.mark.skipif(BACKEND != "jax", reason="XLA says beforehand what a program takes")
def test_memory_grows_with_the_length_and_not_with_its_square():
    import jax

    def taken(kernel, length):
        shapes = [jax.ShapeDtypeStruct((1, length, 2, 16), "float32")] * 3
        step = jax.jit(jax.grad(lambda *qkv: ops.sum(call(kernel, {"causal": True})(*qkv)), argnums=(0, 1, 2)))
        return step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    short, long = taken("blockwise", 4096), taken("blockwise", 8192)
    assert long < 1.7 * short
    assert long < taken("dense", 8192) / 20


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's two ways of compiling")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_compiled_by_tensorflow(jit_compile, monkeypatch):
    import tensorflow as tf

    sized(monkeypatch, 4, 3)
    inputs = [tf.convert_to_tensor(x) for x in qkv()]
    options = CASES["causal, window, segments"]

    @tf.function(jit_compile=jit_compile)
    def step(*inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = call("blockwise", options)(*inputs)
            total = tf.reduce_sum(
                output * tf.cos(tf.reshape(tf.range(tf.size(output), dtype=tf.float32), output.shape))
            )
        return tape.gradient(total, inputs)

    _, wanted = gradients(call("reference", options), *qkv())
    for mine, theirs in zip(step(*inputs), wanted, strict=True):
        assert_close(mine, theirs, 2e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="Keras asks torch for shapes by tensors without values")
def test_shapes_alone():
    import torch

    query, key, value = (torch.empty(x.shape, device="meta") for x in qkv())
    assert call("blockwise", {"causal": True})(query, key, value).shape == query.shape


def serving(queries: int, keys: int, **options: Any) -> str:
    query, key = (ops.zeros((1, length, 1, 4)) for length in (queries, keys))
    said = explain_kernel(query, key, key, **options)
    return next(name for name, text in said.items() if text == "serves")


def test_blocks_serve_long_sequences_and_narrow_windows():
    long = LONG[BACKEND, backend.device()]
    torch_serves = BACKEND == "torch"  # its own primitive, where it needs no mask as large as the scores
    assert serving(long, long, causal=True) == ("fused" if torch_serves else "blockwise")
    assert serving(long, long, padding_mask=ops.ones((1, long), "bool")) == ("fused" if torch_serves else "blockwise")
    assert serving(long, long, causal=True, padding_mask=ops.ones((1, long), "bool")) == "blockwise"
    assert serving(long, long, segment_ids=ops.zeros((1, long), "int32")) == "blockwise"
    assert serving(long, long, causal=True, dropout=0.1, seed=keras.random.SeedGenerator(0)) == "blockwise"
    assert serving(1024, 1024, causal=True, window=200) == "blockwise"
    assert serving(1024, 1024, causal=True, window=300) != "blockwise"
    assert serving(512, 512, causal=True, window=16) != "blockwise"
    assert serving(1, long, causal=True, query_positions=ops.full((1, 1), long, "int32")) != "blockwise"
    assert serving(long, long, bias=ops.zeros((1, 1, 1, long))) != "blockwise"
    assert serving(long, long, return_scores=True) == "dense"
