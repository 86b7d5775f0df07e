"""The decode loop: a prompt read once, then one compiled step of fixed shape, again and again.

The state of a batch is a dict of tensors:

    cache       of the model's blocks; it lacks the token last chosen
    token       (batch,) int32, that token
    sequence    (batch, capacity) int32, prompts and what followed, ending together in slot `filled` - 1; -1 elsewhere
    filled      () int32, slots in use, the same for all rows
    step        () int32, tokens chosen so far
    done        (batch,) bool, rows that have ended
    log_probs   (batch, capacity) float32, of chosen tokens under the model, beside `sequence`
    seen        (batch, vocabulary_size) float32, occurrences in prompt and text, where a setting asks
    counts      (batch, vocabulary_size) float32, occurrences in the text, where a setting asks
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.generation import choosing
from keras_tfm.generation.program import Program, Tree, eagerly
from keras_tfm.ops import kv_cache
from keras_tfm.ops.backend import NAME

State = dict[str, Any]


class Decoder:
    """The compiled programs of a language model, kept by the shapes and the kinds of settings that they serve.

    Args:
        model: A `CausalLM` or `Seq2SeqLM`.

    Attributes:
        traces: How often a program was traced: a prompt of another length in a known bucket adds nothing.
    """

    def __init__(self, model: keras.Model):
        self.model, self.backbone = model, model.backbone
        self.config = model.backbone.config
        self.is_seq2seq = self.config.kind == "encoder_decoder"
        self.traces = 0
        self._programs: dict[Any, Program] = {}

    def program(self, name: str, function: Any, *key: Any) -> Program:
        """The program of this name and key, made if need be."""
        found = self._programs.get((name, *key))
        if found is None:
            found = self._programs[name, *key] = Program(self.model, function, self._traced)
        return found

    def _traced(self) -> None:
        self.traces += 1

    # What the model computes -------------------------------------------------------------------------------------------

    def hidden(self, token_ids, padding_mask, cache, context_mask=None):
        """Hidden states of a chunk, (batch, chunk, width), and the cache with it."""
        prefix = "decoder_" if self.is_seq2seq else ""
        inputs = {f"{prefix}token_ids": token_ids}
        if padding_mask is not None:
            inputs[f"{prefix}padding_mask"] = padding_mask
        if context_mask is not None:
            inputs["padding_mask"] = context_mask
        return self.backbone.cached_call(inputs, cache)

    def logits(self, hidden):
        """(…, width) to (…, vocabulary_size) float32."""
        return ops.cast(self.backbone.token_embedding(hidden, reverse=True), "float32")

    def encode(self, token_ids: np.ndarray, padding_mask: np.ndarray) -> Tree:
        """An encoder-decoder's hidden states of the source, (batch, bucket, width)."""

        def encode(token_ids, padding_mask):
            return self.backbone.encode({"token_ids": token_ids, "padding_mask": padding_mask})

        return self.program("encode", encode, token_ids.shape)(token_ids, padding_mask)

    def empty_cache(self, batch: int, capacity: int, context: Any = None) -> list:
        """A cache without tokens; of an encoder-decoder with the context's keys and values."""
        if context is None:
            return self.backbone.make_cache(batch, capacity)

        def make(context):
            return self.backbone.make_cache(batch, capacity, context=context)

        return self.program("context", make, batch, capacity, tuple(context.shape))(context)

    def grow(self, cache: list, capacity: int) -> list:
        """The cache with room for so many tokens; windowed blocks keep to their window."""
        blocks = self.backbone.decoder_blocks if self.is_seq2seq else self.backbone.blocks
        return [
            {**part, "attention": kv_cache.grow(part["attention"], min(capacity, block.attention.window or capacity))}
            for block, part in zip(blocks, cache, strict=True)
        ]

    # Programs ----------------------------------------------------------------------------------------------------------

    def prefill(self, cache: list, token_ids: np.ndarray, padding_mask: np.ndarray, context_mask: Any = None):
        """Read prompts: the cache with them, and the logits behind each row's last token, (batch, vocabulary_size)."""

        def prefill(cache, token_ids, padding_mask, context_mask):
            hidden, cache = self.hidden(token_ids, padding_mask, cache, context_mask)
            places = ops.arange(padding_mask.shape[1], dtype="int32")[None, :]
            last = ops.max(ops.where(padding_mask, places, 0), axis=1)  # (batch,)
            hidden = ops.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
            return cache, self.logits(hidden)

        key = (token_ids.shape, *shapes(cache), None if context_mask is None else context_mask.shape)
        run = self.program("prefill", prefill, *key)
        if NAME == "torch":  # one run does not pay for recording it
            return eagerly(prefill, cache, token_ids, padding_mask, context_mask)
        return run(cache, token_ids, padding_mask, context_mask)

    def first(self, logits: Tree, state: State, arrays: dict[str, Any], static: tuple, method: Any) -> State:
        """Choose the token that follows the prompts."""

        def first(logits, state, arrays):
            return method(logits, state, arrays, static)

        if NAME == "torch":
            return eagerly(first, logits, state, arrays)
        return self.program("first", first, method, static, *shapes(state), *names(arrays))(logits, state, arrays)

    def run(
        self, state: State, arrays: dict[str, Any], static: tuple, until: int, context_mask: Any, method: Any
    ) -> State:
        """Choose tokens until `until` of them were chosen or every row has ended; there must be room for them."""

        def step(state, arrays, context_mask):
            hidden, cache = self.hidden(state["token"][:, None], None, state["cache"], context_mask)
            return method(self.logits(hidden[:, 0]), {**state, "cache": cache}, arrays, static)

        def loop(state, arrays, context_mask, until):
            return while_going(lambda state: step(state, arrays, context_mask), state, until)

        key = (method, static, *shapes(state), *names(arrays), None if context_mask is None else context_mask.shape)
        if NAME == "torch":
            run = self.program("step", step, *key)
            while int(state["step"]) < until and not bool(state["done"].all()):
                state = run(state, arrays, context_mask)
            return state
        return self.program("loop", loop, *key)(state, arrays, context_mask, np.int32(until))


