"""Speculative decoding: several tokens proposed cheaply, then read by the model at once (Leviathan et al. 2023).

A proposal x from q is taken with probability min(1, p(x) / q(x)); at the first that is not, a token is drawn from what p
has above q. What comes out is distributed as the model's own draws, and greedy text is the model's own, token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.generation import buckets, choosing
from keras_tfm.generation.batch import Batch, Task, padded, read
from keras_tfm.generation.decoder import Decoder, State, write_columns
from keras_tfm.generation.settings import uniforms
from keras_tfm.ops import kv_cache, processes

LONGEST_MATCH = 3  # tokens that are looked up in the text so far


@dataclass(frozen=True)
class Lookup:
    """Proposals from the text so far: what followed the last tokens where they stood before (Saxena 2023)."""

    @property
    def variables(self) -> list[Any]:
        """There are none."""
        return []

    def start(self, batch: Speculative) -> None:
        """Where there is a source, it is searched, too."""
        if batch.task.sources is not None:
            ids, mask = padded(batch.task.sources, buckets.prompt(len(batch.task.sources[0])))
            batch.arrays["source"] = np.where(mask, ids, -1)

    def grow(self, batch: Speculative) -> None:
        """Nothing of its own to grow."""

    def propose(self, state: State, arrays: dict[str, Any], count: int, static: tuple, vocabulary: int):
        """Tokens (1, count), -1 for none; their distributions, (count, vocabulary_size); the state."""
        del static
        text, filled = state["sequence"], state["filled"]
        newest = [ops.take(text, ops.maximum(filled - 1 - back, 0), axis=1)[:, None] for back in range(LONGEST_MATCH)]
        end = filled - 1
        if "source" in arrays:
            source = arrays["source"]
            gap = ops.full((1, 1), -1, dtype="int32")
            text = ops.concatenate([source, gap, text], axis=1)
            end = end + source.shape[1] + 1
        slots = text.shape[1]
        places = ops.arange(slots, dtype="int32")[None, :]
        # How many tokens up to each place are the newest ones, (1, slots).
        matched = ops.zeros((1, slots), dtype="int32")
        same = ops.logical_and(places < end, text >= 0)
        for back, token in enumerate(newest):
            earlier = ops.pad(text, [(0, 0), (back, 0)], constant_values=-1)[:, :slots]
            same = ops.logical_and(same, ops.logical_and(earlier == token, token >= 0))
            matched = matched + ops.cast(same, "int32")
        # The longest match; of those one that enough follows; of those the latest.
        enough = ops.cast(places + count <= end, "int32")
        order = ops.where(matched > 0, (2 * matched + enough) * slots + places, -1)
        best = ops.cast(ops.argmax(order, axis=1), "int32")  # (1,)
        found = ops.max(order, axis=1) >= 0
        follow = best[:, None] + 1 + ops.arange(count, dtype="int32")[None, :]
        there = ops.logical_and(found[:, None], follow <= end)
        tokens = ops.take_along_axis(text, ops.minimum(follow, slots - 1), axis=1)
        tokens = ops.where(there, tokens, -1)
        ids = ops.arange(vocabulary, dtype="int32")[None, :]
        return tokens, ops.cast(ids == ops.reshape(tokens, (-1, 1)), "float32"), state

    def settle(self, state: State, dropped: Any) -> State:
        """Nothing of its own to take back."""
        del dropped
        return state


@dataclass(frozen=True)
class Draft:
    """Proposals from a smaller model, whose decoder this is."""

    decoder: Decoder

    @property
    def variables(self) -> list[Any]:
        """The smaller model's."""
        return self.decoder.model.variables

    def start(self, batch: Speculative) -> None:
        """Read the prompts."""
        cache, _, mask = read(self.decoder, dataclasses.replace(batch.task, prefix=None), batch.spare)
        batch.state["draft"] = self.decoder.grow(cache, batch.capacity, batch.spare)
        if mask is not None:
            batch.arrays["draft_context_mask"] = mask

    def grow(self, batch: Speculative) -> None:
        """Room for as many tokens as the batch has room for."""
        batch.state["draft"] = self.decoder.grow(batch.state["draft"], batch.capacity, batch.spare)

    def propose(self, state: State, arrays: dict[str, Any], count: int, static: tuple, vocabulary: int):
        """Tokens (1, count); what they were drawn from, (count, vocabulary_size); the state."""
        mask = arrays.get("draft_context_mask")

        def step(index, carry):
            cache, token, tokens, probabilities = carry
            hidden, cache = self.decoder.hidden(token[:, None], None, cache, mask)
            logits = self.decoder.logits(hidden[:, 0])
            logits = settled(logits, state, arrays, static, tokens, index)
            law = choosing.distribution(logits, arrays, static)
            uniform = ops.reshape(ops.take(arrays["uniforms"][0], state["step"] + index), (1, 1))
            token = ops.cast(choosing.inverse(law, uniform), "int32")
            tokens = write_columns(tokens, token[:, None], ops.convert_to_tensor(index, dtype="int32"))
            probabilities = write_columns(probabilities, law[:, None], ops.convert_to_tensor(index, dtype="int32"))
            return cache, token, tokens, probabilities

        # One step more than proposals, so that the cache has the last of them, too.
        carry = (
            state["draft"],
            state["token"],
            ops.full((1, count + 1), -1, dtype="int32"),
            ops.zeros((1, count + 1, vocabulary), dtype="float32"),
        )
        cache, _, tokens, probabilities = ops.fori_loop(0, count + 1, step, carry)
        return tokens[:, :count], probabilities[0, :count], {**state, "draft": cache}

    def settle(self, state: State, dropped: Any) -> State:
        """Take back what was not accepted."""
        return {**state, "draft": without(state["draft"], dropped)}


