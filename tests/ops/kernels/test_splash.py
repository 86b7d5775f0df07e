"""Splash attention, interpreted on the CPU: what `test_attention` asks of every kernel, lengths and widths that are no whole
blocks, rows without keys, what it refuses, and that JAX lowers it for TPUs."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from helpers import BACKEND, assert_close, gradients, normal, numpy
from keras import ops

from keras_tfm.ops import attention, backend, explain_kernel
from keras_tfm.ops.kernels import LONG, splash

on_jax = pytest.mark.skipif(BACKEND != "jax", reason="Splash attention is JAX's")

LENGTH = 150
AT = np.arange(LENGTH)
RIGHT = np.array([[130], [60]]) > AT  # true = a token; padded on the right
LEFT = np.array([[5], [140]]) <= AT
HOLES = (AT % 3 > 0) & np.array([[True], [False]])  # the second row has no token at all
PACKED = np.stack([AT // 40, np.where(AT < 100, -(2**31), 7)]).astype("int32")
ASTRAY = PACKED.copy()
ASTRAY[0, 20:30], ASTRAY[1, -50:] = 99, 98  # segments of queries that no key is of
SINKS = np.array([-1.0, 0.5], "float32")

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True, "scale": 0.9},
    "causal window": {"causal": True, "window": 20},
    "window": {"window": 20},
    "window longer than the sequence": {"window": 1000, "causal": True},
    "window of itself alone": {"window": 1, "causal": True},
    "global": {"window": 9, "global_tokens": 3},
    "causal global": {"window": 9, "global_tokens": 3, "causal": True},
    "padding": {"padding_mask": RIGHT},
    "padding, causal": {"padding_mask": LEFT, "causal": True},
    "padding, window": {"padding_mask": LEFT, "window": 30, "softcap": 0.8},
    "holes": {"padding_mask": HOLES, "scale": 0.1},
    "segments": {"segment_ids": PACKED},
    "segments, padding": {"segment_ids": PACKED, "padding_mask": RIGHT, "causal": True, "window": 25},
    "segments without keys": {"segment_ids": (ASTRAY, PACKED), "causal": True},
    "cap": {"softcap": 0.7, "causal": True},
    "sinks": {"sinks": SINKS, "padding_mask": LEFT, "causal": True},
}


def qkv(
    queries: int = LENGTH, keys: int = LENGTH, heads: int = 2, kv_heads: int = 1, dim: int = 16, value_dim: int = 16
):
    return (
        normal(2, queries, heads, dim, seed=1),
        normal(2, keys, kv_heads, dim, seed=2),
        normal(2, keys, kv_heads, value_dim, seed=3),
    )


def call(kernel: str, options: dict[str, Any]):
    return lambda query, key, value: attention(query, key, value, kernel=kernel, **options)


def assert_the_reference(inputs: tuple, options: dict[str, Any], tolerance: float = 2e-5) -> tuple[np.ndarray, list]:
    expected, wanted = gradients(call("reference", options), *inputs)
    output, found = gradients(call("splash", options), *inputs)
    assert output.dtype == expected.dtype
    assert_close(output, expected, tolerance)
    for mine, theirs in zip(found, wanted, strict=True):
        assert np.isfinite(mine).all()
        assert_close(mine, theirs, tolerance * max(1.0, np.abs(theirs).max()))
    return output, found


@on_jax
@pytest.mark.parametrize("case", CASES)
def test_is_the_reference_in_value_and_gradients(case):
    assert_the_reference(qkv(), CASES[case])


@on_jax
@pytest.mark.parametrize("length, causal", [(1, False), (128, True), (129, False), (260, True), (260, False)])
def test_lengths_that_are_no_whole_blocks(length, causal, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)
    assert_the_reference(qkv(length, length, heads=1), {"causal": causal, "window": 120})


@on_jax
@pytest.mark.parametrize("queries, keys, padded", [(1, 140, False), (140, 3, True), (260, 130, False)])
def test_queries_and_keys_of_different_number(queries, keys, padded):
    padding = np.arange(keys) < np.array([[keys], [keys // 2]])
    segments = (np.zeros((1, queries), "int32"), np.zeros((2, keys), "int32"))
    assert_the_reference(qkv(queries, keys), {"padding_mask": padding, "segment_ids": segments} if padded else {})


@on_jax
@pytest.mark.parametrize("heads, kv_heads, dim, value_dim", [(4, 2, 64, 64), (4, 4, 16, 80), (3, 1, 80, 16)])
def test_heads_and_widths(heads, kv_heads, dim, value_dim):
    assert_the_reference(qkv(140, 140, heads, kv_heads, dim, value_dim), {"causal": True})


@on_jax
def test_blocks_are_as_few_and_as_full_as_may_be():
    sizes = {1: 128, 128: 128, 129: 256, 512: 512, 513: 384, 1025: 384, 2049: 512, 8192: 512}
    assert {length: splash._block(length, 512) for length in sizes} == sizes
    assert splash._block(8192, 128) == 128


@on_jax
def test_wide_heads_have_small_blocks(monkeypatch):
    made, real = [], splash._kernel
    monkeypatch.setattr(splash, "_kernel", lambda *arguments: made.append(arguments[3]) or real(*arguments))
    for width in (16, 264):
        call("splash", {"causal": True})(*(ops.convert_to_tensor(x) for x in qkv(200, 200, dim=16, value_dim=width)))
    assert made == [(256, 256), (128, 128)]


@on_jax
@pytest.mark.parametrize("case", ["causal", "segments, padding", "cap", "sinks"])
def test_low_precision_is_near_float32(case):
    """Of inputs rounded to bfloat16, as near to float32's results as bfloat16 comes."""
    options, rounded = CASES[case], [ops.cast(x, "bfloat16") for x in qkv(dim=64)]
    exact, wanted = gradients(call("reference", options), *(numpy(x) for x in rounded))
    output, found = gradients(call("splash", options), *rounded)
    for mine, theirs in zip((output, *found), (exact, *wanted), strict=True):
        assert np.sqrt(np.mean((mine - theirs) ** 2) / np.mean(theirs**2)) < 1e-2
    assert str(call("splash", options)(*rounded).dtype) == "bfloat16"


