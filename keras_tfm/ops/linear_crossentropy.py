"""Cross-entropy of logits that are never held as a whole: a projection and the loss behind it, in chunks of tokens.

A language model's logits are its largest tensor by far: 4096 tokens of a vocabulary of 50,257 take 0.8 GB, and their
gradient as much again. Here a chunk of tokens is projected, gives its losses and at once its part of the gradients, and is
forgotten: the memory of one chunk, in the three products that the whole would take (Wijmans et al. 2024; Hsu et al. 2024).
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

from keras import ops

from keras_tfm.ops.backend import NAME, Tensor
from keras_tfm.ops.shards import by_device

CHUNK = 1 << 23  # logits that are held at a time


class Settings(NamedTuple):
    """What does not depend on the data.

    Attributes:
        scale, softcap: Of the logits, as of `TokenEmbedding`.
        label_smoothing, z_loss: As of `losses.token_crossentropy`.
        chunk: Tokens at a time.
        transposed: The table is (width, vocabulary).
        biased: The bias is not just zeros.
    """

    scale: float
    softcap: float | None
    label_smoothing: float
    z_loss: float
    chunk: int
    transposed: bool
    biased: bool


def linear_crossentropy(
    hidden: Tensor,
    table: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
    transposed: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    chunk: int | None = None,
    differentiable: bool = True,
) -> tuple[Tensor, Tensor]:
    """`token_crossentropy` of the logits `hidden @ table.T + bias`, summed, without the logits.

    Tokens without a label are left out before anything is multiplied.

    Args:
        hidden: (..., width), float.
        table: (vocabulary, width), float; or (width, vocabulary) where `transposed`.
        labels: (...) int in [0, vocabulary), or negative for none.
        weights: (...) float, of the tokens; no gradient flows into them.
        bias: (vocabulary,) float.
        scale, softcap: What the logits are multiplied with, and then capped at, softly.
        label_smoothing, z_loss: As of `token_crossentropy`.
        chunk: Tokens at a time, on each device that shares the batch. Default: as many as give 8 M logits.
        differentiable: False spares the gradients' cost where none are taken.

    Returns:
        The sum of weights times losses, and the sum of weights of the labelled tokens: scalars, float32. Gradients flow
        into hidden, table and bias; they are computed along with the value, so they cannot be differentiated again.
    """
    width, vocabulary = hidden.shape[-1], table.shape[1 if transposed else 0]
    chunk = chunk or max(64, CHUNK // vocabulary // 64 * 64)
    scale = 1.0 if scale is None else scale
    settings = Settings(scale, softcap, label_smoothing, z_loss, chunk, transposed, bias is not None)
    flat, labels = ops.reshape(hidden, (-1, width)), ops.reshape(ops.cast(labels, "int32"), (-1,))
    counted = ops.cast(labels >= 0, "float32")
    weights = counted if weights is None else counted * ops.reshape(ops.cast(weights, "float32"), (-1,))
    bias = ops.zeros((vocabulary,), dtype="float32") if bias is None else bias
    total = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[NAME](
        settings, flat, table, bias, labels, ops.stop_gradient(weights), differentiable
    )
    return total, ops.sum(weights)


def _order(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labelled tokens first: indices, and how many these are."""
    unlabelled = ops.cast(labels < 0, "int32")
    return ops.argsort(unlabelled, axis=0), ops.shape(labels)[0] - ops.sum(unlabelled)


def _chunk(s: Settings, hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor, weights: Tensor):
    """The weighted losses of some tokens, summed, and the gradient of that sum by hidden @ table, float32."""
    logits = ops.cast(ops.matmul(hidden, table if s.transposed else ops.transpose(table)), "float32")
    if s.biased:
        logits = logits + ops.cast(bias, "float32")
    slope: Any = s.scale
    if s.scale != 1.0:
        logits = logits * s.scale
    if s.softcap is not None:
        bent = ops.tanh(logits / s.softcap)
        logits, slope = s.softcap * bent, s.scale * (1.0 - bent * bent)
    safe = ops.maximum(labels, 0)[:, None]
    if NAME == "tensorflow" and not s.label_smoothing and not s.z_loss:
        return _tensorflow_fused(logits, safe, weights, slope)
    normalizer = ops.logsumexp(logits, axis=-1, keepdims=True)
    losses = normalizer - (1.0 - s.label_smoothing) * ops.take_along_axis(logits, safe, axis=-1)
    factor: Any = 1.0
    if s.label_smoothing:
        losses = losses - s.label_smoothing * ops.mean(logits, axis=-1, keepdims=True)
    if s.z_loss:
        losses = losses + s.z_loss * normalizer * normalizer
        factor = 1.0 + 2.0 * s.z_loss * normalizer
    total = ops.sum(losses[:, 0] * weights)
    difference = _torch_difference if NAME == "torch" else _difference
    return total, difference(s, logits, normalizer, factor, safe, weights[:, None] * slope)


