"""Beam search: several continuations of each prompt at once, the likeliest kept (Freitag & Al-Onaizan 2017).

Which hypotheses are kept, when the search ends and how lengths are weighed are `transformers`' conventions, whose numbers
published models were reported with.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.generation import choosing
from keras_tfm.generation.batch import Batch
from keras_tfm.generation.decoder import State, decoder_of, write_columns
from keras_tfm.generation.program import to_tensors
from keras_tfm.generation.request import Request, arranged, text_of, trimmed
from keras_tfm.models.generative import Generated
from keras_tfm.ops import kv_cache, processes

NONE = -1e9  # score of a hypothesis that is none


@dataclasses.dataclass(frozen=True)
class Plan:
    """The search, as what a program depends on.

    Attributes:
        beams: Hypotheses that are followed for each prompt.
        candidates: Continuations that are looked at, so many that `beams` go on whichever of them end.
        length_penalty: A hypothesis scores its log-probability over length ** length_penalty.
        early_stopping: True: as soon as there are `beams` finished ones; False: when the best running one would not
            beat them at its present length; "never": when it could not at any length.
    """

    beams: int
    candidates: int
    length_penalty: float
    early_stopping: bool | str

    def __call__(self, logits: Any, state: State, arrays: dict[str, Any], static: tuple) -> State:
        """`decoder.advance`, for beams."""
        step, beams = state["step"], self.beams
        raw = ops.log_softmax(logits, axis=-1)  # (batch * beams, vocabulary)
        vocabulary = raw.shape[-1]
        total = ops.reshape(choosing.penalized(raw, arrays, state, step, static), (-1, beams, vocabulary))
        total = ops.reshape(total + state["scores"][:, :, None], (-1, beams * vocabulary))
        scores, index = ops.top_k(total, self.candidates)  # (batch, candidates)
        index = ops.cast(index, "int32")
        beam, token = index // vocabulary, index % vocabulary

        batch, capacity = ops.shape(scores)[0], state["sequence"].shape[1]
        rows = ops.reshape(ops.arange(batch, dtype="int32")[:, None] * beams + beam, (-1,))
        flat = ops.reshape(token, (-1, 1))
        chosen = ops.take_along_axis(ops.take(raw, rows, axis=0), flat, axis=1)
        sequence = write_columns(ops.take(state["sequence"], rows, axis=0), flat, state["filled"])
        log_probs = write_columns(ops.take(state["log_probs"], rows, axis=0), chosen, state["filled"])
        candidates = {
            "sequence": ops.reshape(sequence, (batch, -1, capacity)),
            "log_probs": ops.reshape(log_probs, (batch, -1, capacity)),
            "beam": beam,
            "token": token,
        }
        last = step + 1 >= ops.reshape(arrays["max_new_tokens"], (-1, beams))[:, :1]
        ended = ops.logical_or(ops.take(arrays["ends"], token, axis=0), last)

        after = {**state, "filled": state["filled"] + 1, "step": step + 1}
        self._finish(after, state, candidates, scores, ended)
        running, picked = ops.top_k(scores + ops.where(ended, NONE, 0.0), beams)
        going = {name: pick(array, picked) for name, array in candidates.items()}
        after["scores"] = running
        after["token"] = ops.reshape(going["token"], (-1,))
        for name in ("sequence", "log_probs"):
            after[name] = ops.reshape(going[name], (-1, capacity))
        origin = ops.reshape(ops.arange(batch, dtype="int32")[:, None] * beams + going["beam"], (-1,))
        after["cache"] = [
            {**part, "attention": kv_cache.gather_rows(part["attention"], origin)} for part in state["cache"]
        ]
        for name in ("seen", "counts"):
            if name in state:
                ids = ops.arange(vocabulary, dtype="int32")[None, :]
                occurs = ops.cast(ids == after["token"][:, None], "float32")
                after[name] = ops.take(state[name], origin, axis=0) + occurs
        self._judge(after, arrays, ended)
        return after

    def _finish(self, after: State, state: State, candidates: dict[str, Any], scores: Any, ended: Any) -> None:
        """Put hypotheses that ended among the best of their prompt, if they belong there."""
        first = ops.arange(self.candidates, dtype="int32")[None, :] < self.beams  # the others are there to go on
        ended = ops.logical_and(ended, first)
        length = ops.cast(state["step"] + 1, "float32")
        final = scores / length**self.length_penalty
        allowed = ops.logical_and(ended, state["hopeful"][:, None])
        if self.early_stopping is True:
            allowed = ops.logical_and(allowed, ops.logical_not(ops.all(state["finished"], axis=1, keepdims=True)))
        final = final + ops.where(allowed, 0.0, NONE)
        merged = ops.concatenate([state["best_scores"], final], axis=1)
        after["best_scores"], picked = ops.top_k(merged, self.beams)
        for best, name in (("best", "sequence"), ("best_log_probs", "log_probs")):
            after[best] = pick(ops.concatenate([state[best], candidates[name]], axis=1), picked)
        after["finished"] = pick(ops.concatenate([state["finished"], ended], axis=1), picked)

    def _judge(self, after: State, arrays: dict[str, Any], ended: Any) -> None:
        """Whether a prompt's finished hypotheses might still be beaten, and whether the search goes on."""
        length = ops.cast(after["step"], "float32")
        if self.early_stopping == "never" and self.length_penalty > 0:
            limits = ops.reshape(arrays["max_new_tokens"], (-1, self.beams))[:, 0]
            length = ops.cast(limits, "float32")
        best = after["scores"][:, 0] / length**self.length_penalty  # (batch,)
        worst = ops.where(after["finished"], ops.min(after["best_scores"], axis=1, keepdims=True), NONE)
        after["hopeful"] = ops.logical_and(after["hopeful"], ops.any(best[:, None] > worst, axis=1))
        done = ops.logical_or(ops.logical_not(ops.any(after["hopeful"])), ops.all(ended))
        if self.early_stopping is True:
            done = ops.logical_or(done, ops.all(after["finished"]))
        after["done"] = ops.reshape(done, (1,))


