"""Attention: the reference kernel against the formula in NumPy, every kernel against the reference."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, FLOATS, assert_close, gradients, normal, numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_tfm.ops import attention, backend, explain_kernel
from keras_tfm.ops.kernels import KERNELS, PREFERENCE

pytestmark = pytest.mark.usefixtures("several_blocks", "flex_with_gradients")

BATCH, LENGTH, HEADS, DIM = 2, 6, 4, 4
FAST = [name for name in KERNELS if name != "reference"]


def qkv(kv_heads: int = HEADS, queries: int = LENGTH, keys: int = LENGTH, dim: int = DIM) -> tuple[np.ndarray, ...]:
    return (
        normal(BATCH, queries, HEADS, dim, seed=1),
        normal(BATCH, keys, kv_heads, dim, seed=2),
        normal(BATCH, keys, kv_heads, dim, seed=3),
    )


PADDING = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]], bool)
SEGMENTS = np.array([[0, 0, 0, 1, 1, 2], [5, 5, 3, 3, 3, 3]], "int32")
GENERATOR = np.random.default_rng(4)
MASK_3 = GENERATOR.random((BATCH, LENGTH, LENGTH)) < 0.6
MASK_4 = GENERATOR.random((BATCH, HEADS, LENGTH, LENGTH)) < 0.6
BIAS = GENERATOR.normal(size=(BATCH, HEADS, LENGTH, LENGTH)).astype("float32")
SINKS = np.array([-1.0, 0.0, 0.5, 2.0], "float32")
# Queries that stand in the middle and at the end of the keys; one slot is empty.
QUERY_POSITIONS = np.array([[2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6]], "int32")
KEY_POSITIONS = np.array([[4, 5, 6, 1, 2, 3], [0, 1, 2, 3, 4, -1]], "int32")

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "causal_window": {"causal": True, "window": 2},
    "window": {"window": 2},
    "window_global": {"window": 1, "global_tokens": 2, "padding_mask": PADDING},
    "causal_window_global": {"causal": True, "window": 2, "global_tokens": 1},
    "padding": {"padding_mask": PADDING},
    "causal_padding": {"causal": True, "padding_mask": PADDING},
    "window_padding": {"window": 1, "padding_mask": PADDING},
    "segments": {"segment_ids": SEGMENTS},
    "causal_window_segments": {"causal": True, "window": 2, "segment_ids": SEGMENTS},
    "mask_3": {"attention_mask": MASK_3},
    "mask_4": {"attention_mask": MASK_4, "causal": True},
    "bias": {"bias": BIAS},
    "causal_bias": {"bias": BIAS, "causal": True},
    "bias_padding": {"bias": BIAS, "padding_mask": PADDING},
    "scale": {"scale": 1.7, "causal": True},
    "softcap": {"softcap": 0.8},
    "softcap_bias_mask": {"softcap": 0.8, "bias": BIAS, "attention_mask": MASK_3},
    "sinks": {"sinks": SINKS},
    "sinks_padding": {"sinks": SINKS, "padding_mask": PADDING, "causal": True},
    "positions": {"query_positions": QUERY_POSITIONS, "key_positions": KEY_POSITIONS, "causal": True},
    "positions_window": {
        "query_positions": QUERY_POSITIONS,
        "key_positions": KEY_POSITIONS,
        "causal": True,
        "window": 3,
    },
    "positions_both_ways": {"query_positions": QUERY_POSITIONS, "key_positions": KEY_POSITIONS, "window": 1},
    "empty_slots": {"key_positions": KEY_POSITIONS},
    "everything": {
        "causal": True,
        "window": 4,
        "padding_mask": PADDING,
        "segment_ids": SEGMENTS,
        "attention_mask": MASK_4,
        "bias": BIAS,
        "scale": 0.9,
        "softcap": 1.5,
        "sinks": SINKS,
    },
}

CASES_AND_HEADS = [(case, 2) for case in CASES] + [(case, HEADS) for case in ("plain", "causal_padding", "everything")]


def allowed(queries: int, keys: int, options: dict[str, Any]) -> np.ndarray:
    """Who may attend to whom, one scalar decision at a time: (batch, heads, queries, keys)."""
    query_at = np.broadcast_to(options.get("query_positions", np.arange(queries)[None]), (BATCH, queries))
    key_at = np.broadcast_to(options.get("key_positions", np.arange(keys)[None]), (BATCH, keys))
    segments = options.get("segment_ids")
    query_segments, key_segments = segments if isinstance(segments, tuple) else (segments, segments)
    window = options.get("window")
    mask = options.get("attention_mask")
    result = np.zeros((BATCH, HEADS, queries, keys), bool)
    for b, h, q, k in np.ndindex(result.shape):
        ahead = int(key_at[b, k]) - int(query_at[b, q])
        may = key_at[b, k] >= 0
        if options.get("causal"):
            may &= ahead <= 0
        near = window is None or (-ahead < window if options.get("causal") else abs(ahead) <= window)
        may &= near or min(query_at[b, q], key_at[b, k]) < options.get("global_tokens", 0)
        may &= options["padding_mask"][b, k] if "padding_mask" in options else True
        may &= query_segments[b, q] == key_segments[b, k] if segments is not None else True
        if mask is not None:
            may &= bool(mask[b, q, k] if mask.ndim == 3 else mask[b, h, q, k])
        result[b, h, q, k] = may
    return result


def by_hand(query, key, value, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The formula in float64, a head and a query at a time. Gives output and weights."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    groups = HEADS // key.shape[2]
    may = allowed(query.shape[1], key.shape[1], options)
    output = np.zeros((*query.shape[:3], value.shape[3]))
    weights = np.zeros(may.shape)
    for b, h, q in np.ndindex(may.shape[:3]):
        seen = may[b, h, q]
        if not seen.any():
            continue
        scores = key[b, :, h // groups] @ query[b, q, h] * options.get("scale", 1 / math.sqrt(query.shape[3]))
        if "softcap" in options:
            scores = options["softcap"] * np.tanh(scores / options["softcap"])
        if "bias" in options:
            scores = scores + np.broadcast_to(options["bias"], may.shape)[b, h, q]
        exponentials = np.where(seen, np.exp(scores), 0.0)
        total = exponentials.sum() + (np.exp(np.float64(options["sinks"][h])) if "sinks" in options else 0.0)
        weights[b, h, q] = exponentials / total
        output[b, q, h] = weights[b, h, q] @ value[b, :, h // groups]
    return output, weights


def tensors(options: dict[str, Any]) -> dict[str, Any]:
    def convert(value):
        if isinstance(value, tuple):
            return tuple(map(convert, value))
        return ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value

    return {name: convert(value) for name, value in options.items()}


def reason(kernel: str, inputs: tuple, options: dict[str, Any]) -> str | None:
    """Why `kernel` refuses the call, None if it serves."""
    said = explain_kernel(*map(ops.convert_to_tensor, inputs), **tensors(options))[kernel]
    return None if said in ("serves", "available") else said


def served_by(kernel: str, inputs: tuple, options: dict[str, Any]) -> None:
    refusal = reason(kernel, inputs, options)
    if refusal is not None:
        pytest.skip(refusal)


def run(kernel: str, options: dict[str, Any]) -> Callable:
    converted = tensors(options)
    return lambda query, key, value: attention(query, key, value, kernel=kernel, **converted)


@cache
def reference(case: str, kv_heads: int) -> tuple[np.ndarray, list[np.ndarray]]:
    return gradients(run("reference", CASES[case]), *qkv(kv_heads))


# The definition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case, kv_heads", CASES_AND_HEADS)
def test_reference_is_the_formula(case, kv_heads):
    """Value, and gradients by central differences in float64."""
    inputs, options = qkv(kv_heads), CASES[case]
    output, grads = reference(case, kv_heads)
    expected, _ = by_hand(*inputs, options)
    assert_close(output, expected, 2e-6)

    weights = np.cos(np.arange(output.size)).reshape(output.shape)  # as `gradients` weighs outputs
    for place, grad in enumerate(grads):
        direction = np.random.default_rng(5).normal(size=grad.shape)

        def moved(step, place=place, direction=direction):
            shifted = [x + step * direction if i == place else x.astype(np.float64) for i, x in enumerate(inputs)]
            return (by_hand(*shifted, options)[0] * weights).sum()

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        np.testing.assert_allclose((grad * direction).sum(), slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("case, kv_heads", CASES_AND_HEADS)
def test_fast_kernels_are_the_reference(kernel, case, kv_heads):
    inputs, options = qkv(kv_heads), CASES[case]
    served_by(kernel, inputs, options)
    output, grads = gradients(run(kernel, options), *inputs)
    expected, expected_grads = reference(case, kv_heads)
    assert_close(output, expected, 3e-6)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert_close(grad, expected_grad, 1e-5)


@settings(max_examples=6 if BACKEND == "jax" else 20)
@given(data=st.data())
@pytest.mark.parametrize("kernel", FAST)
def test_any_combination_of_options(kernel, data):
    causal = data.draw(st.booleans())
    optional = {
        "window": st.integers(1, LENGTH + 1),
        "padding_mask": st.just(PADDING),
        "segment_ids": st.just(SEGMENTS),
        "attention_mask": st.sampled_from([MASK_3, MASK_4, MASK_3.astype("int32")]),
        "bias": st.just(BIAS),
        "scale": st.floats(0.1, 2.0),
        "softcap": st.floats(0.5, 5.0),
        "sinks": st.just(SINKS),
        "query_positions": st.just(QUERY_POSITIONS),
        "key_positions": st.just(KEY_POSITIONS),
    }
    options = {"causal": causal}
    for name, strategy in optional.items():
        if data.draw(st.booleans()):
            options[name] = data.draw(strategy)
    if "window" in options:
        options["global_tokens"] = data.draw(st.integers(0, 3))
    inputs = qkv(data.draw(st.sampled_from([1, 2, 4])))
    if reason(kernel, inputs, options) is None:
        assert_close(run(kernel, options)(*tensors_of(inputs)), by_hand(*inputs, options)[0], 1e-5)


def tensors_of(arrays) -> tuple:
    return tuple(ops.convert_to_tensor(x) for x in arrays)


@pytest.mark.skipif(BACKEND != "torch", reason="compares with torch's own function")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ["plain", "causal", "mask_4", "bias", "scale"])
def test_equals_torch_sdpa(kernel, case):
    import torch

    served_by(kernel, qkv(), CASES[case])
    inputs, options = tensors_of(qkv()), tensors(CASES[case])
    causal = options.get("causal", False)
    mask = options.get("attention_mask", options.get("bias"))
    if mask is not None and mask.dtype == torch.bool:
        mask = mask & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril() if causal else mask
        alive = mask.any(-1)
        causal = False
    else:
        alive = torch.ones(BATCH, HEADS, LENGTH, dtype=torch.bool)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in inputs), attn_mask=mask, is_causal=causal, scale=options.get("scale")
    )
    expected = torch.where(alive[..., None], expected, 0.0).transpose(1, 2)
    assert_close(attention(*inputs, kernel=kernel, **options), expected, 3e-6)


# Shapes that broadcast -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shape, masked",
    [
        ((LENGTH,), False),
        ((LENGTH, LENGTH), True),
        ((HEADS, 1, LENGTH), False),
        ((1, HEADS, LENGTH, LENGTH), True),
        ((BATCH, 1, 1, LENGTH), True),
        ((1, 1, LENGTH, 1), False),
    ],
)
def test_bias_broadcasts(kernel, shape, masked):
    inputs, options = qkv(2), {"bias": normal(*shape), **({"padding_mask": PADDING} if masked else {})}
    served_by(kernel, inputs, options)
    assert_close(run(kernel, options)(*tensors_of(inputs)), by_hand(*inputs, options)[0], 3e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "shape", [(1, LENGTH, LENGTH), (1, 1, LENGTH, LENGTH), (BATCH, 1, LENGTH, LENGTH), (1, HEADS, LENGTH, LENGTH)]
)
def test_attention_mask_broadcasts(kernel, shape):
    inputs = qkv(2)
    mask = np.random.default_rng(0).random(shape) < 0.7
    full = np.broadcast_to(mask if mask.ndim == 4 else mask[:, None], (BATCH, HEADS, LENGTH, LENGTH))
    served_by(kernel, inputs, {"attention_mask": mask})
    assert_close(
        run(kernel, {"attention_mask": mask})(*tensors_of(inputs)), by_hand(*inputs, {"attention_mask": full})[0], 3e-6
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_masks_may_be_integers(kernel):
    inputs = qkv()
    options = {"padding_mask": PADDING, "attention_mask": MASK_3}
    served_by(kernel, inputs, options)
    as_integers = {name: mask.astype("int32") for name, mask in options.items()}
    assert_close(run(kernel, as_integers)(*tensors_of(inputs)), run(kernel, options)(*tensors_of(inputs)), 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "names",
    [("query_positions",), ("key_positions",), ("query_positions", "key_positions"), ("segment_ids",)],
    ids="+".join,
)
def test_positions_and_segments_may_be_int64(kernel, names):
    """NumPy's default, so what `np.arange` gives."""
    inputs = qkv(2)
    known = {
        "query_positions": np.arange(LENGTH)[None],
        "key_positions": np.arange(LENGTH)[None],
        "segment_ids": SEGMENTS.astype("int64"),
    }
    options = {"causal": True, "window": 3, **{name: known[name] for name in names}}
    served_by(kernel, inputs, options)
    assert_close(run(kernel, options)(*tensors_of(inputs)), by_hand(*inputs, options)[0], 3e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ["plain", "cross_padding", "segments_pair", "positions"])
