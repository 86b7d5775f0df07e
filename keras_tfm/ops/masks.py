"""Who may attend to whom, as small boolean tensors that broadcast to (batch, heads, queries, keys).

True means "may attend". Nothing here is built where a kernel can be told the same thing in words.
"""

from __future__ import annotations

from keras import ops

from keras_tfm.ops.backend import Tensor


def positions(length: int | Tensor) -> Tensor:
    """Indices 0 … length-1 as (1, length) int32, the default positions of a sequence."""
    return ops.expand_dims(ops.arange(length, dtype="int32"), 0)


def causal(query_positions: Tensor, key_positions: Tensor) -> Tensor:
    """A query sees the keys up to and including its own position.

    Takes (batch or 1, queries) and (batch or 1, keys); gives (batch or 1, 1, queries, keys), boolean.
    """
    return key_positions[:, None, None, :] <= query_positions[:, None, :, None]


def window(
    query_positions: Tensor, key_positions: Tensor, size: int, *, is_causal: bool, global_tokens: int = 0
) -> Tensor:
    """A sliding window over positions, shaped as `causal`; so many first positions see, and are seen by, all.

    Causal: a query sees `size` keys up to and including itself (the part that looks ahead is `causal`'s to remove).
    Bidirectional: `size` keys on either side, and itself.
    """
    distance = query_positions[:, None, :, None] - key_positions[:, None, None, :]
    near = distance < size if is_causal else ops.logical_and(distance <= size, distance >= -size)
    if not global_tokens:
        return near
    first = ops.minimum(query_positions[:, None, :, None], key_positions[:, None, None, :])
    return ops.logical_or(near, first < global_tokens)


def segments(query_segment_ids: Tensor, key_segment_ids: Tensor) -> Tensor:
    """Packed sequences: a query sees keys of its own segment. (batch, queries), (batch, keys) -> (batch, 1, q, k)."""
    return ops.equal(query_segment_ids[:, None, :, None], key_segment_ids[:, None, None, :])


def padding(padding_mask: Tensor) -> Tensor:
    """(batch, keys), true = a token, to (batch, 1, 1, keys)."""
    return ops.cast(padding_mask, "bool")[:, None, None, :]


def explicit(attention_mask: Tensor) -> Tensor:
    """(batch, queries, keys) or (batch, heads, queries, keys) to the latter, boolean."""
    mask = ops.cast(attention_mask, "bool")
    return mask[:, None] if len(mask.shape) == 3 else mask


def combine(*masks: Tensor | None) -> Tensor | None:
    """The logical and of the masks that are given; None if none is."""
    result = None
    for mask in masks:
        if mask is not None:
            result = mask if result is None else ops.logical_and(result, mask)
    return result
