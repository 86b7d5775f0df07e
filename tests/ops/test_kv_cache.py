"""The cache against a model of it in plain Python: a list of tokens for each row."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_tfm.ops import kv_cache

BATCH, CAPACITY, WINDOW = 2, 16, 4


def test_a_new_cache_is_empty():
    cache = kv_cache.create(2, 5, 3, 4, dtype="bfloat16")
    assert {name: tuple(x.shape) for name, x in cache.items()} == {
        "key": (2, 3, 5, 4) if BACKEND == "torch" else (2, 3, 4, 5),
        "value": (2, 3, 5, 4),
        "positions": (2, 5),
        "length": (2,),
    }
    assert keras.backend.standardize_dtype(cache["key"].dtype) == "bfloat16"
    assert np.all(numpy(cache["positions"]) == -1)
    assert not numpy(cache["length"]).any()


def chunks() -> st.SearchStrategy[list[np.ndarray | None]]:
    """Padding masks of successive chunks, None where all is real; at most 12 places a row."""
    one_length = st.integers(1, 4) if BACKEND != "jax" else st.sampled_from([1, 3])  # each is compiled anew there
    lengths = st.lists(one_length, min_size=1, max_size=3)

    def masks(lengths):
        def one(n):
            bits = st.lists(st.booleans(), min_size=BATCH * n, max_size=BATCH * n)
            return st.one_of(st.none(), bits.map(lambda given: np.array(given).reshape(BATCH, n)))

        return st.tuples(*[st.tuples(st.just(n), one(n)) for n in lengths])

    return lengths.flatmap(masks)


@given(steps=chunks(), ring=st.booleans())
def test_any_chunks_are_kept_as_the_rows_would_be(steps, ring):
    capacity = WINDOW if ring else CAPACITY
    cache = kv_cache.create(BATCH, capacity, 1, 1)
    rows: list[list[float]] = [[] for _ in range(BATCH)]  # the numbers that stand for each row's real tokens
    number = 1.0
    for length, mask in steps:
        key = np.arange(number, number + BATCH * length, dtype="float32").reshape(BATCH, length)
        number += BATCH * length
        real = np.ones((BATCH, length), bool) if mask is None else mask
        padding = None if mask is None else ops.convert_to_tensor(mask)

        places = numpy(kv_cache.next_positions(cache, padding, length))
        places = np.broadcast_to(places, (BATCH, length))
        for b in range(BATCH):
            np.testing.assert_array_equal(places[b][real[b]], len(rows[b]) + np.arange(real[b].sum()))
        assert places.min() >= 0

        tensor = ops.convert_to_tensor(key[:, :, None, None])
        before = {name: tuple(x.shape) for name, x in cache.items()}
        cache, keys, values, key_positions = kv_cache.update(
            cache, tensor, -tensor, ops.convert_to_tensor(places), padding, ring=ring
        )
        assert {name: tuple(x.shape) for name, x in cache.items()} == before
        keys, values, key_positions = numpy(keys)[..., 0, 0], numpy(values)[..., 0, 0], numpy(key_positions)

        for b in range(BATCH):
            rows[b] += list(key[b][real[b]])
            for place in places[b][real[b]]:  # each query finds each token of its past, or of its window, once
                first = max(0, place - WINDOW + 1) if ring else 0
                found = [(p, k) for p, k in zip(key_positions[b], keys[b], strict=True) if first <= p <= place]
                assert sorted(found) == list(enumerate(rows[b]))[first : place + 1]
            kept = numpy(cache["positions"])[b]
            expected = dict(list(enumerate(rows[b]))[-capacity:])
            assert {p: k for p, k in zip(kept, -numpy(cache["value"])[b, 0, :, 0], strict=True) if p >= 0} == expected
        np.testing.assert_array_equal(values, -keys)
        np.testing.assert_array_equal(numpy(cache["length"]), [len(row) for row in rows])


def test_single_steps_overwrite_the_oldest_slot():
    cache = kv_cache.create(1, 3, 1, 1)
    for step in range(5):
        tensor = ops.full((1, 1, 1, 1), float(step))
        cache, *_ = kv_cache.update(cache, tensor, tensor, kv_cache.next_positions(cache, None, 1), None, ring=True)
    np.testing.assert_array_equal(numpy(cache["value"])[0, 0, :, 0], [3, 4, 2])
    np.testing.assert_array_equal(numpy(cache["positions"])[0], [3, 4, 2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_cache_keeps_its_dtypes(dtype):
    cache = kv_cache.create(1, 4, 1, 2, dtype=dtype)
    tensor = ops.ones((1, 2, 1, 2), dtype="float32")
    updated, *_ = kv_cache.update(cache, tensor, tensor, ops.convert_to_tensor([[0, 1]]), None, ring=False)
    assert {name: x.dtype for name, x in updated.items()} == {name: x.dtype for name, x in cache.items()}


def test_rows_are_picked_anew():
    cache = kv_cache.create(2, 3, 1, 1)
    tensor = ops.convert_to_tensor(np.array([1.0, 2.0], "float32").reshape(2, 1, 1, 1))
    cache, *_ = kv_cache.update(cache, tensor, tensor, kv_cache.next_positions(cache, None, 1), None, ring=False)
    picked = kv_cache.gather_rows(cache, ops.convert_to_tensor([1, 1, 0]))
    np.testing.assert_array_equal(numpy(picked["key"])[:, 0, 0, 0], [2, 2, 1])
    assert set(picked) == set(cache)
    assert all(x.shape[0] == 3 for x in picked.values())