def test_queries_and_keys_of_different_number(kernel, case):
    inputs = qkv(2, queries=3)
    options = {
        "plain": {},
        "cross_padding": {"padding_mask": PADDING},
        "segments_pair": {"segment_ids": (np.array([[0, 1, 9], [3, 5, 5]], "int32"), SEGMENTS)},
        "positions": {"query_positions": np.array([[2, 3, 4]], "int32"), "causal": True, "window": 2},
    }[case]
    served_by(kernel, inputs, options)
    assert_close(run(kernel, options)(*tensors_of(inputs)), by_hand(*inputs, options)[0], 3e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [False, True])
def test_values_may_be_wider_than_keys(kernel, causal):
    query, key, _ = qkv(2)
    value = normal(BATCH, LENGTH, 2, 7)
    served_by(kernel, (query, key, value), {"causal": causal})
    output = attention(*tensors_of((query, key, value)), causal=causal, kernel=kernel)
    assert_close(output, by_hand(query, key, value, {"causal": causal})[0], 3e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="torch runs eagerly here")
@pytest.mark.parametrize("kernel", KERNELS)
def test_dynamic_length_under_compilation(kernel):
    inputs, options = qkv(2), {"causal": True, "window": 3, "padding_mask": PADDING}
    served_by(kernel, inputs, options)
    expected = by_hand(*inputs, options)[0]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        def attend(query, key, value, padding_mask):
            return attention(query, key, value, causal=True, window=3, padding_mask=padding_mask, kernel=kernel)

        signature = [tf.TensorSpec((None, None, x.shape[2], DIM)) for x in inputs] + [
            tf.TensorSpec((None, None), tf.bool)
        ]
        output = tf.function(attend, input_signature=signature)(*inputs, PADDING)
    else:
        import jax

        output = jax.jit(lambda q, k, v, p: attention(q, k, v, causal=True, window=3, padding_mask=p, kernel=kernel))(
            *inputs, PADDING
        )
    assert_close(output, expected, 3e-6)


