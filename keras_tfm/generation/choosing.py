"""Logits to a token: penalties and bans, then what is left to draw from, then the draw. Pure functions of tensors.

Every function takes (batch, vocabulary_size) float32 logits and settings of shape (batch,).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.ops.backend import NAME, Tensor

NEVER = -1e30  # a logit that is not chosen; finite, so that a softmax over it stays a number
_HALVINGS = 30  # of an interval of probabilities: its end is then as near as float32 tells


def penalized(logits: Tensor, arrays: dict[str, Tensor], state: dict[str, Any], step: Tensor, static: tuple) -> Tensor:
    """What earlier tokens, bans and minimum lengths make of the logits."""
    _, ngram, processors, _ = static
    if "repetition_penalty" in arrays:
        penalty = arrays["repetition_penalty"][:, None]
        logits = ops.where(state["seen"] > 0, ops.where(logits > 0, logits / penalty, logits * penalty), logits)
    if "presence_penalty" in arrays:
        logits = logits - arrays["presence_penalty"][:, None] * ops.cast(state["counts"] > 0, "float32")
    if "frequency_penalty" in arrays:
        logits = logits - arrays["frequency_penalty"][:, None] * state["counts"]
    if ngram is not None:
        logits = ops.where(repeats(state["sequence"], state["filled"], ngram, logits.shape[-1]), NEVER, logits)
    if "forbidden" in arrays:
        logits = ops.where(arrays["forbidden"][None, :], NEVER, logits)
    if "min_new_tokens" in arrays:
        early = (step < arrays["min_new_tokens"])[:, None]
        logits = ops.where(ops.logical_and(early, arrays["ends"][None, :]), NEVER, logits)
    for processor in processors:
        processed = processor(state["sequence"], logits)
        if getattr(processed, "shape", None) is None or tuple(processed.shape) != tuple(logits.shape):
            got = type(processed).__name__ if not hasattr(processed, "shape") else tuple(processed.shape)
            raise ValueError(
                f"A processor must return logits of shape {tuple(logits.shape)}; {processor!r} gave {got}."
            )
        logits = processed
    if "forced" in arrays:
        count = arrays["forced"].shape[0]
        token = ops.take(arrays["forced"], ops.minimum(step, count - 1), axis=0)
        token = ops.where(step < count, token, -1)
        ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
        logits = ops.where(ops.logical_or(token < 0, ids == token), logits, NEVER)
    if "forced_end" in arrays:  # BART's convention: the last token there is room for is the end of text
        ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
        last = (step + 1 >= arrays["max_new_tokens"])[:, None]
        logits = ops.where(ops.logical_and(last, ids != arrays["forced_end"]), NEVER, logits)
    return logits


def repeats(sequence: Tensor, filled: Tensor, size: int, vocabulary_size: int) -> Tensor:
    """Tokens that would complete a sequence of `size` tokens for the second time, (batch, vocabulary_size) boolean.

    Args:
        sequence: (batch, slots) int32, -1 where there is no token; rows end in slot `filled` - 1.
        filled: () int32.
    """
    batch, slots = ops.shape(sequence)
    starts = slots - size + 1
    if starts < 1:
        return ops.zeros((batch, vocabulary_size), dtype="bool")
    last = sequence[:, size - 1 :]  # the token that ended each earlier sequence, (batch, starts)
    same = ops.logical_and(ops.arange(starts, dtype="int32")[None, :] + size - 1 < filled, last >= 0)
    for offset in range(size - 1):
        now = ops.take(sequence, ops.maximum(filled - (size - 1) + offset, 0), axis=1)[:, None]  # (batch, 1)
        then = sequence[:, offset : offset + starts]
        same = ops.logical_and(same, ops.logical_and(then == now, then >= 0))
    # One more column, for what is no repetition: every write says true, so that their order does not matter.
    column = ops.where(same, last, vocabulary_size)
    hits = ops.zeros((batch, vocabulary_size + 1), dtype="int32")
    if NAME == "torch":  # Keras scatters there by a loop over indices
        return hits.scatter(1, column.long(), 1)[:, :vocabulary_size] > 0
    rows = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], (batch, starts))
    places = ops.stack([ops.reshape(rows, (-1,)), ops.reshape(column, (-1,))], axis=-1)
    hits = ops.scatter_update(hits, places, ops.ones((batch * starts,), dtype="int32"))
    return hits[:, :vocabulary_size] > 0


def most_likely(logits: Tensor) -> Tensor:
    """The id of each row's largest logit, (batch,) int32; of equal ones the first."""
    if NAME == "torch":
        return ops.cast(ops.argmax(logits, axis=-1), "int32")
    # On a CPU XLA's argmax takes one element after the other; both of these take many at once.
    vocabulary = logits.shape[-1]
    ids = ops.arange(vocabulary, dtype="int32")[None, :]
    largest = ops.max(logits, axis=-1, keepdims=True)
    first = ops.min(ops.where(logits == largest, ids, vocabulary), axis=-1)
    return ops.minimum(first, vocabulary - 1)  # a NaN equals nothing


def choose(logits: Tensor, arrays: dict[str, Tensor], step: Tensor, static: tuple) -> Tensor:
    """A token for each row, (batch,) int32: the most likely, or drawn."""
    best = most_likely(logits)
    if "temperature" not in arrays:
        return best
    temperature = arrays["temperature"]
    drawn = draw(logits / ops.maximum(temperature, 1e-6)[:, None], arrays, step, static[0])
    return ops.where(temperature > 0, drawn, best)


