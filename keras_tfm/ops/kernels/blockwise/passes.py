"""The pass over pairs of blocks that gives outputs, and the one that gives gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_tfm.ops import random
from keras_tfm.ops.backend import NAME, Tensor
from keras_tfm.ops.kernels.blockwise import blocks
from keras_tfm.ops.kernels.blockwise.blocks import Settings
from keras_tfm.ops.loops import add, block, loop, put, stack, stacked

NOTHING = -1e30  # the logit of a key that is not seen


def attended(s: Settings, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, words: dict, state: Any) -> Tensor:
    """Attention of scaled queries, differentiable by query, key, value and sinks.

    Args:
        query: (batch, queries, heads, head_dim), times the scale.
        key, value: (batch, keys, kv_heads, ...).
        sinks: (heads,) float32, or (0,) for none.
        words: As of `blocks.arrange`.
        state: Of dropout, as of `random.state_of`.
    """
    return {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[NAME](s, query, key, value, sinks, words, state)


def _wide(x: Tensor) -> str:
    return "float64" if str(x.dtype).endswith("float64") else "float32"


def _over_keys(s: Settings, words: dict, i: Any, pair: Callable[..., tuple], carry: tuple) -> tuple:
    """carry = pair(t, carry, masked) for the places t in "order" of the key blocks that block i of queries visits.

    Blocks that all of its queries see come first, and are spared the making of a mask.
    """
    whole = block(words["whole"], i)
    carry = loop(whole, lambda t, carry: pair(t, carry, False), carry)
    if not blocks.any_mask(s, words):
        return carry
    return loop(block(words["count"], i) - whole, lambda t, carry: pair(whole + t, carry, True), carry)


def _logits(
    s: Settings, query: Tensor, key: Tensor, words: dict, i: Any, j: Any, masked: bool
) -> tuple[Tensor, Tensor]:
    """Of a pair of blocks, (batch, kv_heads, groups * queries, keys): masked, and as they were before."""
    raw = ops.cast(ops.matmul(query, ops.swapaxes(key, -1, -2)), _wide(query))
    if s.softcap is not None:
        raw = s.softcap * ops.tanh(raw / s.softcap)
    mask = blocks.mask(s, words, i, j) if masked else None
    if mask is None:
        return raw, raw
    batch, heads, rows, keys = ops.shape(raw)
    logits = ops.reshape(raw, (batch, heads, s.groups, s.queries, keys))
    logits = ops.where(mask, logits, ops.cast(NOTHING, raw.dtype))
    return ops.reshape(logits, (batch, heads, rows, keys)), raw


def _sinks(s: Settings, sinks: Tensor) -> Tensor:
    """(heads,) as they stand beside logits: (kv_heads, groups * queries, 1)."""
    return ops.reshape(ops.repeat(sinks, s.queries), (s.kv_heads, s.groups * s.queries, 1))


def forward(s: Settings, query: Tensor, key: Tensor, value: Tensor, sinks: Tensor, words: dict, state: Any):
    """Outputs and log-normalizers, by blocks: (blocks, batch, kv_heads, groups * queries, value_dim or 1).

    The normalizer of a query that sees nothing is so high that all its weights are 0.
    """
    query, key, value = blocks.query_blocks(s, query), blocks.key_blocks(s, key), blocks.key_blocks(s, value)
    order, dtype, wide = words["order"], value.dtype, _wide(query)
    number = ops.shape(query)[0]
    # Of a block: a number for each query, and a vector of the values' width.
    zero = ops.zeros_like(query[0][..., :1], dtype=wide)
    zeros = ops.matmul(zero, ops.zeros_like(value[0][..., :1, :], dtype=wide))

    def rows(i, carry):
        mine = block(query, i)

        def pair(t, carry, masked):
            high, total, found = carry
            j = block(block(order, i), t)
            logits, _ = _logits(s, mine, block(key, j), words, i, j, masked)
            higher = ops.maximum(high, ops.max(logits, axis=-1, keepdims=True))
            weights = ops.exp(logits - higher)
            shrink = ops.exp(high - higher)
            total = total * shrink + ops.sum(weights, axis=-1, keepdims=True)
            if s.dropout:
                weights = random.dropout_again(weights, s.dropout, state, i * order.shape[1] + j)
            found = found * shrink + ops.cast(ops.matmul(ops.cast(weights, dtype), block(value, j)), wide)
            return higher, total, found

        high, total, found = _over_keys(s, words, i, pair, (zero + NOTHING, zero, zeros))
        seen = ops.logical_not(high <= 0.5 * NOTHING)  # so that NaN stays NaN
        normalizer = high + ops.log(ops.where(seen, total, 1.0))
        if sinks.shape[0]:
            sink = ops.cast(_sinks(s, sinks), wide)
            whole = ops.logaddexp(ops.where(seen, normalizer, sink), sink)
            whole = ops.where(seen, whole, sink)
            found, normalizer = found * ops.exp(high - whole), whole
        else:
            found = found / ops.where(seen, total, 1.0)
        found = ops.where(seen, found, 0.0)
        return put(carry[0], i, found), put(carry[1], i, ops.where(seen, normalizer, -NOTHING))

    outputs, normalizers = loop(number, rows, (stack(number, zeros, dtype), stack(number, zero, wide)))
    return stacked(outputs), stacked(normalizers)


def backward(s: Settings, arguments: tuple, saved: Any, by: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by query, key, value and sinks.

    Args:
        arguments: What `forward` took.
        saved: What `forward` gave.
        by: The gradient by the output, (batch, queries, heads, value_dim).
    """
    query, key, value, sinks, words, state = arguments
    lengths = ops.shape(query)[1], ops.shape(key)[1]
    query, by = blocks.query_blocks(s, query), blocks.query_blocks(s, _without_copies(s, by, lengths[0]))
    key, value = blocks.key_blocks(s, key), blocks.key_blocks(s, value)
    outputs, normalizers = saved
    order, dtype, wide = words["order"], query.dtype, _wide(query)

    def rows(i, carry):
        mine, slope, normalizer = (block(x, i) for x in (query, by, normalizers))
        along = ops.sum(ops.cast(slope, wide) * ops.cast(block(outputs, i), wide), axis=-1, keepdims=True)

        def pair(t, carry, masked):
            by_query, by_key, by_value = carry
            j = block(block(order, i), t)
            logits, raw = _logits(s, mine, block(key, j), words, i, j, masked)
            weights = ops.exp(logits - normalizer)
            by_weights = ops.cast(ops.matmul(slope, ops.swapaxes(block(value, j), -1, -2)), wide)
            kept = weights
            if s.dropout:
                part = i * order.shape[1] + j
                kept = random.dropout_again(weights, s.dropout, state, part)
                by_weights = random.dropout_again(by_weights, s.dropout, state, part)
            by_logits = weights * (by_weights - along)
            if s.softcap is not None:
                by_logits = by_logits * (1.0 - (raw / s.softcap) ** 2)
            by_logits = ops.cast(by_logits, dtype)
            by_value = add(by_value, j, ops.matmul(ops.swapaxes(ops.cast(kept, dtype), -1, -2), slope))
            by_key = add(by_key, j, ops.matmul(ops.swapaxes(by_logits, -1, -2), mine))
            return by_query + ops.cast(ops.matmul(by_logits, block(key, j)), wide), by_key, by_value

        by_query, *others = _over_keys(s, words, i, pair, (ops.zeros_like(mine, dtype=wide), *carry[1:3]))
        by_sinks = carry[3]
        if sinks.shape[0]:
            lost = ops.exp(ops.cast(_sinks(s, sinks), wide) - normalizer) * along  # of queries that see nothing: 0
            by_sinks = by_sinks - ops.reshape(
                ops.sum(ops.reshape(lost, (-1, s.kv_heads * s.groups, s.queries)), axis=(0, 2)), (-1,)
            )
        return put(carry[0], i, by_query), *others, by_sinks

    queries, keys = ops.shape(query)[0], ops.shape(key)[0]
    carry = (stack(queries, query[0], wide), stack(keys, key[0], wide, True), stack(keys, value[0], wide, True))
    by_query, by_key, by_value, by_sinks = loop(queries, rows, (*carry, ops.zeros(sinks.shape, wide)))
    return (
        ops.cast(blocks.from_query_blocks(s, stacked(by_query), lengths[0]), dtype),
        ops.cast(blocks.from_key_blocks(stacked(by_key), lengths[1]), key.dtype),
        ops.cast(blocks.from_key_blocks(stacked(by_value), lengths[1]), value.dtype),
        ops.cast(by_sinks, sinks.dtype),
    )