def settled(logits: Any, state: State, arrays: dict[str, Any], static: tuple, tokens: Any, index: Any) -> Any:
    """What penalties and bans make of (1, vocabulary_size) logits behind the first `index` of the tokens proposed."""
    now = {**state, "filled": state["filled"] + index}
    if static[1] is not None or static[2]:  # what reads the text
        text = write_columns(state["sequence"], tokens, state["filled"])
        places = ops.arange(text.shape[1], dtype="int32")[None, :]
        now["sequence"] = ops.where(places < now["filled"], text, -1)
    for name in ("seen", "counts"):
        if name in state:
            now[name] = state[name] + occurrences(tokens, index, logits.shape[-1])
    return choosing.penalized(logits, arrays, now, state["step"] + index, static)


def occurrences(tokens: Any, count: Any, vocabulary: int) -> Any:
    """How often each id is among the first `count` of tokens, (1, n): (1, vocabulary_size) float32."""
    places = ops.arange(tokens.shape[1], dtype="int32")
    tokens = ops.where(places < count, tokens[0], -1)
    ids = ops.arange(vocabulary, dtype="int32")
    return ops.sum(ops.cast(tokens[:, None] == ids[None, :], "float32"), axis=0, keepdims=True)


def without(cache: list, count: Any) -> list:
    """A model's cache without the last `count` tokens."""
    return [{**part, "attention": kv_cache.drop_last(part["attention"], count)} for part in cache]


@dataclass(frozen=True)
class Round:
    """One round: propose, read, accept, and draw one token more.

    Attributes:
        decoder: Of the model.
        source: Of the proposals.
        count: Proposals at once.
        static: See `Choosing.static`.
    """

    decoder: Decoder
    source: Draft | Lookup
    count: int
    static: tuple

    @property
    def decoders(self) -> dict[str, Decoder]:
        """Whose the caches of the state are."""
        return {"cache": self.decoder} | ({"draft": self.source.decoder} if isinstance(self.source, Draft) else {})

    def __call__(self, state: State, arrays: dict[str, Any], context_mask: Any) -> State:
        """The state after a round."""
        decoder, static, count = self.decoder, self.static, self.count
        vocabulary, step = decoder.model.vocabulary_size, state["step"]
        proposed, proposals, state = self.source.propose(state, arrays, count, static, vocabulary)

        chunk = ops.concatenate([state["token"][:, None], ops.maximum(proposed, 0)], axis=1)  # (1, count + 1)
        hidden, cache = decoder.hidden(chunk, None, state["cache"], context_mask)
        logits = decoder.logits(hidden)[0]  # (count + 1, vocabulary)
        padded = ops.pad(proposed, [(0, 0), (0, 1)], constant_values=-1)
        wanted = [settled(logits[i : i + 1], state, arrays, static, padded, i) for i in range(count + 1)]
        law = choosing.distribution(ops.concatenate(wanted, axis=0), arrays, static)

        places = ops.arange(count + 1, dtype="int32")
        tests, draws = (ops.take(arrays["uniforms"][n], step + places) for n in (1, 2))
        index = ops.maximum(proposed[0], 0)[:, None]
        likely = ops.take_along_axis(law[:count], index, axis=1)[:, 0]
        drawn = ops.take_along_axis(proposals, index, axis=1)[:, 0]
        taken = ops.logical_and(tests[:count] * drawn < likely, proposed[0] >= 0)
        accepted = ops.cast(ops.sum(ops.cumprod(ops.cast(taken, "int32"))), "int32")  # ()

        above = ops.maximum(law - ops.pad(proposals, [(0, 1), (0, 0)]), 0.0)
        above = ops.where(ops.sum(above, axis=-1, keepdims=True) > 0, above, law)
        above = ops.take(above, accepted, axis=0)[None]
        final = ops.cast(choosing.inverse(above, ops.reshape(ops.take(draws, accepted), (1, 1))), "int32")  # (1,)

        tokens = ops.where(places[None] < accepted, padded, ops.where(places[None] == accepted, final[:, None], -1))
        more, dropped = accepted + 1, count - accepted
        after = {
            **self.source.settle(state, dropped),
            "cache": without(cache, dropped),
            "token": final,
            "sequence": write_columns(state["sequence"], tokens, state["filled"]),
            "filled": state["filled"] + more,
            "step": step + more,
            "rounds": state["rounds"] + 1,
        }
        if "log_probs" in state:
            raw = ops.log_softmax(logits, axis=-1)
            chosen = ops.take_along_axis(raw, ops.maximum(tokens[0], 0)[:, None], axis=1)[None, :, 0]
            after["log_probs"] = write_columns(state["log_probs"], chosen, state["filled"])
        ended = ops.logical_and(ops.take(arrays["ends"], ops.maximum(tokens, 0)), tokens >= 0)
        ended = ops.logical_or(ops.any(ended, axis=1), step + more >= arrays["max_new_tokens"])
        after["done"] = ops.logical_or(state["done"], ended)
        for name in ("seen", "counts"):
            if name in state:
                after[name] = state[name] + occurrences(tokens, more, vocabulary)
        return after