def distribution(logits: Tensor, arrays: dict[str, Tensor], static: tuple) -> Tensor:
    """The probabilities that `choose` draws with, (batch, vocabulary_size) float32; of greedy rows 1 and zeros."""
    ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
    best = ops.cast(ids == most_likely(logits)[:, None], "float32")
    if "temperature" not in arrays:
        return best
    temperature = arrays["temperature"][:, None]
    logits = logits / ops.maximum(temperature, 1e-6)
    most = min(static[0], logits.shape[-1])
    if most:
        highest, _ = ops.top_k(logits, most)  # (batch, most), falling
        rank = ops.arange(most, dtype="int32")[None, :]
        kept = ops.where(rank < arrays["top_k"][:, None], highest, -NEVER)
        logits = ops.where(logits >= ops.min(kept, axis=-1, keepdims=True), logits, NEVER)
    weights = allowed(ops.softmax(logits, axis=-1), arrays)
    return ops.where(temperature > 0, weights / ops.sum(weights, axis=-1, keepdims=True), best)


def by_sampler(sampler: Any, logits: Tensor, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A sampler's choice, (batch,) int32, and the values that its random state has then."""
    with keras.StatelessScope(state_mapping=list(zip(sampler.variables, values, strict=True))) as scope:
        token = sampler.get_next_token(ops.softmax(logits / sampler.temperature, axis=-1))
    after = [scope.get_current_value(variable) for variable in sampler.variables]
    values = [value if new is None else new for new, value in zip(after, values, strict=True)]
    return ops.cast(ops.reshape(token, (-1,)), "int32"), values


def draw(logits: Tensor, arrays: dict[str, Tensor], step: Tensor, most: int) -> Tensor:
    """A token for each row, drawn from what the settings leave. `most` is the largest top_k, rounded up; 0 for none."""
    ids = None
    if most and most < logits.shape[-1]:
        logits, ids = ops.top_k(logits, most)  # (batch, most), falling
    elif most:
        logits, ids = ops.top_k(logits, logits.shape[-1])
    if ids is not None:
        rank = ops.arange(logits.shape[-1], dtype="int32")[None, :]
        logits = ops.where(rank < arrays["top_k"][:, None], logits, NEVER)
    weights = allowed(ops.softmax(logits, axis=-1), arrays)
    uniform = ops.take(arrays["uniform"], step, axis=1)[:, None]  # (batch, 1)
    place = inverse(weights, uniform)
    if ids is not None:
        place = ops.take_along_axis(ids, place[:, None], axis=1)[:, 0]
    return ops.cast(place, "int32")


def allowed(probabilities: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    """Probabilities without those that top_p, min_p and typical_p rule out, in this order; they need not add up to 1."""
    if "top_p" in arrays:
        probabilities = _keep(probabilities, probabilities, arrays["top_p"])
    if "min_p" in arrays:
        least = arrays["min_p"][:, None] * ops.max(probabilities, axis=-1, keepdims=True)
        probabilities = ops.where(probabilities >= least, probabilities, 0.0)
    if "typical_p" in arrays:
        total = ops.sum(probabilities, axis=-1, keepdims=True)
        shares = probabilities / total
        information = -ops.log(ops.maximum(shares, 1e-30))
        expected = ops.sum(shares * information, axis=-1, keepdims=True)
        nearness = -ops.abs(information - expected)
        nearness = ops.where(probabilities > 0, nearness, -200.0)
        probabilities = _keep(probabilities, nearness, arrays["typical_p"])
    return probabilities


def _keep(probabilities: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """The fewest with the highest `order` that have a share of the probability together; of equals all.

    The lowest order that stays is found by halving an interval, which needs sums only, where sorting a vocabulary takes
    longer than the rest of a step.
    """
    wanted = share[:, None] * ops.sum(probabilities, axis=-1, keepdims=True)
    low = ops.min(order, axis=-1, keepdims=True)
    high = ops.max(order, axis=-1, keepdims=True)
    top = high

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        enough = ops.sum(ops.where(order >= middle, probabilities, 0.0), axis=-1, keepdims=True) >= wanted
        return ops.where(enough, middle, low), ops.where(enough, high, middle)

    low, _ = ops.fori_loop(0, _HALVINGS, halve, (low, high))
    keep = ops.logical_or(ops.logical_or(order >= low, order >= top), share[:, None] >= 1.0)
    return ops.where(keep, probabilities, 0.0)


def inverse(weights: Tensor, uniform: Tensor) -> Tensor:
    """Where the cumulated weights pass `uniform` of their total: a draw from them, (batch,) int32.

    Args:
        weights: (batch, choices) float32, not negative.
        uniform: (batch, 1), in [0, 1).
    """
    cumulated = ops.cumsum(weights, axis=-1)
    passed = ops.sum(ops.cast(cumulated <= uniform * cumulated[:, -1:], "int32"), axis=-1)
    last = ops.max(  # rounding must not carry a draw past the last that has any weight
        ops.where(weights > 0, ops.arange(weights.shape[-1], dtype="int32")[None, :], 0), axis=-1
    )
    return ops.minimum(passed, last)