# Windows, written out ------------------------------------------------------------------------------------------------


def seen_keys(kernel: str, **options: Any) -> np.ndarray:
    """Which keys queries give weight to, (queries, keys) boolean. Values are unit vectors, so outputs are the weights."""
    query, key = normal(1, LENGTH, 1, LENGTH, seed=1), normal(1, LENGTH, 1, LENGTH, seed=2)
    inputs = query, key, np.eye(LENGTH, dtype="float32")[None, :, None, :]
    served_by(kernel, inputs, options)
    return numpy(attention(*tensors_of(inputs), kernel=kernel, **options))[0, :, 0] > 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_are_as_documented(kernel):
    rows = lambda text: np.array([[c == "x" for c in row] for row in text.split()])  # noqa: E731
    np.testing.assert_array_equal(
        seen_keys(kernel, causal=True, window=2), rows("x..... xx.... .xx... ..xx.. ...xx. ....xx")
    )
    np.testing.assert_array_equal(seen_keys(kernel, window=2), rows("xxx... xxxx.. xxxxx. .xxxxx ..xxxx ...xxx"))
    np.testing.assert_array_equal(seen_keys(kernel, causal=True, window=1), np.eye(LENGTH, dtype=bool))
    np.testing.assert_array_equal(seen_keys(kernel, causal=True, window=LENGTH), np.tri(LENGTH, dtype=bool))
    np.testing.assert_array_equal(seen_keys(kernel, window=LENGTH - 1), np.ones((LENGTH, LENGTH), bool))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_as_long_as_the_sequence_is_none(kernel, causal):
    inputs = tensors_of(qkv(2))
    served_by(kernel, inputs, {"causal": causal, "window": LENGTH})
    full = attention(*inputs, causal=causal, kernel=kernel)
    assert_close(attention(*inputs, causal=causal, window=LENGTH, kernel=kernel), full, 1e-6)
    assert_close(attention(*inputs, causal=causal, window=LENGTH + 5, kernel=kernel), full, 1e-6)