def _tensorflow_fused(logits: Any, labels: Any, weights: Any, slope: Any) -> tuple[Any, Any]:
    """The same by a kernel that holds one array beside the logits."""
    import tensorflow as tf

    losses, gradient = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=labels[:, 0])
    return tf.reduce_sum(losses * weights), gradient * (weights[:, None] * slope)


def _difference(s: Settings, logits: Tensor, normalizer: Tensor, factor: Any, labels: Tensor, by: Tensor) -> Tensor:
    """(factor * softmax - target) * by, in which the target is smoothed."""
    softmax = ops.exp(logits - normalizer) * factor
    ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
    low = s.label_smoothing / logits.shape[-1]
    return (softmax - ops.where(ids == labels, 1.0 - s.label_smoothing + low, low)) * by


def _torch_difference(s: Settings, logits: Any, normalizer: Any, factor: Any, labels: Any, by: Any) -> Any:
    """The same in the place of the logits, which are not needed any more."""
    softmax = logits.sub_(normalizer).exp_().mul_(factor)
    if s.label_smoothing:
        softmax.sub_(s.label_smoothing / logits.shape[-1])
    softmax.scatter_add_(1, labels.long(), softmax.new_full(labels.shape, s.label_smoothing - 1.0))
    return softmax.mul_(by)


