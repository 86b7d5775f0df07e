"""The key/value cache: a dict of fixed-shape arrays that a layer takes and returns updated.

    key, value   (batch, capacity, kv_heads, head_dim)
    positions    (batch, capacity) int32, where each slot's token stands in its row; -1 marks an empty slot
    length       (batch,) int32, how many tokens each row has seen

Only a row's real tokens are kept, in order: padding on either side leaves no trace, so a ragged batch is cached as its
rows would be alone. With a window the cache is a ring of `window` slots.
"""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.ops.backend import Tensor, concrete

Cache = dict[str, Tensor]


def create(batch: int, capacity: int, num_key_value_heads: int, head_dim: int, dtype: str = "float32") -> Cache:
    """An empty cache for `capacity` tokens a row. Its arrays take 2 * batch * capacity * kv_heads * head_dim elements."""
    shape = (batch, capacity, num_key_value_heads, head_dim)
    return {
        "key": ops.zeros(shape, dtype=dtype),
        "value": ops.zeros(shape, dtype=dtype),
        "positions": ops.full((batch, capacity), -1, dtype="int32"),
        "length": ops.zeros((batch,), dtype="int32"),
    }


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
        The updated cache, and keys, values and their positions to attend to.
    """
    chunk = key.shape[1]
    key, value = (ops.cast(x, cache["key"].dtype) for x in (key, value))
    positions = ops.cast(positions, "int32")
    batch, capacity = ops.shape(cache["positions"])
    positions = ops.broadcast_to(positions, (batch, ops.shape(key)[1]))
    count = ops.full((batch,), ops.shape(key)[1], dtype="int32")
    if padding_mask is not None:
        padding_mask = ops.cast(padding_mask, "bool")
        count = ops.sum(ops.cast(padding_mask, "int32"), axis=1)
        positions = ops.where(padding_mask, positions, -1)
    if ring and chunk != 1:
        # Earlier queries of the chunk still need what later ones push out: attend to old and new, then keep the last.
        key, value = (ops.concatenate([cache[name], new], axis=1) for name, new in (("key", key), ("value", value)))
        positions = ops.concatenate([cache["positions"], positions], axis=1)
        order = ops.argsort(positions, axis=1)[:, -capacity:]  # the newest `capacity` tokens, empty slots first
        # Token number n of a row lives in slot n % capacity, so that single steps can overwrite the oldest.
        rank = cache["length"][:, None] + count[:, None] - capacity + ops.arange(capacity, dtype="int32")[None, :]
        order = ops.take_along_axis(order, ops.argsort(rank % capacity, axis=1), axis=1)
        kept = {
            "key": ops.take_along_axis(key, order[:, :, None, None], axis=1),
            "value": ops.take_along_axis(value, order[:, :, None, None], axis=1),
            "positions": ops.take_along_axis(positions, order, axis=1),
            "length": cache["length"] + count,
        }
        return kept, key, value, positions
    _check_room(cache, count, ring)
    if padding_mask is not None and not ring:
        return _fill(cache, key, value, positions, padding_mask, count)
    slots = cache["length"][:, None] + ops.arange(ops.shape(key)[1], dtype="int32")[None, :]  # (batch, chunk)
    slots = slots % capacity if ring else slots
    rows = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], ops.shape(slots))
    indices = ops.stack([ops.reshape(rows, (-1,)), ops.reshape(slots, (-1,))], axis=-1)  # (batch * chunk, 2)

    def write(into: Tensor, new: Tensor) -> Tensor:
        return keras.ops.scatter_update(into, indices, ops.reshape(new, (-1, *new.shape[2:])))

    updated = {
        "key": write(cache["key"], key),
        "value": write(cache["value"], value),
        "positions": write(cache["positions"], positions),
        "length": cache["length"] + count,
    }
    return updated, updated["key"], updated["value"], updated["positions"]


def _fill(cache: Cache, key: Tensor, value: Tensor, positions: Tensor, padding_mask: Tensor, count: Tensor):
    """Append each row's real tokens: every slot takes the token that belongs there, or keeps its own."""
    chunk = ops.shape(key)[1]
    padded = ops.cast(ops.logical_not(padding_mask), "int32")
    order = ops.argsort(padded * chunk + ops.arange(chunk, dtype="int32"), axis=1)  # real tokens first, in order
    rank = ops.arange(ops.shape(cache["positions"])[1], dtype="int32")[None] - cache["length"][:, None]
    takes = ops.logical_and(rank >= 0, rank < count[:, None])  # (batch, capacity)
    source = ops.take_along_axis(order, ops.clip(rank, 0, chunk - 1), axis=1)

    def fill(old: Tensor, new: Tensor) -> Tensor:
        return ops.where(takes[:, :, None, None], ops.take_along_axis(new, source[:, :, None, None], axis=1), old)

    filled = {
        "key": fill(cache["key"], key),
        "value": fill(cache["value"], value),
        "positions": ops.where(takes, ops.take_along_axis(positions, source, axis=1), cache["positions"]),
        "length": cache["length"] + count,
    }
    return filled, filled["key"], filled["value"], filled["positions"]


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
    return {name: ops.take(array, rows, axis=0) for name, array in cache.items()}