# Rows that may attend to nothing -------------------------------------------------------------------------------------

DEAD_ROW_1 = np.ones((BATCH, LENGTH, LENGTH), bool)
DEAD_ROW_1[1, 2] = False
FAR = np.array([[0, 1, 2, 3, 4, 50]], "int32")  # the last query stands beyond every key's window
DEAD: dict[str, tuple[dict[str, Any], list[tuple[int, int]]]] = {
    "a row all padding": ({"padding_mask": np.array([[1] * 6, [0] * 6], bool)}, [(1, q) for q in range(LENGTH)]),
    "padding before the first token": ({"padding_mask": PADDING, "causal": True}, [(1, 0), (1, 1)]),
    "a mask without keys": ({"attention_mask": DEAD_ROW_1}, [(1, 2)]),
    "a mask without keys, biased": ({"attention_mask": DEAD_ROW_1, "bias": BIAS}, [(1, 2)]),
    "a mask without keys, causal": ({"attention_mask": DEAD_ROW_1, "causal": True}, [(1, 2)]),
    "a mask without keys, with sinks": ({"attention_mask": DEAD_ROW_1, "sinks": SINKS}, [(1, 2)]),
    "no key in the segment": (
        {"segment_ids": (np.array([[0, 0, 0, 1, 1, 9], [5, 5, 3, 3, 3, 3]]), SEGMENTS)},
        [(0, 5)],
    ),
    "an empty cache": ({"key_positions": np.array([[-1] * 6, [0, 1, 2, 3, 4, 5]])}, [(0, q) for q in range(LENGTH)]),
    "no key in the window": ({"query_positions": FAR, "window": 2}, [(0, 5), (1, 5)]),
    "no key before the query": (
        {"query_positions": np.array([[-1, 1, 2, 3, 4, 5]], "int32"), "causal": True},
        [(0, 0), (1, 0)],
    ),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", DEAD)
def test_rows_without_keys_are_zero_and_so_are_their_gradients(kernel, case):
    options, dead = DEAD[case]
    inputs = qkv(2)
    served_by(kernel, inputs, options)
    output, grads = gradients(run(kernel, options), *inputs)
    assert all(np.isfinite(x).all() for x in (output, *grads))
    assert_close(output, by_hand(*inputs, options)[0], 3e-6)
    for b, q in dead:
        assert np.all(output[b, q] == 0)
        assert np.all(grads[0][b, q] == 0)
    alive = allowed(LENGTH, LENGTH, options).any(axis=(1, 2))  # (batch, keys): keys that some query sees
    for grad in grads[1:]:
        assert np.all(grad[~alive] == 0)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["a row all padding", "a mask without keys, biased", "a mask without keys, causal"])
