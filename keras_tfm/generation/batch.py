"""A batch of prompts on its way to text: what is common to all ways of choosing tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.generation import buckets
from keras_tfm.generation.decoder import Decoder, State, Step, advance, decoder_of
from keras_tfm.generation.program import to_tensors
from keras_tfm.generation.recorded import Kept
from keras_tfm.generation.settings import Choosing, uniforms
from keras_tfm.ops import kv_cache, processes


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
        mark: Of the weights that it was read with: see `mark_of`.
    """

    def __init__(self, token_ids: np.ndarray, cache: list, mark: Any):
        self.token_ids, self.cache, self.mark = token_ids, cache, mark

    def check(self, model: Any) -> None:
        """Raise ValueError if the model's weights are not those that it was read with."""
        if mark_of(model) != self.mark:
            raise ValueError(
                "The prefix was read with other weights: by another model, or before fit, quantize or the like. "
                "Read it again: model.prefix(text)."
            )


def mark_of(model: Any) -> tuple[Any, ...]:
    """The names of a model's weights and a few numbers of each: other weights have another mark, all but surely."""
    weights = [variable for variable in model.backbone.weights if "float" in str(variable.dtype)]

    def numbers(zero: Any) -> Any:
        flat = [ops.reshape(ops.convert_to_tensor(variable), (-1,)) for variable in weights]
        return zero + ops.concatenate([ops.cast(each[:: max(1, each.shape[0] // 3)], "float32") for each in flat])

    found = decoder_of(model).program("mark", numbers)(np.float32(0))
    return tuple(variable.path for variable in weights), processes.whole(found).tobytes()


@dataclass(frozen=True)
class Task:
    """What is to be written.

    Attributes:
        prompts: Token ids of each row, at least one.
        choosing: How tokens are chosen.
        max_new_tokens: Of each row, (rows,) int32.
        ends: Ids that end a row.
        pad: Id that fills a row that has ended.
        sources: Token ids of an encoder-decoder's source.
        prefix: What all prompts begin with, already read.
        forced_end: Id that the last token there is room for must be.
        cache_dtype: Of keys and values; None for the model's compute dtype.
        stream: Of the random numbers of the first row; each further row takes the next.
        log_probs: Keep the chosen tokens' log-probabilities.
    """

    prompts: Sequence[Sequence[int]]
    choosing: Choosing
    max_new_tokens: np.ndarray
    ends: Sequence[int]
    pad: int
    sources: Sequence[Sequence[int]] | None = None
    prefix: Prefix | None = None
    forced_end: int | None = None
    cache_dtype: str | None = None
    stream: int = 0
    log_probs: bool = True

    def row(self, row: int) -> Task:
        """One of its rows, as a task of its own."""
        return dataclasses.replace(
            self,
            prompts=self.prompts[row : row + 1],
            choosing=self.choosing.row(row),
            max_new_tokens=self.max_new_tokens[row : row + 1],
            sources=None if self.sources is None else self.sources[row : row + 1],
            stream=self.stream + row,
        )


def read(decoder: Decoder, task: Task, spare: int = 0, method: str = "prefill") -> tuple[list, Any, np.ndarray | None]:
    """A cache with the task's prompts in it, what `Decoder.prefill` gives beside it, and the mask of the sources."""
    rows, context, context_mask = len(task.prompts), None, None
    if task.sources is not None:
        source, context_mask = padded(task.sources, buckets.prompt(max(map(len, task.sources))))
        context = decoder.encode(source, context_mask)
    skip = 0 if task.prefix is None else len(task.prefix.token_ids) - 1
    chunk = [list(prompt[skip:]) for prompt in task.prompts]
    ids, mask = padded(chunk, buckets.prompt(max(map(len, chunk))))
    if task.prefix is None:
        cache = decoder.empty_cache(rows, ids.shape[1], context, task.cache_dtype, spare)
    else:
        capacity = buckets.size(skip + ids.shape[1], ids.shape[1])
        cache = decoder.grow(spread(task.prefix.cache, rows), capacity, spare)
    cache, found = getattr(decoder, method)(cache, ids, mask, context_mask)
    return cache, found, context_mask


class Batch:
    """Prompts, their cache, and the tokens chosen so far.

    Args:
        decoder: Of the model.
        task: What is to be written.
        method: Logits to the next state: `decoder.advance`, or a hashable object called as it is.
        spare: Tokens that may be read and dropped again.

    Attributes:
        in_tiles: Caches may be laid out in tiles: what is read after the prompts is one token of each row at a time.
    """

    in_tiles = True

    def __init__(self, decoder: Decoder, task: Task, method: Any = advance, spare: int = 0):
        self.decoder, self.task, self.method, self.spare = decoder, task, method, spare
        self._kept = Kept()
        choosing, vocabulary = task.choosing, decoder.model.vocabulary_size
        self.rows = len(task.prompts)
        self.start = max(map(len, task.prompts))  # tokens from which on text is
        self.limit = int(task.max_new_tokens.max())
        cache, self.logits, self.context_mask = self._read()

        arrays: dict[str, Any] = choosing.arrays(self.rows, vocabulary)
        self.static = choosing.static(arrays)
        self.once: Any = Step(decoder, method, self.static)
        arrays["ends"] = np.zeros((vocabulary,), bool)
        arrays["ends"][list(task.ends)] = True
        arrays["pad"] = np.int32(task.pad)
        if task.forced_end is not None:
            arrays["forced_end"] = np.int32(task.forced_end)
        arrays["max_new_tokens"] = task.max_new_tokens.astype(np.int32)
        self.capacity = self._capacity(self.start + 1)
        self._seed = int(np.random.default_rng().integers(2**31)) if choosing.seed is None else choosing.seed
        self.arrays = arrays
        self._draw()
        sequence = np.full((self.rows, self.capacity), -1, np.int32)
        for row, prompt in enumerate(task.prompts):
            sequence[row, self.start - len(prompt) : self.start] = prompt
        state: State = {
            "cache": decoder.grow(cache, self.capacity, spare, self.in_tiles),
            "token": np.zeros((self.rows,), np.int32),
            "sequence": sequence,
            "filled": np.int32(self.start),
            "step": np.int32(0),
            "done": task.max_new_tokens < 1,
        }
        if task.log_probs:
            state["log_probs"] = np.zeros((self.rows, self.capacity), np.float32)
        if "repetition_penalty" in arrays:
            state["seen"] = np.stack([np.bincount(p, minlength=vocabulary) for p in task.prompts]).astype(np.float32)
        if {"presence_penalty", "frequency_penalty"} & set(arrays):
            state["counts"] = np.zeros((self.rows, vocabulary), np.float32)
        if choosing.sampler is not None:
            state["sampler"] = [processes.whole(variable) for variable in choosing.sampler.variables]
        self.state = to_tensors(state)
        self.taken = 0

    def _read(self) -> tuple[list, Any, np.ndarray | None]:
        """Read the prompts: `read`'s results, with the logits behind them."""
        return read(self.decoder, self.task, self.spare)

    def _capacity(self, filled: int) -> int:
        return buckets.cache(filled, self.start + self.limit + self.spare)

    def _draw(self) -> None:
        """The random numbers of all steps that there is room for."""
        if "temperature" in self.arrays:
            rows = range(self.task.stream, self.task.stream + self.rows)
            self.arrays["uniform"] = uniforms(self._seed, rows, self.capacity)

    def _needed(self) -> int:
        """Slots that must be free to go on."""
        return 1

    def advance(self, steps: int) -> bool:
        """Choose up to so many further tokens; false once there is nothing left to choose."""
        wanted = min(self.taken + steps, self.limit)
        if self.taken == 0 and wanted:
            self._first()
            self.taken = 1
        while self.taken < wanted and not self.finished():
            if self.start + self.taken + self._needed() > self.capacity:
                self._grow()
            self._run(wanted)
            self.taken = int(processes.whole(self.state["step"]))
        return self.taken < self.limit and not self.finished()

    def _first(self) -> None:
        """Choose the token that follows the prompts."""
        self.state = self.decoder.first(self.logits, self.state, self.arrays, self.static, self.method)
        self._keep_random_state()

    def _run(self, wanted: int) -> None:
        """Choose tokens until there are `wanted`, or no more room."""
        until = min(wanted, self.capacity - self.start)
        self._repeat(self.once, until)

    def _repeat(self, once: Any, until: int, variables: Any = ()) -> None:
        self.state = self.decoder.repeat(once, self.state, self.arrays, until, self.context_mask, self._kept, variables)
        self._keep_random_state()

    def _keep_random_state(self) -> None:
        """A sampler's next call draws on."""
        sampler = self.task.choosing.sampler
        if sampler is not None:
            for variable, value in zip(sampler.variables, self.state["sampler"], strict=True):
                variable.assign(processes.whole(value))  # the state's own is consumed by the next step

    def finished(self) -> bool:
        """Whether every row has ended."""
        return bool(processes.whole(self.state["done"]).all())

    def _grow(self) -> None:
        self.capacity = self._capacity(self.capacity)
        more = self.capacity - self.state["sequence"].shape[1]
        grown = dict(self.state)
        for name, fill in (("sequence", -1), ("best", -1), ("log_probs", 0), ("best_log_probs", 0)):
            if name in grown:
                grown[name] = kv_cache.lengthened(grown[name], more, len(grown[name].shape) - 1, fill)
        if "hidden" in grown:  # (rows, slots, width)
            grown["hidden"] = kv_cache.lengthened(grown["hidden"], more, 1)
        grown["cache"] = self.decoder.grow(grown["cache"], self.capacity, self.spare, self.in_tiles)
        self.state = grown
        self._draw()

    def end(self, rows: np.ndarray) -> None:
        """End some rows, (rows,) bool, where they are."""
        done = processes.whole(self.state["done"]) | rows
        self.state = {**self.state, "done": ops.convert_to_tensor(done)}

    def tokens(self) -> np.ndarray:
        """What was chosen, (rows, taken) int32, `pad` behind the end of a row."""
        return processes.whole(self.state["sequence"])[:, self.start : self.start + self.taken]

    def rounds(self) -> list[int | None]:
        """Of speculative decoding: how often the model was called for each row, behind the prompt."""
        return [None] * self.rows

    def log_probs(self) -> np.ndarray:
        """Log-probabilities of `tokens` under the model, (rows, taken) float32."""
        return processes.whole(self.state["log_probs"])[:, self.start : self.start + self.taken]


def spread(cache: list, rows: int) -> list:
    """A cache of one row as one of many equal rows."""
    return keras.tree.map_structure(lambda x: ops.repeat(x, rows, axis=0), cache)