class Speculative(Batch):
    """A batch of one row whose tokens are proposed first.

    Args:
        decoder: Of the model.
        task: Of one row.
        source: Of the proposals: `Draft` or `Lookup`.
        count: Proposals at once.
        limit: Tokens that both models can read.

    Attributes, in the state: rounds: () int32, how often the model was called behind the prompt.
    """

    in_tiles = False  # a step reads several tokens at once

    def __init__(self, decoder: Decoder, task: Task, source: Draft | Lookup, count: int, limit: int | None):
        self.source, self.count = source, count
        most = len(task.prompts[0]) + int(task.max_new_tokens.max())
        # Proposals may go past the end of the text, but not past what the models can read.
        self._over = count if limit is None else min(count, limit - most)
        super().__init__(decoder, task, spare=count + 1)
        self.round = Round(decoder, source, count, self.static)
        self.state["rounds"] = ops.convert_to_tensor(np.int32(0))
        source.start(self)

    def rounds(self) -> list[int | None]:
        """See `Batch.rounds`."""
        return [int(processes.whole(self.state["rounds"]))]

    def _draw(self) -> None:
        super()._draw()
        self.arrays["uniforms"] = uniforms(self._seed, [self.task.stream + (n << 20) for n in (1, 2, 3)], self.capacity)

    def _speculates(self) -> bool:
        return self.taken + self.count + 1 <= self.limit + self._over

    def _needed(self) -> int:
        return self.count + 1 if self._speculates() else 1

    def _grow(self) -> None:
        super()._grow()
        self.source.grow(self)

    def _run(self, wanted: int) -> None:
        if not self._speculates():  # the last tokens that there is room for
            super()._run(wanted)
            return
        room = min(self.limit + self._over, self.capacity - self.start) - self.count
        self._repeat(self.round, min(wanted, room), self.source.variables)


class Rows:
    """Batches of one row each, written one after another, with the face of one batch."""

    def __init__(self, batches: Sequence[Batch]):
        self.batches = list(batches)
        self.limit = max(batch.limit for batch in self.batches)

    def advance(self, steps: int) -> bool:
        """See `Batch.advance`."""
        more = [batch.advance(min(steps, batch.limit)) for batch in self.batches]
        return any(more)

    def finished(self) -> bool:
        """See `Batch.finished`."""
        return all(batch.finished() for batch in self.batches)

    def end(self, rows: np.ndarray) -> None:
        """See `Batch.end`."""
        for batch, row in zip(self.batches, rows, strict=True):
            batch.end(np.array([row]))

    def tokens(self) -> np.ndarray:
        """See `Batch.tokens`."""
        return self._joined([batch.tokens() for batch in self.batches], self.batches[0].task.pad)

    def log_probs(self) -> np.ndarray:
        """See `Batch.log_probs`."""
        return self._joined([batch.log_probs() for batch in self.batches], 0)

    def rounds(self) -> list[int | None]:
        """See `Batch.rounds`."""
        return [rounds for batch in self.batches for rounds in batch.rounds()]

    @staticmethod
    def _joined(rows: Sequence[np.ndarray], fill: int) -> np.ndarray:
        width = max(row.shape[1] for row in rows)
        pads = [((0, 0), (0, width - row.shape[1])) for row in rows]
        return np.concatenate([np.pad(row, pad, constant_values=fill) for row, pad in zip(rows, pads, strict=True)])