def test_rows_without_keys_in_low_precision(kernel, dtype, case):
    options, dead = DEAD[case]
    inputs = tuple(ops.cast(x, dtype) for x in qkv(2))
    if reason(kernel, inputs, options) is None:
        output = numpy(run(kernel, options)(*inputs))
        assert np.isfinite(output).all()
        assert all(np.all(output[b, q] == 0) for b, q in dead)


# Precision -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["causal", "bias_padding", "softcap", "sinks", "positions_window"])
def test_low_precision_is_near_float32(kernel, dtype, case):
    inputs, options = tuple(ops.cast(x, dtype) for x in qkv(2)), CASES[case]
    served_by(kernel, inputs, options)
    output = run(kernel, options)(*inputs)
    assert keras.backend.standardize_dtype(output.dtype) == dtype
    exact = by_hand(*(numpy(x) for x in inputs), options)[0]  # of the rounded inputs: only the arithmetic differs
    assert_close(output, exact, FLOATS[dtype])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_softmax_is_float32(kernel, dtype):
    """Over many keys, a sum in bfloat16 stops growing at 256: weights would add up to more than one."""
    keys = 1500
    query, key = np.zeros((1, 1, 1, 4), "float32"), np.zeros((1, keys, 1, 4), "float32")
    value = np.ones((1, keys, 1, 4), "float32")
    value[:, : keys // 4] = 3.0
    inputs = tuple(ops.cast(x, dtype) for x in (query, key, value))
    served_by(kernel, inputs, {})
    assert_close(attention(*inputs, kernel=kernel), np.full((1, 1, 1, 4), 1.5), FLOATS[dtype])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_large_scores_give_no_nan(kernel, dtype):
    """Scores of about 1e4 in size; the sharpest key takes all."""
    query, key, value = qkv()
    query, key = query * 140, key * 140
    inputs = tuple(ops.cast(x, dtype) for x in (query, key, value))
    options = {"causal": True, "padding_mask": np.ones_like(PADDING)}
    served_by(kernel, inputs, options)
    output = numpy(run(kernel, options)(*inputs))
    assert np.isfinite(output).all()
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    best = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
    assert np.abs(scores).max() > 1e4
    clear = np.diff(np.sort(best, axis=-1)[..., -2:], axis=-1)[..., 0] > 200  # (batch, heads, queries)
    expected = np.take_along_axis(value.transpose(0, 2, 1, 3), best.argmax(-1)[..., None], axis=2)
    assert_close(output.transpose(0, 2, 1, 3)[clear], expected[clear], FLOATS[dtype])


# Scores --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["reference", "dense", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_weights(kernel, case):
    inputs, options = qkv(2), CASES[case]
    output, scores = attention(*tensors_of(inputs), return_scores=True, kernel=kernel, **tensors(options))
    expected, weights = by_hand(*inputs, options)
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert_close(scores, weights, 3e-6)
    assert_close(output, expected, 3e-6)
    total, alive = numpy(scores).sum(-1), allowed(LENGTH, LENGTH, options).any(-1)
    assert np.all(total[~alive] == 0)
    if "sinks" in options:
        assert np.all(total[alive] < 1)
    else:
        assert_close(total[alive], 1.0)


@pytest.mark.parametrize("kernel", ["reference", "dense"])
def test_scores_stay_float32_in_low_precision(kernel):
    _, scores = attention(*(ops.cast(x, "bfloat16") for x in qkv()), return_scores=True, kernel=kernel)
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert_close(numpy(scores).sum(-1), 1.0, 1e-6)


# Dropout -------------------------------------------------------------------------------------------------------------

WITH_DROPOUT = ["reference", "dense", "blockwise", "auto"]


def dropped_weights(kernel: str, rate: float, seed: Any, **options: Any) -> np.ndarray:
    """Attention weights after dropout, (batch * heads, queries, keys): values are unit vectors. All weights are alike."""
    length = 32
    query = key = np.zeros((4, length, 8, length), "float32")
    value = np.broadcast_to(np.eye(length, dtype="float32")[None, :, None], key.shape)
    output = attention(*tensors_of((query, key, value)), dropout=rate, seed=seed, kernel=kernel, **options)
    return numpy(output).transpose(0, 2, 1, 3).reshape(-1, length, length)


@pytest.mark.parametrize("kernel", WITH_DROPOUT)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_has_its_rate_and_keeps_the_mean(kernel, rate):
    weights = dropped_weights(kernel, rate, keras.random.SeedGenerator(1))
    sigma = math.sqrt(rate * (1 - rate) / weights.size)
    assert abs((weights == 0).mean() - rate) < 5 * sigma
    kept = weights[weights > 0]
    np.testing.assert_allclose(kept, 1 / 32 / (1 - rate), rtol=1e-4)
    assert abs(weights.mean() * 32 - 1) < 5 * sigma / (1 - rate)


@pytest.mark.parametrize("kernel", WITH_DROPOUT)
def test_dropout_follows_its_seed(kernel):
    generator = keras.random.SeedGenerator(1)
    first, second = (dropped_weights(kernel, 0.3, generator) for _ in range(2))
    again = dropped_weights(kernel, 0.3, keras.random.SeedGenerator(1))
    other = dropped_weights(kernel, 0.3, keras.random.SeedGenerator(2))
    np.testing.assert_array_equal(first, again)
    assert (first != second).mean() > 0.3
    assert (first != other).mean() > 0.3


@pytest.mark.parametrize("kernel", WITH_DROPOUT)
@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "window": 5}], ids=["causal", "window"])
def test_dropout_keeps_causality(kernel, options):
    """K#23038: a causal mask that was lost once dropout was on."""
    weights = dropped_weights(kernel, 0.3, keras.random.SeedGenerator(1), **options)
    assert np.all(weights[:, ~np.tri(32, dtype=bool)] == 0)
    assert np.any(weights[:, 20, 19] > 0)