def _without_copies(s: Settings, by: Tensor, length: Any) -> Tensor:
    """The gradient, with zeros where the last block is filled up with copies of the last query."""
    if isinstance(length, int) and length % s.queries == 0:
        return by
    zeros = ops.zeros_like(by[:, :1])
    more = -length % s.queries
    return ops.concatenate([by, ops.repeat(zeros, more, axis=1)], axis=1)


def _jax(s, query, key, value, sinks, words, state):
    return _jax_rule()(s, query, key, value, sinks, words, state)


@functools.cache
def _jax_rule():
    import jax

    def run(s, query, key, value, sinks, words, state):
        saved = forward(s, query, key, value, sinks, words, state)
        return blocks.from_query_blocks(s, saved[0], query.shape[1]), saved

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def rule(s, *arguments):
        return run(s, *arguments)[0]

    def keep(s, *arguments):
        output, saved = run(s, *arguments)
        return output, (arguments, saved)

    def back(s, kept, by):
        arguments, saved = kept
        return *backward(s, arguments, saved, by), None, None

    rule.defvjp(keep, back)
    return rule


def _tensorflow(s, query, key, value, sinks, words, state):
    import tensorflow as tf

    @tf.custom_gradient
    def rule(query, key, value, sinks):
        saved = forward(s, query, key, value, sinks, words, state)

        def back(by):
            return backward(s, (query, key, value, sinks, words, state), saved, by)

        output = blocks.from_query_blocks(s, saved[0], tf.shape(query)[1])
        return tf.ensure_shape(output, [*query.shape[:3], value.shape[3]]), back

    return rule(*(tf.convert_to_tensor(x) for x in (query, key, value, sinks)))


def _torch(s, query, key, value, sinks, words, state):
    return _torch_rule().apply(s, query, key, value, sinks, words, state)


@functools.cache
def _torch_rule():
    import torch

    class Blockwise(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, query, key, value, sinks, words, state):
            saved = forward(s, query, key, value, sinks, words, state)
            ctx.save_for_backward(query, key, value, sinks, *saved)
            ctx.rest = s, words, state
            return blocks.from_query_blocks(s, saved[0], query.shape[1])

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, by):
            (s, words, state), (*arrays, outputs, normalizers) = ctx.rest, ctx.saved_tensors
            return None, *backward(s, (*arrays, words, state), (outputs, normalizers), by), None, None

    return Blockwise