def pick(array: Any, index: Any) -> Any:
    """array[row, index[row]]: (batch, many, …) and (batch, picked) to (batch, picked, …)."""
    index = ops.cast(index, "int32")
    return ops.take_along_axis(array, index if len(array.shape) == 2 else index[:, :, None], axis=1)


def generate(
    model: Any,
    prompts: Any,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    num_return_sequences: int = 1,
    return_details: bool = False,
    **options: Any,
) -> Any:
    """`model.generate` with `num_beams`.

    Args:
        num_beams: Hypotheses that are followed for each prompt.
        length_penalty: Scores are log-probabilities over length ** length_penalty: above 0, longer texts gain.
        early_stopping: When a prompt's search ends; see `Plan`.
        num_return_sequences: Best hypotheses to give for each prompt, at most num_beams.
        options: Those of `generate` that do not draw; stop strings excepted.
    """
    if not isinstance(num_beams, int) or num_beams < 1:
        raise ValueError(f"num_beams must be an int of at least 1; got {num_beams!r}.")
    if not isinstance(num_return_sequences, int) or not 1 <= num_return_sequences <= num_beams:
        raise ValueError(f"num_return_sequences must be from 1 to num_beams={num_beams}; got {num_return_sequences!r}.")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f"early_stopping must be True, False or 'never'; got {early_stopping!r}.")
    request = Request(model, prompts, num_copies=num_beams, **options)
    if request.proposals is not None or request.contrast is not None or request.choosing.sampler is not None:
        raise ValueError("num_beams is a search of its own; draft_model, penalty_alpha and sampler are others.")
    if request.choosing.draws:
        raise ValueError("Beam search takes the likeliest; temperature, top_k, top_p, min_p, typical_p and seed draw.")
    if request.stops:
        raise ValueError(
            f"stop={request.stops}: beam search ends at ids, not at strings. Give the ids, or no num_beams."
        )
    lengths = request.max_new_tokens.reshape(-1, num_beams)[:, 0]
    if lengths.min() < 1:
        raise ValueError("max_new_tokens must be at least 1 for beam search.")
    ends = len(set(request.ends))
    candidates = min(max(2, 1 + ends) * num_beams, num_beams * model.vocabulary_size)
    plan = Plan(num_beams, candidates, float(length_penalty), early_stopping)
    batch = Batch(decoder_of(model, request.inductor), request.task(), plan)
    prompts_count, capacity = batch.rows // num_beams, batch.capacity
    scores = np.full((prompts_count, num_beams), NONE, np.float32)
    scores[:, 0] = 0.0
    batch.state |= to_tensors(
        {
            "scores": scores,
            "best": np.full((prompts_count, num_beams, capacity), -1, np.int32),
            "best_log_probs": np.zeros((prompts_count, num_beams, capacity), np.float32),
            "best_scores": np.full((prompts_count, num_beams), NONE, np.float32),
            "finished": np.zeros((prompts_count, num_beams), bool),
            "hopeful": np.ones((prompts_count,), bool),
            "done": np.zeros((1,), bool),
        }
    )
    batch.advance(batch.limit)
    return arranged(request, _results(request, batch, num_return_sequences), return_details, num_return_sequences)


def _results(request: Request, batch: Batch, returned: int) -> list[Generated]:
    """The best hypotheses of each prompt, best first."""
    best, log_probs, scores = (processes.whole(batch.state[name]) for name in ("best", "best_log_probs", "best_scores"))
    beams, results = best.shape[1], []
    for prompt in range(len(best)):
        for beam in range(returned):
            row = prompt * beams
            ids = best[prompt, beam, batch.start :]
            ids = trimmed(ids[ids >= 0], request.ends, int(request.max_new_tokens[row]))
            text = text_of(request, row, ids)
            reason = "end" if len(ids) and ids[-1] in request.ends else "length"
            values = log_probs[prompt, beam, batch.start : batch.start + len(ids)]
            results.append(Generated(text, ids, values, reason, float(scores[prompt, beam])))
    return results
