"""The definition of attention, for reading and for comparing: one formula, float32 throughout, nothing clever."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops import random
from keras_tfm.ops.backend import Tensor
from keras_tfm.ops.kernels.request import Request


def refuses(request: Request) -> str | None:
    """Nothing is refused."""
    return None


def attend(request: Request) -> tuple[Tensor, Tensor]:
    """softmax(scale * Q K^T + bias) V (Vaswani et al. 2017, eq. 1), with every option.

    Returns the output, (batch, queries, heads, head_dim) in the query's dtype, and the attention weights,
    (batch, heads, queries, keys) in float32 (float64 for float64 inputs), after dropout's absence: as without it.
    """
    dtype = "float64" if str(request.query.dtype).endswith("float64") else "float32"
    query, key, value = (ops.cast(x, dtype) for x in (request.query, request.key, request.value))
    if request.groups > 1:
        key, value = (ops.repeat(x, request.groups, axis=2) for x in (key, value))
    logits = ops.einsum("bqhd,bkhd->bhqk", query, key) * request.scale
    if request.softcap is not None:
        logits = request.softcap * ops.tanh(logits / request.softcap)
    if request.bias is not None:
        logits = logits + ops.cast(request.bias, dtype)
    mask = request.mask()
    if mask is not None:
        logits = ops.where(mask, logits, ops.cast(-1e30, dtype))
    peak = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))  # (batch, heads, queries, 1)
    if request.sinks is not None:
        sinks = ops.reshape(ops.cast(request.sinks, dtype), (1, -1, 1, 1))
        peak = ops.maximum(peak, ops.stop_gradient(sinks))
    weights = ops.exp(logits - peak)
    if mask is not None:
        weights = ops.where(mask, weights, ops.zeros_like(weights))
    total = ops.sum(weights, axis=-1, keepdims=True)
    if request.sinks is not None:
        total = total + ops.exp(sinks - peak)
    weights = weights / ops.where(total == 0, ops.ones_like(total), total)  # an empty row stays zero
    dropped = random.dropout(weights, request.dropout, request.seed)
    output = ops.einsum("bhqk,bkhd->bqhd", dropped, value)
    return ops.cast(output, request.query.dtype), weights
