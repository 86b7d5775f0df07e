"""Cached = uncached, whatever the chunks, the padding and the options."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, normal, numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_tfm import layers
from keras_tfm.ops import kv_cache

BATCH, LENGTH, WIDTH = 2, 6, 8
TOKENS, CONTEXT = normal(BATCH, LENGTH, WIDTH, seed=1), normal(BATCH, 5, WIDTH, seed=2)

RELATIVE = {"kind": "relative", "num_buckets": 8, "max_distance": 20, "bidirectional": False}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped": {"num_key_value_heads": 1},
    "rotary": {"position": "rotary"},
    "scaled rotary": {"position": {"kind": "rotary", "scaling": {"kind": "linear", "factor": 2.0}, "fraction": 0.5}},
    "alibi": {"position": "alibi"},
    "relative": {"position": RELATIVE},
    "disentangled": {
        "position": {"kind": "disentangled", "num_buckets": 8, "max_distance": 20},
        "num_key_value_heads": 1,
    },
    "short window": {"window": 2, "position": "rotary"},
    "window": {"window": 4, "position": "alibi", "num_key_value_heads": 1},
    "long window": {"window": 9, "position": "rotary"},
}


def layer_of(name: str, kind: str) -> keras.Layer:
    if kind == "attention":
        layer = layers.MultiHeadSelfAttention(2, causal=True, **OPTIONS[name])
        layer(TOKENS)
    else:
        layer = layers.TransformerDecoderBlock(2, 16, cross_attention=kind == "cross", **OPTIONS[name])
        layer(TOKENS, *([CONTEXT] if kind == "cross" else []))
    return fill_weights(layer)


def real_places() -> st.SearchStrategy[np.ndarray]:
    """Which of the places of each row hold a token: padding on the left, on the right, between, in any mix."""
    return st.lists(st.booleans(), min_size=BATCH * LENGTH, max_size=BATCH * LENGTH).map(
        lambda bits: np.array(bits).reshape(BATCH, LENGTH)
    )


def chunkings() -> st.SearchStrategy[list[int]]:
    """Lists of chunk lengths that add up to the whole."""

    def cut(lengths: list[int]) -> list[int]:
        ends = np.minimum(np.cumsum(lengths), LENGTH)
        return [int(n) for n in np.diff(ends, prepend=0) if n]

    if BACKEND == "jax":  # where every other length of chunk is compiled anew
        return st.sampled_from([[6], [1, 3, 1, 1], [3, 3]])
    return st.lists(st.integers(1, LENGTH), min_size=LENGTH, max_size=LENGTH).map(cut)


def uncached(layer: keras.Layer, real: np.ndarray, *context: np.ndarray) -> np.ndarray:
    """Outputs of each row's tokens as a sequence without gaps, padded on the right, put back where the tokens stand."""
    order = np.argsort(~real, axis=1, kind="stable")[..., None]
    packed = np.take_along_axis(TOKENS, order, 1)
    mask = np.take_along_axis(real, order[..., 0], 1)
    output = numpy(layer(packed, *context, padding_mask=mask))
    result = np.zeros_like(output)
    np.put_along_axis(result, order, output, 1)
    return result


def run_cached(
    layer: keras.Layer, chunks: list[int], real: np.ndarray | None, cache: Any, *context: np.ndarray
) -> tuple[np.ndarray, Any]:
    outputs, start = [], 0
    for length in chunks:
        part = slice(start, start + length)
        mask = None if real is None else real[:, part]
        shapes = keras.tree.map_structure(lambda t: (tuple(t.shape), t.dtype), cache)
        output, cache = layer(TOKENS[:, part], *context, padding_mask=mask, cache=cache)
        assert keras.tree.map_structure(lambda t: (tuple(t.shape), t.dtype), cache) == shapes
        outputs.append(numpy(output))
        start += length
    return np.concatenate(outputs, 1), cache


@pytest.mark.parametrize("name", OPTIONS if BACKEND != "jax" else ["rotary", "window"])
@settings(max_examples=4 if BACKEND == "jax" else 10)
@given(chunks=chunkings(), real=real_places() if BACKEND == "jax" else st.one_of(st.none(), real_places()))
def test_cached_attention_is_uncached(name, chunks, real):
    if name not in _layers:
        _layers[name] = layer_of(name, "attention")
    layer = _layers[name]
    everything = np.ones((BATCH, LENGTH), bool)
    cache = layer.make_cache(BATCH, 2 * LENGTH)
    window = OPTIONS[name].get("window")
    assert kv_cache.slots("key", cache["key"]) == (2 * LENGTH if window is None else window)
    output, cache = run_cached(layer, chunks, real, cache)
    mask = everything if real is None else real
    assert_close(output[mask], uncached(layer, mask)[mask], 1e-5)
    np.testing.assert_array_equal(numpy(cache["length"]), mask.sum(1))


_layers: dict[str, keras.Layer] = {}


