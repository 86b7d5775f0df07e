"""Queries, keys and what is known of who sees whom, cut into blocks; which pairs of blocks must be visited."""

from __future__ import annotations

from typing import NamedTuple

from keras import ops

from keras_tfm.ops import masks
from keras_tfm.ops.backend import Tensor, static_shape
from keras_tfm.ops.kernels.request import Request, allowed
from keras_tfm.ops.loops import block

FAR = 2**30  # beyond every position and segment


class Settings(NamedTuple):
    """What does not depend on the data.

    Attributes:
        queries, keys: Tokens of a block.
        kv_heads, groups: Heads of keys, and of queries for each of them.
        softcap, dropout, causal, window, global_tokens: As of `ops.attention`.
    """

    queries: int
    keys: int
    kv_heads: int
    groups: int
    softcap: float | None
    dropout: float
    causal: bool
    window: int | None
    global_tokens: int


def blocked(x: Tensor, size: int) -> Tensor:
    """(rows, length, ...) to (blocks, rows, size, ...); the last block is filled up with the last token."""
    rows, length = ops.shape(x)[:2]
    blocks = (length + size - 1) // size
    if static_shape(x)[1] is None or length % size:
        x = ops.take(x, ops.minimum(ops.arange(blocks * size, dtype="int32"), length - 1), axis=1)
    x = ops.reshape(x, (rows, blocks, size, *x.shape[2:]))
    return ops.transpose(x, (1, 0, *range(2, len(x.shape))))


def query_blocks(s: Settings, query: Tensor) -> Tensor:
    """(batch, length, heads, dim) to (blocks, batch, kv_heads, groups * size, dim)."""
    x = blocked(query, s.queries)
    blocks, batch, size, _, dim = ops.shape(x)
    x = ops.reshape(x, (blocks, batch, size, s.kv_heads, s.groups, dim))
    return ops.reshape(ops.transpose(x, (0, 1, 3, 4, 2, 5)), (blocks, batch, s.kv_heads, s.groups * size, dim))


def from_query_blocks(s: Settings, x: Tensor, length: int | Tensor) -> Tensor:
    """The inverse of `query_blocks`."""
    blocks, batch, _, _, dim = ops.shape(x)
    x = ops.transpose(ops.reshape(x, (blocks, batch, s.kv_heads, s.groups, s.queries, dim)), (1, 0, 4, 2, 3, 5))
    return ops.reshape(x, (batch, blocks * s.queries, s.kv_heads * s.groups, dim))[:, :length]


def key_blocks(s: Settings, x: Tensor) -> Tensor:
    """Keys or values, (batch, length, kv_heads, dim), to (blocks, batch, kv_heads, size, dim)."""
    return ops.transpose(blocked(x, s.keys), (0, 1, 3, 2, 4))


def from_key_blocks(x: Tensor, length: int | Tensor) -> Tensor:
    """The inverse of `key_blocks`."""
    blocks, batch, heads, size, dim = ops.shape(x)
    return ops.reshape(ops.transpose(x, (1, 0, 3, 2, 4)), (batch, blocks * size, heads, dim))[:, :length]


def arrange(s: Settings, request: Request) -> dict[str, Tensor]:
    """What is known of who sees whom, by blocks, and which blocks are visited.

    Returns:
        As `known`; "order", (query blocks, key blocks): first the key blocks that a block of queries sees all of, then
        those that it sees some of, then the others; "whole" and "count", how many come before the second and the third.
    """
    words = known(s, request)
    needed = ops.any(some(s, words), axis=(2, 3))  # (query blocks, key blocks)
    whole = ops.logical_and(needed, ops.all(every(s, words), axis=(2, 3)))
    blocks = ops.shape(needed)[1]
    sort = ops.where(whole, 0, ops.where(needed, 1, 2))
    rank = ops.arange(blocks, dtype="int32")[None] + sort * blocks
    words["order"] = ops.cast(ops.argsort(rank, axis=1), "int32")
    words["whole"], words["count"] = (ops.sum(ops.cast(x, "int32"), axis=1) for x in (whole, needed))
    return words


