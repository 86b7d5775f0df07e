"""Attention as two batched matrix products around a softmax: every option, on every backend.

The arrangement is (batch, heads, length, head_dim), so that both products are batched matrix products over contiguous
operands; query heads that share a key/value head are folded into the query length, so keys are never repeated.
"""

from __future__ import annotations

from keras import ops

from keras_tfm.ops import random, tiles
from keras_tfm.ops.backend import Tensor
from keras_tfm.ops.kernels.request import Request


def refuses(request: Request) -> str | None:
    """Nothing is refused."""
    return None


def attend(request: Request) -> tuple[Tensor, Tensor]:
    """As `reference.attend`; of rows without keys the weights are zero only where they were asked for."""
    batch, queries, heads, head_dim = ops.shape(request.query)
    keys = request.key.shape[1] if isinstance(request.key, tiles.Tiles) else ops.shape(request.key)[1]
    groups, kv_heads = request.groups, request.num_key_value_heads
    dtype = request.query.dtype
    wide = "float64" if str(dtype).endswith("float64") else "float32"

    # The scale goes to the smaller factor: queries have head_dim columns, logits have `keys`.
    query = ops.transpose(
        request.query * ops.cast(request.scale, dtype), (0, 2, 1, 3)
    )  # (batch, heads, queries, head_dim)
    query = ops.reshape(query, (batch, kv_heads, groups * queries, head_dim)) if groups > 1 else query
    logits = ops.cast(_product(query, request.key, (0, 2, 3, 1)), wide)  # (batch, kv_heads, groups * queries, keys)
    logits = ops.reshape(logits, (batch, heads, queries, keys)) if groups > 1 else logits
    if request.softcap is not None:
        logits = request.softcap * ops.tanh(logits / request.softcap)
    if request.bias is not None:
        logits = logits + ops.cast(request.bias, wide)
    mask = request.mask()
    if mask is not None:
        logits = logits + ops.where(mask, ops.cast(0.0, wide), ops.cast(-1e30, wide))
    if request.sinks is not None:
        sink = ops.broadcast_to(
            ops.reshape(ops.cast(request.sinks, wide), (1, heads, 1, 1)), (batch, heads, queries, 1)
        )
        weights = ops.softmax(ops.concatenate([logits, sink], axis=-1), axis=-1)[..., :-1]
    else:
        weights = ops.softmax(logits, axis=-1)
    alive = None
    if request.may_have_empty_rows and mask is not None:
        alive = ops.any(mask, axis=-1, keepdims=True)  # (batch, 1 or heads, 1 or queries, 1)
        if request.return_scores:
            weights, alive = weights * ops.cast(alive, wide), None

    dropped = random.dropout(ops.cast(weights, dtype), request.dropout, request.seed)
    dropped = ops.reshape(dropped, (batch, kv_heads, groups * queries, keys)) if groups > 1 else dropped
    output = _product(dropped, request.value, (0, 2, 1, 3))  # (batch, kv_heads, groups * queries, value_dim)
    output = ops.reshape(output, (batch, heads, queries, request.value.shape[3])) if groups > 1 else output
    if alive is not None:  # rows without keys are zeroed where that is cheapest: head_dim columns, not `keys`
        output = output * ops.cast(alive, dtype)
    return ops.transpose(output, (0, 2, 1, 3)), weights


def _product(x: Tensor, other: Tensor | tiles.Tiles, order: tuple[int, ...]) -> Tensor:
    """(batch, kv_heads, n, k) times keys or values, whose axes in this order are (batch, kv_heads, k, m)."""
    if isinstance(other, tiles.Tiles):
        return other.times(x)
    return ops.matmul(x, ops.transpose(other, order))