def _back(s: Settings, gradient: Tensor, hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From the gradient by the products to those by hidden, table and bias; the latter two in float32."""
    by_bias = ops.sum(gradient, axis=0)
    gradient = ops.cast(gradient, hidden.dtype)
    by_hidden = ops.matmul(gradient, ops.transpose(table) if s.transposed else table)
    left, right = (hidden, gradient) if s.transposed else (gradient, hidden)
    return by_hidden, ops.cast(ops.matmul(ops.transpose(left), right), "float32"), by_bias


def _padded(s: Settings, count: int, *arrays: Tensor) -> tuple[int, list[Tensor]]:
    """The arrays with rows of zeros behind them, so that chunks come out even; and a chunk's rows."""
    chunk = min(s.chunk, max(count, 1))
    more = -count % chunk
    return chunk, [ops.pad(x, [(0, more)] + [(0, 0)] * (len(x.shape) - 1)) if more else x for x in arrays]


# JAX ------------------------------------------------------------------------------------------------------------------


def _jax(s: Settings, hidden, table, bias, labels, weights, differentiable):
    total = _jax_rule()(s, hidden, table, bias, labels, weights)
    return total if differentiable else ops.stop_gradient(total)


@functools.cache
def _jax_rule():
    import jax

    def of_device(s: Settings, hidden, labels, weights, table, bias, differentiate: bool):
        """The sum, and its gradients by hidden, table and bias, of the rows that are given."""
        lax, count = jax.lax, hidden.shape[0]
        order, used = _order(labels)
        ordered = [ops.take(x, order, axis=0) for x in (hidden, labels, weights)]
        chunk, rows = _padded(s, count, *ordered)

        def step(i, carry):
            part = [lax.dynamic_slice_in_dim(x, i * chunk, chunk) for x in rows]
            total, gradient = _chunk(s, part[0], table, bias, part[1], part[2])
            if not differentiate:
                return (carry[0] + total,)
            by_hidden, by_table, by_bias = _back(s, gradient, part[0], table)
            by_hidden = lax.dynamic_update_slice_in_dim(carry[1], by_hidden, i * chunk, 0)
            return carry[0] + total, by_hidden, carry[2] + by_table, carry[3] + by_bias

        start: tuple = (ops.zeros(()),)
        if differentiate:
            start = (*start, ops.zeros_like(rows[0]), ops.zeros(table.shape), ops.zeros(bias.shape))
        total, *gradients = lax.fori_loop(0, (used + chunk - 1) // chunk, step, start)
        if not differentiate:
            return (total,)
        return total, ops.take(gradients[0], ops.argsort(order), axis=0), *gradients[1:]

    def sums(s: Settings, hidden, table, bias, labels, weights, differentiate: bool):
        """The same of all rows, each device its own, with gradients of the arguments' dtypes."""
        function = functools.partial(of_device, s, differentiate=differentiate)
        results = ("sum", "rows", "sum", "sum") if differentiate else ("sum",)
        total, *gradients = by_device(function, (hidden, labels, weights), (table, bias), results)
        kinds = (hidden.dtype, table.dtype, bias.dtype)
        return total, tuple(g.astype(dtype) for g, dtype in zip(gradients, kinds, strict=False))

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def rule(s, hidden, table, bias, labels, weights):
        return sums(s, hidden, table, bias, labels, weights, False)[0]

    def forward(s, hidden, table, bias, labels, weights):
        return sums(s, hidden, table, bias, labels, weights, True)

    def backward(s, gradients, upstream):
        return *((upstream * g).astype(g.dtype) for g in gradients), None, None

    rule.defvjp(forward, backward)
    return rule


# TensorFlow -----------------------------------------------------------------------------------------------------------


def _tensorflow(s: Settings, hidden, table, bias, labels, weights, differentiable):
    import tensorflow as tf

    hidden, table, bias = (tf.convert_to_tensor(x) for x in (hidden, table, bias))

    @tf.custom_gradient
    def rule(hidden, table, bias):
        count, width = tf.shape(labels)[0], hidden.shape[-1]
        order, used = _order(labels)
        chunk = tf.clip_by_value(count, 1, s.chunk)
        chunks = (count + chunk - 1) // chunk
        more = chunks * chunk - count
        rows = [
            tf.pad(tf.gather(x, order), [(0, more)] + [(0, 0)] * (len(x.shape) - 1)) for x in (hidden, labels, weights)
        ]

        def step(i, total, by_hidden, by_table, by_bias):
            x, y, w = (tf.slice(r, [i * chunk] + [0] * (len(r.shape) - 1), [chunk, *r.shape[1:]]) for r in rows)
            value, gradient = _chunk(s, x, table, bias, y, w)
            if not differentiable:
                return i + 1, total + value, by_hidden, by_table, by_bias
            mine, tables, biases = _back(s, gradient, x, table)
            return i + 1, total + value, by_hidden.write(i, mine), by_table + tables, by_bias + biases

        pieces = tf.TensorArray(hidden.dtype, chunks, element_shape=[None, width])
        zeros = [tf.zeros(x.shape if differentiable else [0] * len(x.shape), "float32") for x in (table, bias)]
        rounds, total, pieces, by_table, by_bias = tf.while_loop(
            lambda i, *_: i * chunk < used,
            step,
            (tf.constant(0), tf.constant(0.0), pieces, *zeros),
            parallel_iterations=1,
        )
        by_hidden = None
        if differentiable:
            _, pieces = tf.while_loop(  # tokens without a label
                lambda i, _: i < chunks,
                lambda i, pieces: (i + 1, pieces.write(i, tf.zeros([chunk, width], hidden.dtype))),
                (rounds, pieces),
            )
            by_hidden = tf.gather(tf.reshape(pieces.stack(), [-1, width])[:count], tf.argsort(order))

        def backward(upstream):
            found = zip((by_hidden, by_table, by_bias), (hidden, table, bias), strict=True)
            return tuple(tf.cast(upstream * tf.cast(g, "float32"), x.dtype) for g, x in found)

        return total, backward

    return rule(hidden, table, bias) if differentiable else tf.stop_gradient(rule(hidden, table, bias))


# torch ----------------------------------------------------------------------------------------------------------------


def _torch(s: Settings, hidden, table, bias, labels, weights, differentiable):
    import torch

    enabled = differentiable and torch.is_grad_enabled()
    with contextlib.nullcontext() if enabled else torch.no_grad():
        return _torch_rule().apply(s, hidden, table, bias, labels, weights, enabled)


@functools.cache
def _torch_rule():
    import torch

    class LinearCrossentropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, hidden, table, bias, labels, weights, enabled):
            wanted = [enabled and needed for needed in ctx.needs_input_grad[1:4]]
            index = torch.nonzero(labels >= 0)[:, 0]
            total = torch.zeros((), device=hidden.device)
            by_hidden = torch.zeros_like(hidden) if wanted[0] else None
            by_table = torch.zeros(table.shape, device=table.device) if wanted[1] else None
            by_bias = torch.zeros(bias.shape, device=bias.device) if wanted[2] else None
            for rows in index.split(s.chunk):
                part = hidden[rows]
                value, gradient = _chunk(s, part, table, bias, labels[rows], weights[rows])
                total += value
                if not any(wanted):
                    continue
                if by_bias is not None:
                    by_bias += gradient.sum(0)
                gradient = gradient.to(hidden.dtype)
                if by_hidden is not None:
                    by_hidden[rows] = gradient @ (table.T if s.transposed else table)
                if by_table is not None:
                    left, right = (part, gradient) if s.transposed else (gradient, part)
                    _add_product(by_table, left.T, right)
            ctx.save_for_backward(*(g for g in (by_hidden, by_table, by_bias) if g is not None))
            ctx.wanted, ctx.dtypes = wanted, (hidden.dtype, table.dtype, bias.dtype)
            return total

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, upstream):
            saved = iter(ctx.saved_tensors)
            found = [
                (next(saved) * upstream).to(dtype) if wanted else None
                for wanted, dtype in zip(ctx.wanted, ctx.dtypes, strict=True)
            ]
            return None, *found, None, None, None

    return LinearCrossentropy


def _add_product(total, left, right) -> None:
    """total += left @ right, in place where the dtypes allow."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += (left @ right).to(total.dtype)


__all__ = ["linear_crossentropy"]