@pytest.mark.parametrize("kernel", ["reference", "dense"])
def test_scores_are_those_before_dropout(kernel):
    inputs = tensors_of(qkv())
    _, plain = attention(*inputs, return_scores=True, kernel=kernel)
    _, scores = attention(*inputs, return_scores=True, kernel=kernel, dropout=0.5, seed=keras.random.SeedGenerator(0))
    assert_close(scores, plain, 0)


@pytest.mark.parametrize("kernel", ["reference", "dense"])
def test_dropout_of_everything(kernel):
    output = attention(*tensors_of(qkv()), dropout=1.0, seed=keras.random.SeedGenerator(0), kernel=kernel)
    assert np.all(numpy(output) == 0)


# Choosing a kernel ---------------------------------------------------------------------------------------------------


def test_every_preference_ends_with_a_kernel_that_refuses_nothing():
    for names in PREFERENCE.values():
        assert names[-1] in ("dense", "reference")
        assert set(names) <= set(KERNELS)


REFUSED_BY_FUSED = {
    "return_scores": {"return_scores": True},
    "dropout": {"dropout": 0.1, "seed": 0},
    "cap": {"softcap": 1.0},
    "sinks": {"sinks": SINKS},
}


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow has no fused kernel")
@pytest.mark.parametrize("case", CASES)
def test_fused_serves_all_but_what_it_says(case):
    refused = {"softcap", "sinks", *(["global_tokens"] if BACKEND == "jax" else [])} & set(CASES[case])
    said = explain_kernel(*tensors_of(qkv(2)), **tensors(CASES[case]))
    assert (said["fused"] in ("serves", "available")) == (not refused), said