DEAD = {
    "all padding": ({"padding_mask": HOLES}, np.array([[False], [True]])),
    "padding before the first token": ({"padding_mask": LEFT, "causal": True}, ~LEFT),
    "no key in the segment": ({"segment_ids": (ASTRAY, PACKED)}, ASTRAY >= 98),
    "no key in the segment or padding": (
        {"segment_ids": (ASTRAY, PACKED), "padding_mask": np.array([[0], [101]]) > AT, "softcap": 2.0},
        (ASTRAY >= 98) | np.array([[True], [False]]),
    ),
}


@on_jax
@pytest.mark.parametrize("case", DEAD)
def test_rows_without_keys_are_zeros_with_zero_gradients(case, monkeypatch):
    monkeypatch.setattr(splash, "BLOCK", 128)
    options, dead = DEAD[case]
    inputs = tuple(x + 3.0 for x in qkv())  # values of which no mean is near zero
    output, (of_query, *_) = assert_the_reference(inputs, options)
    dead = np.broadcast_to(dead, (2, LENGTH))
    assert dead.any()
    assert np.all(output[dead] == 0)
    assert np.all(of_query[dead] == 0)
    assert np.all(np.abs(output[~dead]).max(axis=-1) > 0.5)


@on_jax
def test_sinks_have_their_gradient():
    import jax

    inputs = [ops.convert_to_tensor(x) for x in qkv()]

    def of(sinks, kernel):
        output = attention(*inputs, sinks=sinks, causal=True, padding_mask=LEFT, kernel=kernel)
        return ops.sum(output * ops.cos(output))

    mine, theirs = (jax.grad(of)(ops.convert_to_tensor(SINKS), kernel) for kernel in ("splash", "reference"))
    assert np.abs(theirs).min() > 1e-2
    assert_close(mine, theirs, 1e-5)


@on_jax
def test_programs_do_not_leak_into_one_another():
    """The kernel made while one program is traced serves another, within `jit`, `grad`, `checkpoint` and a loop."""
    import jax

    splash._kernel.cache_clear()
    inputs = [ops.convert_to_tensor(x) for x in qkv()]
    with jax.checking_leaks():
        first = jax.jit(call("splash", {"causal": True}))(*inputs)
    again = jax.checkpoint(call("splash", {"causal": True}))(*inputs)
    looped, _ = jax.lax.scan(lambda x, _: (call("splash", {"causal": True})(x, *inputs[1:]), None), inputs[0], length=1)
    assert splash._kernel.cache_info().misses == 1
    assert_close(again, first, 1e-6)
    assert_close(looped, first, 1e-6)


@on_jax
def test_only_blocks_that_someone_sees_are_visited():
    """Of 24 x 24 blocks, those of a window; no block of the mask is kept, nor anything else of (queries, keys)."""
    words = splash.Words(queries=3000, keys=3000, causal=True, window=256, global_tokens=0)
    kernel = splash._kernel(words, 3072, 3072, (128, 128), 4, None, True)
    for info, axis in ((kernel.fwd_mask_info, 2), (kernel.dq_mask_info, 2), (kernel.dkv_mask_info, 1)):
        assert info.partial_mask_blocks is None
        assert info.block_mask.shape[0] == 1  # for all heads
        assert info.block_mask.shape[axis] == 3  # a window of two blocks lies in three
        assert (info.block_mask > 0).sum() == 24 + 23 + 22
        assert sum(np.size(x) for x in info if x is not None) < 4000
    blocks = splash._kernel(dataclasses.replace(words, window=None), 3072, 3072, (128, 128), 4, None, True)
    np.testing.assert_array_equal(blocks.fwd_mask_info.block_mask[0] > 0, np.tri(24, dtype=bool))


# Lowered for TPUs ----------------------------------------------------------------------------------------------------