def known(s: Settings, request: Request) -> dict[str, Tensor]:
    """What is known of who sees whom, by blocks.

    Returns:
        "query_positions", "key_positions" and "valid" (blocks, batch or 1, size), "query_segments" and "key_segments"
        alike, "mask" (query blocks, key blocks, batch or 1, heads or 1, queries, keys), each where there is any.
    """
    queries, keys = ops.shape(request.query)[1], ops.shape(request.key)[1]
    query_positions = masks.positions(queries) if request.query_positions is None else request.query_positions
    key_positions = masks.positions(keys) if request.key_positions is None else request.key_positions
    words = {
        "query_positions": blocked(query_positions, s.queries),
        "key_positions": blocked(key_positions, s.keys),
    }
    valid = request.valid_keys()
    if static_shape(request.key)[1] is None or keys % s.keys:
        there = ops.arange((keys + s.keys - 1) // s.keys * s.keys, dtype="int32")[None] < keys
        there = ops.transpose(ops.reshape(there, (1, -1, s.keys)), (1, 0, 2))
        words["valid"] = there if valid is None else ops.logical_and(there, blocked(valid, s.keys))
    elif valid is not None:
        words["valid"] = blocked(valid, s.keys)
    if request.query_segment_ids is not None:
        words["query_segments"] = blocked(request.query_segment_ids, s.queries)
        words["key_segments"] = blocked(request.key_segment_ids, s.keys)
    if request.attention_mask is not None:
        words["mask"] = _blocks_of_mask(s, masks.explicit(request.attention_mask), queries, keys)
    return words


def _blocks_of_mask(s: Settings, mask: Tensor, queries: int | Tensor, keys: int | Tensor) -> Tensor:
    batch, heads = ops.shape(mask)[:2]
    mask = ops.broadcast_to(mask, (batch, heads, queries, keys))
    x = blocked(ops.transpose(mask, (0, 2, 1, 3)), s.queries)  # (query blocks, batch, queries, heads, keys)
    blocks = ops.shape(x)[0]
    x = ops.transpose(ops.reshape(x, (blocks * batch * s.queries, heads, keys)), (0, 2, 1))
    x = blocked(x, s.keys)  # (key blocks, query blocks * batch * queries, keys, heads)
    x = ops.reshape(x, (-1, blocks, batch, s.queries, s.keys, heads))
    return ops.transpose(x, (1, 0, 2, 5, 3, 4))


def some(s: Settings, words: dict[str, Tensor]) -> Tensor:
    """Where some query of a block may see some key of another, or nothing known forbids it.

    Takes what `known` gives; gives (query blocks, key blocks, batch or 1, heads or 1), boolean.
    """
    at, to, valid = words["query_positions"], words["key_positions"], words.get("valid")
    low, high = _range(at, 1)
    first = ops.amin(to if valid is None else ops.where(valid, to, FAR), axis=-1)[None]  # (1, key blocks, batch or 1)
    last = ops.amax(to if valid is None else ops.where(valid, to, -FAR), axis=-1)[None]
    needed = first < FAR  # some key is valid
    if s.causal:
        needed = ops.logical_and(needed, first <= high)
    if s.window is not None:
        near = last > low - s.window if s.causal else ops.logical_and(last >= low - s.window, first <= high + s.window)
        if s.global_tokens:
            near = ops.logical_or(near, ops.logical_or(first < s.global_tokens, low < s.global_tokens))
        needed = ops.logical_and(needed, near)
    if "query_segments" in words:
        (mine, most), (theirs, end) = _range(words["query_segments"], 1), _range(words["key_segments"], 0)
        needed = ops.logical_and(needed, ops.logical_and(mine <= end, most >= theirs))
    needed = _pairs(needed, words)
    return ops.logical_and(needed, ops.any(words["mask"], axis=(4, 5))) if "mask" in words else needed


def every(s: Settings, words: dict[str, Tensor]) -> Tensor:
    """Where every query of a block is known to see every key of another, as `some`; sure of fewer than there may be."""
    (low, high), (first, last) = _range(words["query_positions"], 1), _range(words["key_positions"], 0)
    whole = ops.all(words["valid"], axis=-1)[None] if "valid" in words else ops.ones_like(first, "bool")
    if s.causal:
        whole = ops.logical_and(whole, last <= low)
    if s.window is not None:
        near = high - first <= (s.window - 1 if s.causal else s.window)
        if not s.causal:
            near = ops.logical_and(near, last - low <= s.window)
        if s.global_tokens:
            near = ops.logical_or(near, ops.logical_or(high < s.global_tokens, last < s.global_tokens))
        whole = ops.logical_and(whole, near)
    if "query_segments" in words:
        (mine, most), (theirs, end) = _range(words["query_segments"], 1), _range(words["key_segments"], 0)
        whole = ops.logical_and(whole, ops.logical_and(mine == end, most == theirs))
    whole = _pairs(whole, words)
    return ops.logical_and(whole, ops.all(words["mask"], axis=(4, 5))) if "mask" in words else whole


def _range(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The least and the most of each block, (blocks, batch or 1) with an axis of one for the other side's blocks."""
    return ops.expand_dims(ops.amin(x, axis=-1), axis), ops.expand_dims(ops.amax(x, axis=-1), axis)


def _pairs(x: Tensor, words: dict[str, Tensor]) -> Tensor:
    """(query blocks or 1, key blocks or 1, batch or 1) to (query blocks, key blocks, batch or 1, 1)."""
    blocks = ops.shape(words["query_positions"])[0], ops.shape(words["key_positions"])[0]
    return ops.broadcast_to(x, (*blocks, ops.shape(x)[2]))[..., None]


def any_mask(s: Settings, words: dict[str, Tensor]) -> bool:
    """Whether anything rules out any pair: else `mask` is None for all blocks."""
    return s.causal or s.window is not None or not words.keys().isdisjoint({"valid", "query_segments", "mask"})


def mask(s: Settings, words: dict[str, Tensor], query: int | Tensor, key: int | Tensor) -> Tensor | None:
    """Who may attend to whom in a pair of blocks, broadcastable to (batch, kv_heads, groups, queries, keys), or None."""
    part = allowed(
        query_positions=block(words["query_positions"], query),
        key_positions=block(words["key_positions"], key),
        causal=s.causal,
        window=s.window,
        global_tokens=s.global_tokens,
        valid=block(words["valid"], key) if "valid" in words else None,
        query_segment_ids=block(words["query_segments"], query) if "query_segments" in words else None,
        key_segment_ids=block(words["key_segments"], key) if "key_segments" in words else None,
    )
    part = None if part is None else part[:, None]  # (batch or 1, 1, 1, queries or 1, keys)
    if "mask" in words:
        given = block(block(words["mask"], query), key)
        batch, _, queries, keys = ops.shape(given)
        each = (s.kv_heads, s.groups) if words["mask"].shape[3] != 1 else (1, 1)
        part = masks.combine(part, ops.reshape(given, (batch, *each, queries, keys)))
    return part
