"""A batch of prompts on its way to text: what is common to all ways of choosing tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.generation import buckets
from keras_tfm.generation.decoder import Decoder, State, advance
from keras_tfm.generation.program import to_tensors
from keras_tfm.generation.settings import Choosing, uniforms


def padded(rows: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Ragged ids as (rows, width) int32, padded on the right, and the mask."""
    ids, mask = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = True
    return ids, mask


class Prefix:
    """Tokens that a model has read, kept for prompts that begin with them.

    Attributes:
        token_ids: (length,) int32.
        cache: Of one row, without the last token.
    """

    def __init__(self, token_ids: np.ndarray, cache: list):
        self.token_ids, self.cache = token_ids, cache


class Batch:
    """Prompts, their cache, and the tokens chosen so far.

    Args:
        decoder: Of the model.
        prompts: Token ids of each row, at least one.
        choosing: How tokens are chosen.
        max_new_tokens: Of each row, (rows,) int32.
        ends: Ids that end a row.
        pad: Id that fills a row that has ended.
        sources: Token ids of an encoder-decoder's source.
        prefix: What all prompts begin with, already read.
        forced_end: Id that the last token there is room for must be.
        method: Logits to the next state: `decoder.advance`, or a hashable object called as it is.
    """

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        choosing: Choosing,
        max_new_tokens: np.ndarray,
        ends: Sequence[int],
        pad: int,
        sources: Sequence[Sequence[int]] | None = None,
        prefix: Prefix | None = None,
        method: Any = advance,
        forced_end: int | None = None,
    ):
        self.decoder, self.method = decoder, method
        self.rows, vocabulary = len(prompts), decoder.model.vocabulary_size
        self.lengths = np.array([len(prompt) for prompt in prompts])
        self.start = int(self.lengths.max())  # tokens from which on text is
        self.limit = int(max_new_tokens.max())
        self.context_mask: np.ndarray | None = None
        context = None
        if sources is not None:
            source, self.context_mask = padded(sources, buckets.prompt(max(map(len, sources))))
            context = decoder.encode(source, self.context_mask)

        skip = 0 if prefix is None else len(prefix.token_ids) - 1
        chunk = [list(prompt[skip:]) for prompt in prompts]
        ids, mask = padded(chunk, buckets.prompt(max(map(len, chunk))))
        if prefix is None:
            cache = decoder.empty_cache(self.rows, ids.shape[1], context)
        else:
            cache = decoder.grow(spread(prefix.cache, self.rows), buckets.size(skip + ids.shape[1], ids.shape[1]))
        cache, self.logits = decoder.prefill(cache, ids, mask, self.context_mask)

        arrays: dict[str, Any] = choosing.arrays(self.rows, vocabulary)
        self.static = choosing.static(arrays)
        arrays["ends"] = np.zeros((vocabulary,), bool)
        arrays["ends"][list(ends)] = True
        arrays["pad"] = np.int32(pad)
        if forced_end is not None:
            arrays["forced_end"] = np.int32(forced_end)
        arrays["max_new_tokens"] = max_new_tokens.astype(np.int32)
        self.capacity = self._capacity(self.start + 1)
        self._seed = int(np.random.default_rng().integers(2**31)) if choosing.seed is None else choosing.seed
        self.arrays = arrays
        self._draw()
        sequence = np.full((self.rows, self.capacity), -1, np.int32)
        for row, prompt in enumerate(prompts):
            sequence[row, self.start - len(prompt) : self.start] = prompt
        state: State = {
            "cache": decoder.grow(cache, self.capacity),
            "token": np.zeros((self.rows,), np.int32),
            "sequence": sequence,
            "filled": np.int32(self.start),
            "step": np.int32(0),
            "done": max_new_tokens < 1,
            "log_probs": np.zeros((self.rows, self.capacity), np.float32),
        }
        if "repetition_penalty" in arrays:
            state["seen"] = np.stack([np.bincount(p, minlength=vocabulary) for p in prompts]).astype(np.float32)
        if {"presence_penalty", "frequency_penalty"} & set(arrays):
            state["counts"] = np.zeros((self.rows, vocabulary), np.float32)
        self.state = to_tensors(state)
        self.taken = 0

    def _capacity(self, filled: int) -> int:
        return buckets.cache(filled, self.start + self.limit)

    def _draw(self) -> None:
        """The random numbers of all steps that there is room for."""
        if "temperature" in self.arrays:
            self.arrays["uniform"] = uniforms(self._seed, range(self.rows), self.capacity)

    def advance(self, steps: int) -> bool:
        """Choose up to so many further tokens; false once there is nothing left to choose."""
        wanted = min(self.taken + steps, self.limit)
        if self.taken == 0 and wanted:
            self.state = self.decoder.first(self.logits, self.state, self.arrays, self.static, self.method)
            self.taken = 1
        while self.taken < wanted and not self.finished():
            if self.start + self.taken + 1 > self.capacity:
                self._grow()
            until = min(wanted, self.capacity - self.start)
            self.state = self.decoder.run(self.state, self.arrays, self.static, until, self.context_mask, self.method)
            self.taken = int(ops.convert_to_numpy(self.state["step"]))
        return self.taken < self.limit and not self.finished()

    def finished(self) -> bool:
        """Whether every row has ended."""
        return bool(ops.convert_to_numpy(self.state["done"]).all())

    def _grow(self) -> None:
        self.capacity = self._capacity(self.capacity)
        more = self.capacity - self.state["sequence"].shape[1]
        grown = dict(self.state)
        for name, fill in (("sequence", -1), ("best", -1), ("log_probs", 0), ("best_log_probs", 0)):
            if name in grown:
                pads = [(0, 0)] * (len(grown[name].shape) - 1) + [(0, more)]
                grown[name] = ops.pad(grown[name], pads, constant_values=fill)
        grown["cache"] = self.decoder.grow(grown["cache"], self.capacity)
        self.state = grown
        self._draw()

    def end(self, rows: np.ndarray) -> None:
        """End some rows, (rows,) bool, where they are."""
        done = ops.convert_to_numpy(self.state["done"]) | rows
        self.state = {**self.state, "done": ops.convert_to_tensor(done)}

    def tokens(self) -> np.ndarray:
        """What was chosen, (rows, taken) int32, `pad` behind the end of a row."""
        return ops.convert_to_numpy(self.state["sequence"])[:, self.start : self.start + self.taken]

    def log_probs(self) -> np.ndarray:
        """Log-probabilities of `tokens` under the model, (rows, taken) float32."""
        return ops.convert_to_numpy(self.state["log_probs"])[:, self.start : self.start + self.taken]


def spread(cache: list, rows: int) -> list:
    """A cache of one row as one of many equal rows."""
    return keras.tree.map_structure(lambda x: ops.repeat(x, rows, axis=0), cache)