BY_CUDNN: dict[str, tuple[dict[str, Any], str | None]] = {
    "causal": ({"causal": True}, None),
    "causal window": ({"causal": True, "window": 3}, None),
    "padding": ({"padding_mask": PADDING}, None),
    "float32": ({"dtype": "float32"}, "float16 or bfloat16 throughout; got float32"),
    "head_dim": ({"dim": 12}, "a multiple of 8 and at most 128 here; got 12"),
    "wide heads": ({"dim": 136}, "at most 128 here; got 136"),
    "window both ways": ({"window": 2}, "windows look back alone"),
    "odd lengths": ({"length": 5, "bias": BIAS[..., :5, :5]}, "even lengths .* got 5 queries, 5 keys"),
}


@pytest.mark.skipif(BACKEND != "jax", reason="JAX calls cuDNN")
@pytest.mark.parametrize("case", BY_CUDNN)
def test_cudnn_is_called_where_it_can_serve(case, monkeypatch):
    """As far as a CPU can tell: what is asked of JAX, whose own program then takes the place of cuDNN's."""
    import jax

    options, refusal = BY_CUDNN[case]
    options = {"dtype": "bfloat16", "dim": 16, "length": LENGTH, **options}
    length, dim, dtype = (options.pop(name) for name in ("length", "dim", "dtype"))
    inputs = tuple(ops.cast(x, dtype) for x in qkv(2, length, length, dim))
    monkeypatch.setattr(backend, "device", lambda x=None: "gpu")
    said = explain_kernel(*inputs, **tensors(options))
    if refusal is not None:
        assert re.search(refusal, said["fused"])
        assert said["dense"] == "serves"
        return
    asked, real = [], jax.nn.dot_product_attention

    def recorded(*arguments, implementation, **rest):
        asked.append(implementation)
        return real(*arguments, **rest)

    monkeypatch.setattr(jax.nn, "dot_product_attention", recorded)
    assert said["fused"] == "serves"
    assert_close(attention(*inputs, **tensors(options)), run("reference", options)(*inputs), FLOATS[dtype])
    assert asked == ["cudnn"]


@pytest.mark.skipif(BACKEND != "jax", reason="JAX calls cuDNN")
def test_nothing_is_fused_on_a_tpu(monkeypatch):
    monkeypatch.setattr(backend, "device", lambda x=None: "tpu")
    said = explain_kernel(*tensors_of(qkv()))
    assert "TPU" in said["fused"]
    assert said["splash"] == "serves"


@pytest.mark.parametrize("case", REFUSED_BY_FUSED)
def test_an_explicit_kernel_that_cannot_serve_says_why(case):
    options = tensors(REFUSED_BY_FUSED[case])
    with pytest.raises(ValueError, match=r"kernel='fused' cannot serve this call: .+ kernel='auto'") as caught:
        attention(*tensors_of(qkv()), kernel="fused", **options)
    said = explain_kernel(*tensors_of(qkv()), **options)
    assert said["fused"] in str(caught.value)
    if BACKEND != "tensorflow":
        assert {"return_scores": "scores", "dropout": "dropout", "cap": "cap", "sinks": "sinks"}[case] in str(
            caught.value
        )


@pytest.mark.parametrize("kernel", ["auto", "dense", "reference"])
def test_explain_kernel_names_who_serves(kernel, monkeypatch):
    inputs = tensors_of(qkv())
    said = explain_kernel(*inputs, kernel=kernel, causal=True)
    assert set(said) == set(KERNELS)
    (server,) = [name for name, text in said.items() if text == "serves"]
    assert kernel in ("auto", server)
    calls = []
    for name, module in KERNELS.items():
        monkeypatch.setattr(
            module, "attend", lambda request, name=name, real=module.attend: calls.append(name) or real(request)
        )
    attention(*inputs, kernel=kernel, causal=True)
    assert calls == [server]