@pytest.mark.parametrize("kind, name", [("decoder", "window"), ("cross", "rotary"), ("cross", "short window")])
@pytest.mark.parametrize("chunks", [[3, 1, 1, 1], [LENGTH]][: 1 if BACKEND == "jax" else 2], ids=str)
def test_cached_blocks_are_uncached(kind, name, chunks):
    layer = _layers.setdefault(f"{kind} {name}", layer_of(name, kind))
    real = np.array([[1, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0]], bool)
    context = [CONTEXT] if kind == "cross" else []
    cache = layer.make_cache(BATCH, 2 * LENGTH, **({"context": CONTEXT} if context else {}))
    output, cache = run_cached(layer, chunks, real, cache)  # the context is in the cache
    assert_close(output[real], uncached(layer, real, *context)[real], 2e-5)
    assert set(cache) == ({"attention", "cross_attention"} if context else {"attention"})


def test_a_cached_cross_attention_needs_its_context_once():
    layer = layers.MultiHeadCrossAttention(2, 1)
    expected = numpy(layer(TOKENS, CONTEXT))
    cache = layer.make_cache(CONTEXT)
    assert {name: kv_cache.slots(name, x) for name, x in cache.items()} == {"key": 5, "value": 5}
    assert_close(layer(TOKENS, cache=cache), expected, 1e-6)
    for step in range(2):
        assert_close(numpy(layer(TOKENS[:, step : step + 1], cache=cache))[:, 0], expected[:, step], 1e-6)


def test_a_cached_decoder_keeps_the_contexts_padding():
    """The padding of the context is given with each step; what is masked does not matter."""
    layer = layer_of("plain", "cross")
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], bool)
    expected = numpy(layer(TOKENS, CONTEXT, context_padding_mask=mask))
    cache = layer.make_cache(BATCH, LENGTH, context=np.where(mask[..., None], CONTEXT, 1e4).astype("float32"))
    for step in range(3):
        output, cache = layer(TOKENS[:, step : step + 1], cache=cache, context_padding_mask=mask)
        assert_close(numpy(output)[:, 0], expected[:, step], 1e-5)


def test_scores_of_a_cached_call():
    layer = layer_of("plain", "attention")
    _, cache = layer(TOKENS[:, :4], cache=layer.make_cache(BATCH, 8))
    _, _, scores = layer(TOKENS[:, 4:5], cache=cache, return_scores=True)
    _, expected = layer(TOKENS[:, :5], return_scores=True)
    assert tuple(scores.shape) == (BATCH, 2, 1, 8)
    assert_close(numpy(scores)[..., 0, :5], numpy(expected)[..., 4, :], 1e-5)
    assert not numpy(scores)[..., 5:].any()


@pytest.mark.parametrize(
    "dtype, policy", [(None, "mixed_bfloat16"), ("float32", "mixed_bfloat16"), ("bfloat16", "float32")]
)
def test_the_cache_keeps_its_dtype(dtype, policy):
    """A decode loop carries the cache: its dtypes must not change on the way."""
    layer = layers.MultiHeadSelfAttention(2, causal=True, dtype=policy)
    layer(TOKENS)
    cache = layer.make_cache(BATCH, 8, dtype=dtype)
    wanted = dtype or "bfloat16"
    assert keras.backend.standardize_dtype(cache["key"].dtype) == wanted
    output, updated = layer(TOKENS[:, :3], cache=cache)
    assert keras.backend.standardize_dtype(updated["key"].dtype) == wanted
    assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
    assert_close(output, numpy(layer(TOKENS))[:, :3], 3e-2)


def test_windows_count_real_tokens_with_and_without_a_cache():
    """Padding between tokens takes no room in a window: what the cache does, the plain call does."""
    layer = layer_of("short window", "attention")
    real = np.array([[1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 1, 0]], bool)
    expected = uncached(layer, real)
    output, _ = run_cached(layer, [LENGTH], real, layer.make_cache(BATCH, 12))
    assert_close(output[real], expected[real], 1e-5)
    assert_close(numpy(layer(TOKENS, padding_mask=real))[real], expected[real], 1e-5)


def test_a_chunk_of_nothing_but_padding_leaves_the_cache_as_it_was():
    layer = layer_of("rotary", "attention")
    _, cache = layer(TOKENS[:, :3], cache=layer.make_cache(BATCH, 8))
    _, after = layer(TOKENS[:, 3:6], cache=cache, padding_mask=np.zeros((BATCH, 3), bool))
    output, _ = layer(TOKENS[:, 3:4], cache=after)
    expected, _ = layer(TOKENS[:, 3:4], cache=cache)
    assert_close(output, expected, 1e-6)
    np.testing.assert_array_equal(numpy(after["length"]), [3, 3])


def test_padding_takes_no_capacity():
    """Five tokens in eight padded places fit a cache of five."""
    layer = layer_of("plain", "attention")
    real = np.array([[1, 1, 1, 1, 0, 1], [0, 1, 1, 0, 1, 0]], bool)
    output, _ = run_cached(layer, [3, 3], real, layer.make_cache(BATCH, 5))
    assert_close(output[real], uncached(layer, real)[real], 1e-5)
