"""Caches in tiles hold what others hold, and products with them are the products."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, numpy
from keras import ops

from keras_tfm.ops import attention, kv_cache, tiles
from keras_tfm.ops.backend import device

DRAWN = np.random.default_rng(0)
BATCH, HEADS, HEAD_DIM = 3, 2, 64
in_tiles = pytest.mark.skipif(BACKEND == "torch", reason="torch's caches are laid out otherwise, and never in tiles")
xla = pytest.mark.skipif(BACKEND == "torch" or device() != "cpu", reason="tiles are for XLA on a CPU")


def drawn(*shape):
    return DRAWN.normal(size=shape).astype("float32")


def filled(capacity, tokens, head_dim=HEAD_DIM, batch=BATCH, dtype="float32"):
    """A cache with so many tokens in each row."""
    cache = kv_cache.create(batch, capacity, HEADS, head_dim, dtype)
    return added(cache, drawn(batch, tokens, HEADS, head_dim))[0]


def added(cache, x, mask=None):
    mask = None if mask is None else ops.convert_to_tensor(mask)
    places = kv_cache.next_positions(cache, mask, x.shape[1])
    return kv_cache.update(cache, ops.convert_to_tensor(x), ops.convert_to_tensor(2 * x), places, mask, ring=False)


def same(found, expected):
    """Whether two caches hold the same, however they are laid out."""
    found, expected = kv_cache.untiled(found), kv_cache.untiled(expected)
    assert set(found) == set(expected)
    for name in expected:
        assert np.array_equal(numpy(found[name]), numpy(expected[name])), name


@pytest.fixture
def small(monkeypatch):
    """Tiles pay for these small caches, too."""
    monkeypatch.setattr(tiles, "LEAST", 1)


@in_tiles
@pytest.mark.parametrize(("name", "shape"), [("key", (2, 3, 8, 96)), ("value", (2, 3, 96, 64))])
def test_tiles_show_what_lies_in_them(name, shape):
    array = drawn(*shape)
    laid = tiles.tiled(name, ops.convert_to_tensor(array))
    assert laid.shape[-1] == tiles.WIDTH
    assert tiles.is_tiled(laid)
    assert np.array_equal(numpy(tiles.untiled(name, laid)), array)
    shown, x = tiles.Tiles(name, laid), drawn(2, 3, 2, shape[2])
    assert shown.shape == tuple(shown.whole().shape) == (2, 96, 3, 8 if name == "key" else 64)
    assert np.array_equal(numpy(tiles.whole(shown)), numpy(kv_cache.from_slots(name, array)))
    assert_close(shown.times(ops.convert_to_tensor(x)), x @ array, 1e-5)
    narrow = tiles.cast(shown, "bfloat16")
    assert keras.backend.standardize_dtype(narrow.dtype) == "bfloat16"
    assert narrow.shape == shown.shape
    assert tiles.whole(array) is array


@in_tiles
@pytest.mark.parametrize(
    "options",
    [{}, {"heads": 6}, {"softcap": 5.0}, {"sinks": True}, {"kernel": "reference"}, {"return_scores": True}],
    ids=str,
)
@pytest.mark.parametrize("head_dim", [64, 48])  # whose values are in tiles, and are not
def test_attention_to_tiles(options, head_dim):
    options = dict(options)
    heads = options.pop("heads", HEADS)
    if options.pop("sinks", False):
        options["sinks"] = ops.convert_to_tensor(drawn(heads))
    query = ops.convert_to_tensor(drawn(BATCH, 1, heads, head_dim))
    cache = filled(64, 40, head_dim)
    token = drawn(BATCH, 1, HEADS, head_dim)
    results = []
    for each in (cache, kv_cache.tiled(cache)):
        _after, key, value, positions = added(each, token)
        assert isinstance(key, tiles.Tiles) == (each is not cache)
        assert isinstance(value, tiles.Tiles) == (each is not cache and head_dim == 64)
        given = dict(query_positions=np.full((BATCH, 1), 40), key_positions=positions, causal=True)
        found = attention(query, key, value, **given, **options)
        results.append(found if isinstance(found, tuple) else (found,))
    for found, expected in zip(*results, strict=True):
        assert_close(found, expected, 1e-5)


@in_tiles
def test_tokens_go_where_they_would_without_tiles():
    plain = filled(96, 30)
    laid = kv_cache.tiled(plain)
    mask = np.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]], bool)
    for x, padding in [(1, None), (1, None), (1, None), (3, None), (3, mask), (1, None), (27, None), (1, None)]:
        token = drawn(BATCH, x, HEADS, HEAD_DIM)
        plain, *seen = added(plain, token, padding)
        laid, *attended = added(laid, token, padding)
        assert kv_cache.is_tiled(laid)
        same(laid, plain)
        for found, expected in zip(attended, seen, strict=True):
            assert np.array_equal(numpy(tiles.whole(found)), numpy(expected))
    rows = ops.convert_to_tensor(np.array([2, 0, 0, 1], "int32"))
    same(kv_cache.gather_rows(laid, rows), kv_cache.gather_rows(plain, rows))
    same(kv_cache.drop_last(laid, 3), kv_cache.drop_last(plain, 3))


@xla
def test_caches_grow_in_tiles_and_out_of_them(small):
    cache = filled(24, 20)
    laid = kv_cache.grow(cache, 64, in_tiles=True)
    assert kv_cache.is_tiled(laid)
    assert not kv_cache.is_tiled(cache)
    same(laid, kv_cache.grow(cache, 64))
    longer = kv_cache.grow(laid, 192, in_tiles=True)
    assert kv_cache.is_tiled(longer)
    same(longer, kv_cache.grow(cache, 192))
    assert kv_cache.grow(longer, 192, in_tiles=True) is longer
    over = kv_cache.grow(longer, tiles.MOST + 256, in_tiles=True)
    assert not kv_cache.is_tiled(over)
    same(over, kv_cache.grow(cache, tiles.MOST + 256))
    assert not kv_cache.is_tiled(kv_cache.grow(laid, 128))  # who does not allow tiles is given none


@xla
@pytest.mark.parametrize(
    ("options", "ring"),
    [({"batch": 1}, False), ({"dtype": "bfloat16"}, False), ({"dtype": "int8"}, False), ({}, True)],
    ids=str,
)
def test_where_tiles_do_not_pay(small, options, ring):
    cache = filled(64, 20, **options)
    assert not kv_cache.is_tiled(kv_cache.grow(cache, 128, ring=ring, in_tiles=True))


@xla
def test_small_caches_are_left_as_they_are():
    assert not kv_cache.is_tiled(kv_cache.grow(filled(24, 20, 8), 128, in_tiles=True))
    assert kv_cache.is_tiled(kv_cache.grow(filled(24, 20, 64, 8), 128, in_tiles=True))


@in_tiles
def test_a_capacity_that_is_no_multiple_stays_whole(small):
    assert not kv_cache.is_tiled(kv_cache.grow(filled(24, 20), 100, in_tiles=True))


def test_nothing_is_in_tiles_unless_it_is_asked_for():
    assert not kv_cache.is_tiled(kv_cache.grow(filled(64, 20, 64, 8), 256))
    assert BACKEND != "torch" or not kv_cache.is_tiled(kv_cache.grow(filled(64, 20, 64, 8), 256, in_tiles=True))
