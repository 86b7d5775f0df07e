"""The key/value cache: a dict of fixed-shape arrays that a layer takes and returns updated.

    value        (batch, kv_heads, capacity, head_dim), each head's slots side by side, as products want them
    key          (batch, kv_heads, head_dim, capacity), for the same reason; on torch as value
    positions    (batch, capacity) int32, where each slot's token stands in its row; -1 marks an empty slot
    length       (batch,) int32, how many tokens each row has seen
    value_scale, key_scale   as value and key, with 1 for head_dim, float32: of an int8 cache, what a unit of a vector is

Only a row's real tokens are kept, in order: padding on either side leaves no trace, so a ragged batch is cached as its
rows would be alone. Rows end together: the last token of each lies in slot max(length) - 1, so that a step writes one
slice for all of them. With a window the cache is a ring of `window` slots, and some to spare where tokens are to be
dropped again.

A cache that `grow` was allowed to lay out in tiles has keys and values as `keras_tfm.ops.tiles` says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_tfm.ops import tiles
from keras_tfm.ops.backend import NAME, Tensor, concrete, device

Cache = dict[str, Tensor]

# Which axis of an array the slots lie along. XLA multiplies by keys as they lie this way, and copies them to it otherwise.
_KEY_AXIS = 2 if NAME == "torch" else 3
_SLOT_AXIS = {"positions": 1, "value": 2, "value_scale": 2, "key": _KEY_AXIS, "key_scale": _KEY_AXIS}


def create(batch: int, capacity: int, num_key_value_heads: int, head_dim: int, dtype: str = "float32") -> Cache:
    """An empty cache for `capacity` tokens a row. Its arrays take 2 * batch * capacity * kv_heads * head_dim elements.

    With dtype "int8" each vector is kept as integers from -127 to 127 and a scale, four bytes more: vectors that come out
    differ by up to 1/254 of their largest element from those put in.
    """

    def arrays(suffix: str, width: int, dtype: str) -> Cache:
        shape = (batch, capacity, num_key_value_heads, width)
        return {name: to_slots(name, ops.zeros(shape, dtype=dtype)) for name in ("key" + suffix, "value" + suffix)}

    cache = arrays("", head_dim, dtype) | (arrays("_scale", 1, "float32") if dtype == "int8" else {})
    positions = ops.full((batch, capacity), -1, dtype="int32")
    return {**cache, "positions": positions, "length": ops.zeros((batch,), dtype="int32")}


def next_positions(cache: Cache, padding_mask: Tensor | None, queries: int | Tensor) -> Tensor:
    """Where the next `queries` tokens of each row stand, (batch, queries) int32: real ones count on from `length`.

    Padded places share the position of the last real token before them, or 0; nothing of theirs is kept.
    """
    if padding_mask is None:
        steps = ops.arange(queries, dtype="int32")[None, :]
        return cache["length"][:, None] + steps
    ranks = ops.cumsum(ops.cast(padding_mask, "int32"), axis=1) - 1
    return ops.maximum(cache["length"][:, None] + ranks, 0)


def update(
    cache: Cache, key: Tensor, value: Tensor, positions: Tensor, padding_mask: Tensor | None, *, ring: bool
) -> tuple[Cache, Tensor, Tensor, Tensor]:
    """Append a chunk of tokens to each row and say what the chunk's queries should attend to.

    Args:
        cache: As `create` makes it.
        key: (batch, chunk, kv_heads, head_dim). `value` likewise.
        positions: (batch, chunk) int32, increasing along a row's real tokens.
        padding_mask: (batch, chunk), true = a token; None when all are.
        ring: The cache wraps around and keeps each row's last `capacity` tokens. Otherwise `length` + chunk may not
            pass the capacity: that raises where lengths can be read, and is the caller's to ensure in compiled code.

    Returns:
        The updated cache, and keys, values and their positions to attend to; keys and values may be `tiles.Tiles`.
    """
    if is_tiled(cache) and (key.shape[1] != 1 or padding_mask is not None or ring):
        after, *attended = update(untiled(cache), key, value, positions, padding_mask, ring=ring)
        return tiled(after), *attended
    batch, capacity = ops.shape(cache["positions"])
    chunk = ops.shape(key)[1]
    positions = ops.broadcast_to(ops.cast(positions, "int32"), (batch, chunk))
    count = ops.full((batch,), chunk, dtype="int32")
    if padding_mask is not None:
        padding_mask = ops.cast(padding_mask, "bool")
        count = ops.sum(ops.cast(padding_mask, "int32"), axis=1)
        positions = ops.where(padding_mask, positions, -1)
    new = {**_stored("key", key, cache), **_stored("value", value, cache), "positions": positions}
    length = {"length": cache["length"] + count}
    if ring and (key.shape[1] != 1 or padding_mask is not None):
        # Earlier queries of the chunk still need what later ones push out: attend to old and new, then keep the last.
        seen = {name: ops.concatenate([cache[name], new[name]], axis=_SLOT_AXIS[name]) for name in new}
        kept = _newest(seen, length["length"], capacity)
    else:
        _check_room(cache, count, ring)
        if padding_mask is None:
            start = ops.max(cache["length"])
            start = start % capacity if ring else start
            kept = {name: _write(name, cache[name], new[name], start) for name in new}
        else:
            kept = _fill(cache, new, padding_mask, count)
        seen = kept
    return kept | length, _restored("key", seen), _restored("value", seen), seen["positions"]


def _stored(name: str, x: Tensor, cache: Cache) -> Cache:
    """(batch, length, kv_heads, head_dim) as the cache has it."""
    if f"{name}_scale" not in cache:
        return {name: ops.cast(to_slots(name, x), cache[name].dtype)}
    x = ops.cast(x, "float32")
    scale = ops.max(ops.abs(x), axis=-1, keepdims=True) / 127.0
    units = ops.cast(ops.round(x / ops.where(scale > 0, scale, 1.0)), "int8")
    return {name: to_slots(name, units), f"{name}_scale": to_slots(name, scale)}


def _restored(name: str, seen: Cache) -> Any:
    """The inverse of `_stored`; tiles as tiles."""
    x = seen[name]
    if tiles.is_tiled(x):
        return tiles.Tiles(name, x)
    if f"{name}_scale" in seen:
        x = ops.cast(x, "float32") * seen[f"{name}_scale"]
    return from_slots(name, x)


def to_slots(name: str, x: Tensor) -> Tensor:
    """(batch, length, kv_heads, head_dim) as the array of this name is laid out."""
    return ops.transpose(x, (0, 2, 1, 3) if _SLOT_AXIS[name] == 2 else (0, 2, 3, 1))


def from_slots(name: str, x: Tensor) -> Tensor:
    """The inverse of `to_slots`; costs nothing, where what follows turns it back."""
    return ops.transpose(x, (0, 2, 1, 3) if _SLOT_AXIS[name] == 2 else (0, 3, 1, 2))


def slots(name: str, x: Tensor) -> int:
    """How many slots the array of this name has."""
    return x.shape[_SLOT_AXIS[name]]


def _newest(seen: Cache, length: Tensor, capacity: int) -> Cache:
    """The last `capacity` tokens of each row, in the slots of a ring where steps overwrite the oldest."""
    newest = ops.argsort(seen["positions"], axis=1)[:, -capacity:]  # empty slots first
    places = (ops.max(length) - capacity + ops.arange(capacity, dtype="int32")) % capacity
    newest = ops.take(newest, ops.argsort(places), axis=1)
    return {name: _pick(name, array, newest) for name, array in seen.items()}


def _fill(cache: Cache, new: Cache, padding_mask: Tensor, count: Tensor) -> Cache:
    """Append each row's real tokens: every slot takes the token that belongs there now that rows may end elsewhere."""
    chunk, capacity = ops.shape(padding_mask)[1], ops.shape(cache["positions"])[1]
    padded = ops.cast(ops.logical_not(padding_mask), "int32")
    order = ops.argsort(padded * chunk + ops.arange(chunk, dtype="int32"), axis=1)  # real tokens first, in order
    before, after = cache["length"], cache["length"] + count
    # Number of the token that belongs in each slot, within its row; negative in front of the row, (batch, capacity).
    number = ops.arange(capacity, dtype="int32")[None, :] - (ops.max(after) - after)[:, None]
    there = ops.logical_and(number >= 0, number < after[:, None])
    old = ops.clip(number + (ops.max(before) - before)[:, None], 0, capacity - 1)
    source = ops.take_along_axis(order, ops.clip(number - before[:, None], 0, chunk - 1), axis=1)
    is_new = number >= before[:, None]
    filled = {
        name: ops.where(_along(name, is_new), _pick(name, new[name], source), _pick(name, cache[name], old))
        for name in new
    }
    return {**filled, "positions": ops.where(there, filled["positions"], -1)}