def test_configured_dropout_costs_inference_nothing():
    """Dropout 0 in the call keeps the fast path, whatever the layer's rate."""
    with_seed = explain_kernel(*tensors_of(qkv()), dropout=0.0, seed=keras.random.SeedGenerator(0))
    assert with_seed == explain_kernel(*tensors_of(qkv()))


def test_unknown_kernels_raise():
    with pytest.raises(ValueError, match=r"Unknown kernel='flash'.*'auto', 'reference'"):
        attention(*tensors_of(qkv()), kernel="flash")


# Errors --------------------------------------------------------------------------------------------------------------


def shaped(*shape: int) -> np.ndarray:
    return np.zeros(shape, "float32")


BAD_CALLS: dict[str, tuple[tuple, dict[str, Any], str]] = {
    "rank": (
        (shaped(2, 6, 4), shaped(2, 6, 4, 4), shaped(2, 6, 4, 4)),
        {},
        r"query must be \(batch, length, heads, head_dim\).*\(2, 6, 4\)",
    ),
    "head_dim": ((shaped(2, 6, 4, 4), shaped(2, 6, 4, 5), shaped(2, 6, 4, 5)), {}, "head_dim; got 4 and 5"),
    "value": (
        (shaped(2, 6, 4, 4), shaped(2, 6, 4, 4), shaped(2, 5, 4, 4)),
        {},
        r"key and value must agree.*\(2, 5, 4, 4\)",
    ),
    "heads": (
        (shaped(2, 6, 4, 4), shaped(2, 6, 3, 4), shaped(2, 6, 3, 4)),
        {},
        "divide query heads; got 3 .* 4 query heads",
    ),
    "batch": ((shaped(2, 6, 4, 4), shaped(3, 6, 4, 4), shaped(3, 6, 4, 4)), {}, "batch.*2.*3"),
    "window": (qkv(), {"window": 0}, "window must be at least 1; got 0"),
    "softcap": (qkv(), {"softcap": 0.0}, "softcap must be positive; got 0.0"),
    "dropout": (qkv(), {"dropout": 1.5, "seed": 0}, "dropout must be between 0 and 1; got 1.5"),
    "dropout without seed": (qkv(), {"dropout": 0.5}, "dropout > 0 needs seed"),
    "causal lengths": (qkv(queries=3), {"causal": True}, "3 queries, 6 keys.*query_positions"),
    "padding rank": (
        qkv(),
        {"padding_mask": np.ones((2, 1, 1, 6), bool)},
        r"padding_mask must have shape \(2, 6\); got \(2, 1, 1, 6\)",
    ),
    "padding shape": (
        qkv(),
        {"padding_mask": np.ones((2, 5), bool)},
        r"padding_mask must have shape \(2, 6\); got \(2, 5\)",
    ),
    "padding dtype": (
        qkv(),
        {"padding_mask": np.ones((2, 6), "float32")},
        "padding_mask must be boolean.*float32.*bias",
    ),
    "mask rank": (
        qkv(),
        {"attention_mask": np.ones((6, 6), bool)},
        r"attention_mask must have shape .*\(2, 6, 6\).*; got \(6, 6\)",
    ),
    "mask dtype": (
        qkv(),
        {"attention_mask": np.zeros((2, 6, 6), "float32")},
        "attention_mask must be boolean.*float32",
    ),
    "segments": (qkv(), {"segment_ids": np.zeros((2, 5), "int32")}, r"segment_ids.*\(2, 6\); got \(2, 5\)"),
    "bias shape": (qkv(), {"bias": shaped(2, 4, 6, 5)}, r"bias.*\(2, 4, 6, 6\).*\(2, 4, 6, 5\)"),
    "sinks shape": (qkv(), {"sinks": shaped(3)}, r"sinks.*\(4,\).*\(3,\)"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_what_cannot_be_meant_raises(case):
    inputs, options, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        attention(*tensors_of(inputs), **tensors(options))


@pytest.mark.skipif(BACKEND != "jax", reason="a length without a number is JAX's")
@pytest.mark.parametrize("causal", [False, True])
def test_a_program_may_be_for_any_length(causal):
    import jax
    import jax.export

    (length,) = jax.export.symbolic_shape("length")
    shape = jax.ShapeDtypeStruct((2, length, 2, 4), "float32")
    program = jax.export.export(jax.jit(lambda x: attention(x, x, x, causal=causal)))(shape)
    x = normal(2, 7, 2, 4)
    assert_close(program.call(x), attention(x, x, x, causal=causal, kernel="reference"), 1e-6)