FOR_TPUS: dict[str, tuple[tuple, dict[str, Any], dict[str, tuple[tuple[int, ...], str]]]] = {
    "causal": ((600, 600, 4, 2, 64, 64), {"causal": True}, {}),
    "all there is": (
        (600, 600, 4, 2, 128, 128),
        {"causal": True, "window": 100, "global_tokens": 3, "softcap": 30.0},
        {"padding_mask": ((2, 600), "bool"), "segment_ids": ((2, 600), "int32"), "sinks": ((4,), "float32")},
    ),
    "two-sided": ((300, 300, 2, 2, 80, 80), {"window": 40}, {"padding_mask": ((2, 300), "bool")}),
    "other lengths and widths": ((400, 1400, 2, 1, 192, 128), {}, {}),
    "wide": ((300, 300, 1, 1, 512, 512), {"causal": True}, {}),
}


@on_jax
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", FOR_TPUS)
def test_value_and_gradient_are_lowered_for_tpus(case, dtype, monkeypatch):
    """By Pallas to Mosaic, not interpreted: forward, and the two programs of the gradient. No TPU has compiled them here."""
    import jax
    import jax.export

    monkeypatch.setattr(backend, "device", lambda x=None: "tpu")
    sizes, options, arrays = FOR_TPUS[case]
    inputs = [jax.ShapeDtypeStruct(x.shape, dtype) for x in qkv(*sizes)]
    given = [jax.ShapeDtypeStruct(*of) for of in arrays.values()]

    def of(query, key, value, *rest):
        output = attention(query, key, value, **options, **dict(zip(arrays, rest, strict=True)))
        assert output.shape == (*query.shape[:3], value.shape[3])
        return ops.sum(output)

    program = jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2)))
    text = jax.export.export(program, platforms=["tpu"])(*inputs, *given).mlir_module()
    assert text.count("@tpu_custom_call") == 3
    for phase in ("fwd", "dq", "dkv"):
        assert f"splash_mha_{phase}" in text


# Who is served -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scores": ({"return_scores": True}, "scores are never there as a whole"),
    "dropout": ({"dropout": 0.1, "seed": 0}, "no dropout"),
    "bias": ({"bias": np.zeros((1, 1, 6, 6), "float32")}, "no bias"),
    "mask": ({"attention_mask": np.ones((2, 6, 6), bool)}, "no mask that is an array"),
    "positions": ({"query_positions": np.arange(6)[None]}, "no positions"),
    "key positions": ({"key_positions": np.arange(6)[None]}, "no positions"),
}


def small(dtype: str = "float32") -> list:
    return [ops.cast(x, dtype) for x in qkv(6, 6, dim=4, value_dim=4)]


@on_jax
@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_the_reason(case):
    options, reason = REFUSED[case]
    with pytest.raises(ValueError, match=f"kernel='splash' cannot serve this call: .*{reason}"):
        attention(*small(), kernel="splash", **options)
    assert reason in explain_kernel(*small(), **options)["splash"]


@on_jax
def test_refuses_what_it_cannot_compute(monkeypatch):
    def said(*arrays):
        return explain_kernel(*arrays)["splash"]

    assert "bfloat16 or float32 throughout; got float16" in said(*small("float16"))
    assert "got bfloat16, float32" in said(*small("bfloat16")[:1], *small()[1:])
    assert "at least one row" in said(*(x[:0] for x in small()))
    assert said(*small()) == "available"
    monkeypatch.setattr(backend, "device", lambda x=None: "gpu")
    assert "runs on TPUs" in said(*small())


@on_jax
def test_refuses_lengths_of_a_program_for_any():
    import jax
    import jax.export

    (length,) = jax.export.symbolic_shape("length")
    inputs = [jax.ShapeDtypeStruct((2, length, 2, 4), "float32")] * 3
    said = []

    def of(*arrays):
        said.append(explain_kernel(*arrays, kernel="dense")["splash"])
        return arrays[0]

    jax.export.export(jax.jit(of))(*inputs)
    assert "shapes that are known" in said[0]


@on_jax
def test_serves_by_itself_on_tpus_alone(monkeypatch):
    long = [ops.zeros((1, LONG["jax", "tpu"], 1, 4))] * 3
    assert explain_kernel(*long, causal=True)["splash"] == "available"
    monkeypatch.setattr(backend, "device", lambda x=None: "tpu")
    for inputs in (small(), small("bfloat16"), long):
        assert explain_kernel(*inputs, causal=True)["splash"] == "serves"
    assert explain_kernel(*long, causal=True, window=16)["splash"] == "serves"
    assert explain_kernel(*small(), dropout=0.1, seed=0)["dense"] == "serves"
    assert explain_kernel(ops.zeros((1, 1, 1, 4)), *long[1:])["dense"] == "serves"  # a step of decoding


@pytest.mark.skipif(BACKEND == "jax", reason="of the other backends")
def test_other_backends_have_none():
    assert BACKEND in explain_kernel(*small())["splash"]
    with pytest.raises(ValueError, match=f"Splash attention is JAX's.*{BACKEND}"):
        attention(*small(), kernel="splash")
