"""Contrastive search: likely tokens whose hidden state is unlike those before (Su et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.generation import choosing
from keras_tfm.generation.batch import Batch, Task, read
from keras_tfm.generation.decoder import Decoder, State, taken, write_columns
from keras_tfm.generation.program import to_tensors
from keras_tfm.ops import kv_cache, processes


@dataclass(frozen=True)
class Look:
    """One token for each row: read the likeliest, keep one.

    Attributes:
        decoder: Of the model.
        candidates: Likeliest tokens that are looked at.
        penalty: Share of the similarity in the score.
        static: See `Choosing.static`.
    """

    decoder: Decoder
    candidates: int
    penalty: float
    static: tuple

    @property
    def decoders(self) -> dict[str, Decoder]:
        """Whose the caches of the state are."""
        return {"cache": self.decoder}

    def __call__(self, state: State, arrays: dict[str, Any], context_mask: Any) -> State:
        """The state after it. `state["cache"]` has the token last chosen, `state["logits"]` are those behind it."""
        batch, many = state["token"].shape[0], self.candidates
        wanted = choosing.penalized(state["logits"], arrays, state, state["step"], self.static)
        likely, ids = ops.top_k(ops.softmax(wanted, axis=-1), many)  # (batch, many)
        ids = ops.cast(ids, "int32")
        copied = ops.arange(batch * many, dtype="int32") // many
        if context_mask is not None:
            context_mask = ops.take(context_mask, copied, axis=0)
        flat = ops.reshape(ids, (-1, 1))
        hidden, cache = self.decoder.hidden(flat, None, picked(state["cache"], copied), context_mask)

        earlier = ops.einsum("bsd,bmd->bms", unit(state["hidden"]), unit(ops.reshape(hidden, (batch, many, -1))))
        earlier = ops.where(state["sequence"][:, None, :] >= 0, earlier, -1.0)
        score = (1.0 - self.penalty) * likely - self.penalty * ops.max(earlier, axis=-1)
        score = ops.where(likely > 0, score, choosing.NEVER)  # what is forbidden stays so
        best = ops.cast(ops.argmax(score, axis=1), "int32")  # (batch,)

        rows = ops.arange(batch, dtype="int32") * many + best
        hidden = ops.take(hidden, rows, axis=0)  # (batch, 1, width)
        kept = {
            **state,
            "cache": picked(cache, rows),
            "hidden": write_columns(state["hidden"], hidden, state["filled"]),
            "logits": self.decoder.logits(hidden[:, 0]),
        }
        return taken(ops.take_along_axis(ids, best[:, None], axis=1)[:, 0], state["logits"], kept, arrays)


def unit(vectors: Any) -> Any:
    """Vectors of length 1, float32; zeros stay zeros."""
    vectors = ops.cast(vectors, "float32")
    return vectors / ops.maximum(ops.norm(vectors, axis=-1, keepdims=True), 1e-12)


def picked(cache: list, rows: Any) -> list:
    """A model's cache with other rows, the context's included."""
    return [{name: kv_cache.gather_rows(part, rows) for name, part in block.items()} for block in cache]


class Contrastive(Batch):
    """A batch whose tokens maximise (1 - penalty) * probability - penalty * the largest cosine similarity to earlier ones.

    Every step reads the `candidates` likeliest tokens of each row and keeps one of them, so that its cache has the token
    last chosen; what is written is the same as if it did not.

    Args:
        decoder: Of the model.
        task: What is to be written.
        candidates: Likeliest tokens that are looked at.
        penalty: From 0, which is greedy, to 1.
    """

    def __init__(self, decoder: Decoder, task: Task, candidates: int, penalty: float):
        self.candidates, self.penalty = candidates, penalty
        super().__init__(decoder, task)
        self.once = Look(decoder, candidates, penalty, self.static)
        width = self._hidden.shape[-1]
        hidden = np.zeros((self.rows, self.capacity, width), np.float32)
        for row, prompt in enumerate(task.prompts):
            hidden[row, self.start - len(prompt) : self.start] = self._hidden[row, : len(prompt)]
        self.state |= to_tensors({"hidden": hidden, "logits": self.logits})

    def _read(self):
        cache, (self._hidden, logits), mask = read(self.decoder, self.task, method="prefill_all")
        self._hidden = processes.whole(self._hidden)
        return cache, logits, mask

    def _first(self) -> None:
        self._run(1)
