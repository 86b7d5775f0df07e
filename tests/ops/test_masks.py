"""Masks, one entry at a time."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_tfm.ops import masks

QUERIES = np.array([[0, 1, 2], [4, 2, 7]], "int32")
KEYS = np.array([[0, 1, 2, 3], [2, 4, 6, 8]], "int32")


def tensors(*arrays):
    return (ops.convert_to_tensor(a) for a in arrays)


def test_positions_count_from_zero():
    np.testing.assert_array_equal(numpy(masks.positions(4)), [[0, 1, 2, 3]])


def test_causal():
    mask = numpy(masks.causal(*tensors(QUERIES, KEYS)))
    assert mask.shape == (2, 1, 3, 4)
    assert all(mask[b, 0, q, k] == (KEYS[b, k] <= QUERIES[b, q]) for b, q, k in np.ndindex(2, 3, 4))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("first", [0, 2])
def test_window(size, is_causal, first):
    mask = numpy(masks.window(*tensors(QUERIES, KEYS), size, is_causal=is_causal, global_tokens=first))
    if is_causal:
        mask &= numpy(masks.causal(*tensors(QUERIES, KEYS)))
    for b, q, k in np.ndindex(2, 3, 4):
        back = int(QUERIES[b, q]) - int(KEYS[b, k])
        near = back < size if is_causal else abs(back) <= size
        near = near or min(QUERIES[b, q], KEYS[b, k]) < first
        assert mask[b, 0, q, k] == (near and (back >= 0 or not is_causal))


def test_segments():
    query, key = np.array([[1, 1, 2], [0, 3, 0]]), np.array([[1, 2, 2, 7], [0, 0, 3, 4]])
    mask = numpy(masks.segments(*tensors(query, key)))
    np.testing.assert_array_equal(mask, (query[:, :, None] == key[:, None, :])[:, None])


@pytest.mark.parametrize("dtype", ["bool", "int32"])
def test_padding_and_explicit_masks_become_boolean_of_rank_4(dtype):
    padding = np.array([[1, 0], [1, 1]], dtype)
    np.testing.assert_array_equal(
        numpy(masks.padding(ops.convert_to_tensor(padding))), padding.astype(bool)[:, None, None]
    )
    mask = np.array([[[1, 0], [1, 1]]], dtype)
    for given, expected in ((mask, mask[:, None]), (mask[:, None], mask[:, None])):
        result = numpy(masks.explicit(ops.convert_to_tensor(given)))
        assert result.dtype == bool
        np.testing.assert_array_equal(result, expected.astype(bool))


def test_combine():
    first, second = np.array([True, True, False]), np.array([[True], [False]])
    assert masks.combine() is None
    assert masks.combine(None, None) is None
    only = ops.convert_to_tensor(first)
    assert masks.combine(None, only) is only
    np.testing.assert_array_equal(numpy(masks.combine(only, None, ops.convert_to_tensor(second))), first & second)