def _along(name: str, places: Tensor) -> Tensor:
    """(batch, slots), to broadcast with the array of this name."""
    if name == "positions":
        return places
    return places[:, None, :, None] if _SLOT_AXIS[name] == 2 else places[:, None, None, :]


def _pick(name: str, array: Tensor, places: Tensor) -> Tensor:
    """The array with other slots of each row, (batch, picked)."""
    return ops.take_along_axis(array, _along(name, places), axis=_SLOT_AXIS[name])


def _write(name: str, into: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """`into`, with `new` in its slots from `start` on."""
    axis = _SLOT_AXIS[name]
    if NAME == "torch":  # whose slices want numbers, not tensors
        import torch

        places = start + torch.arange(new.shape[axis], device=into.device)
        put = into.index_copy_ if _in_place else into.index_copy
        return put(axis, places, new)
    if tiles.is_tiled(into):
        return tiles.write(name, into, new, start)
    flat = squeezed(into)
    places = [0] * len(flat.shape)
    places[axis - len(into.shape)] = start
    return ops.reshape(ops.slice_update(flat, tuple(places), squeezed(new)), ops.shape(into))


def squeezed(array: Tensor) -> Tensor:
    """An array of a cache as XLA's products have it: batch and heads as one axis where one of them is 1, tiles flat.

    What a loop carries in this form is overwritten in place. In the other it is copied, several times in each step: the
    product wants the short form of what was written, and XLA makes that from a copy of its own. On torch it stays as it is.
    """
    if tiles.is_tiled(array):
        return tiles.flat(array)
    if NAME == "torch" or len(array.shape) < 4 or 1 not in array.shape[:2]:
        return array
    return ops.reshape(array, (array.shape[0] * array.shape[1], *array.shape[2:]))


_in_place = False


@contextmanager
def in_place() -> Iterator[None]:
    """Inside, torch's caches are overwritten rather than copied; XLA does so by itself in a loop."""
    global _in_place
    before, _in_place = _in_place, True
    try:
        yield
    finally:
        _in_place = before


def _check_room(cache: Cache, count: Tensor, ring: bool) -> None:
    """Raise ValueError for tokens past the capacity, where the lengths can be read without cost."""
    length, more = concrete(cache["length"]), concrete(count)
    if ring or length is None or more is None:
        return
    capacity, needed = cache["positions"].shape[1], int((length + more).max(initial=0))
    if needed > capacity:
        raise ValueError(f"The cache has a capacity of {capacity} tokens; {needed} are needed. Make a larger one.")


def gather_rows(cache: Cache, rows: Tensor) -> Cache:
    """The cache with its batch rows picked anew, as beam search does. `rows`: (new_batch,) int."""
    axes = {name: tiles.rows_axis(name) if tiles.is_tiled(array) else 0 for name, array in cache.items()}
    return {name: ops.take(array, rows, axis=axes[name]) for name, array in cache.items()}


def drop_last(cache: Cache, count: Tensor) -> Cache:
    """The cache without the last tokens of each row, equally many of all. `count`: () int32.

    A ring must have had as many slots to spare: what its window still shows must not have been overwritten.
    """
    length = cache["length"] - count
    dropped = cache["positions"] >= length[:, None]
    return {**cache, "length": length, "positions": ops.where(dropped, -1, cache["positions"])}


def lengthened(array: Tensor, more: int, axis: int, fill: int = 0) -> Tensor:
    """An array with so many slots more behind it along one axis. (`ops.pad` is slow, and writes twice what it copies.)"""
    shape = list(array.shape)
    shape[axis] = more
    return ops.concatenate([array, ops.full(shape, fill, keras.backend.standardize_dtype(array.dtype))], axis)


def grow(cache: Cache, capacity: int, *, ring: bool = False, in_tiles: bool = False) -> Cache:
    """The cache with room for `capacity` tokens. A ring is laid out anew, for it may have come round.

    Args:
        in_tiles: It may be laid out in tiles: one token of each row is read at a time from here on.
    """
    more = capacity - cache["positions"].shape[1]
    if in_tiles and not ring and _tiles_pay(cache, capacity):
        if not is_tiled(cache):
            short = -cache["positions"].shape[1] % tiles.WIDTH
            return grow(tiled(cache | _lengthened(cache, short)), capacity, in_tiles=True)
    elif is_tiled(cache):
        cache = untiled(cache)
    if more <= 0:
        return cache
    grown = _lengthened(cache, more)
    if ring:
        grown = _newest(grown, cache["length"], capacity)
    return {**grown, "length": cache["length"]}


def _lengthened(cache: Cache, more: int) -> Cache:
    """The arrays of the cache with so many empty slots behind the others."""
    grown = {}
    for name, array in cache.items():
        if tiles.is_tiled(array):
            axis, count = tiles.lengthened_by(name, more)
            grown[name] = lengthened(array, count, axis)
        elif name != "length":
            grown[name] = lengthened(array, more, _SLOT_AXIS[name], -1 if name == "positions" else 0)
    return grown


def is_tiled(cache: Cache) -> bool:
    """Whether its keys are in tiles; then values are where their width allows it."""
    return tiles.is_tiled(cache["key"])


def tiled(cache: Cache) -> Cache:
    """The cache in tiles; its capacity must be a multiple of a tile's width."""
    value = cache["value"] if cache["value"].shape[3] % tiles.WIDTH else tiles.tiled("value", cache["value"])
    return {**cache, "key": tiles.tiled("key", cache["key"]), "value": value}


def untiled(cache: Cache) -> Cache:
    """The inverse of `tiled`."""
    return {name: tiles.untiled(name, array) if tiles.is_tiled(array) else array for name, array in cache.items()}


def _tiles_pay(cache: Cache, capacity: int) -> bool:
    """Whether products read tiles sooner: of many small matrices, which XLA's CPU multiplies one by one."""
    batch, heads, *_ = cache["value"].shape
    head_dim = math.prod(cache["value"].shape[2:]) // cache["positions"].shape[1]
    return (
        NAME != "torch"
        and device() == "cpu"
        and batch > 1  # one row's are its own: the cores share what Eigen does for it
        and batch * heads * head_dim * capacity >= tiles.LEAST
        and keras.backend.standardize_dtype(cache["key"].dtype) == "float32"
        and capacity % tiles.WIDTH == 0
        and capacity <= tiles.MOST
        and keras.distribution.distribution() is None
    )