def while_going(step: Any, state: State, until: Any) -> State:
    """The backend's loop over steps."""
    fixed = sorted(state)

    def going(*values):
        state = dict(zip(fixed, values, strict=True))
        return ops.logical_and(state["step"] < until, ops.logical_not(ops.all(state["done"])))

    def body(*values):
        after = step(dict(zip(fixed, values, strict=True)))
        return tuple(after[name] for name in fixed)

    values = ops.while_loop(going, body, tuple(state[name] for name in fixed))
    return dict(zip(fixed, values, strict=True))


def advance(logits: Any, state: State, arrays: dict[str, Any], static: tuple) -> State:
    """Choose a token for each row and write it down."""
    step = state["step"]
    log_probs = ops.log_softmax(logits, axis=-1)
    token = choosing.choose(choosing.penalized(logits, arrays, state, step, static), arrays, step, static)
    chosen = ops.take_along_axis(log_probs, token[:, None], axis=1)  # (batch, 1)
    token = ops.where(state["done"], arrays["pad"], token)
    after = {
        **state,
        "token": token,
        "sequence": write_column(state["sequence"], token[:, None], state["filled"]),
        "log_probs": write_column(state["log_probs"], chosen, state["filled"]),
        "filled": state["filled"] + 1,
        "step": step + 1,
    }
    ended = ops.logical_or(ops.take(arrays["ends"], token, axis=0), step + 1 >= arrays["max_new_tokens"])
    after["done"] = ops.logical_or(state["done"], ended)
    for name in ("seen", "counts"):
        if name in state:
            ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
            after[name] = state[name] + ops.cast(ids == token[:, None], "float32")
    return after


def write_column(into: Any, column: Any, place: Any) -> Any:
    """(batch, slots) with (batch, 1) in a slot."""
    if NAME == "torch":
        return into.index_copy(1, place.reshape(1).long(), column.to(into.dtype))
    return ops.slice_update(into, (0, place), ops.cast(column, into.dtype))


def shapes(tree: Tree) -> tuple[Any, ...]:
    """Shapes and dtypes of a tree's tensors, to tell programs apart by."""
    return tuple((tuple(x.shape), str(x.dtype)) for x in keras.tree.flatten(tree))


def names(arrays: dict[str, Any]) -> tuple[Any, ...]:
    """Names and shapes of settings."""
    return tuple((name, tuple(np.shape(arrays[name]))) for name in sorted(arrays))
