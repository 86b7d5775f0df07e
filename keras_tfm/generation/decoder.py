"""The decode loop: a prompt read once, then one compiled step of fixed shape, again and again.

The state of a batch is a dict of tensors:

    cache       of the model's blocks; it lacks the token last chosen
    token       (batch,) int32, that token
    sequence    (batch, capacity) int32, prompts and what followed, ending together in slot `filled` - 1; -1 elsewhere
    filled      () int32, slots in use, the same for all rows
    step        () int32, tokens chosen so far
    done        (batch,) bool, rows that have ended
    log_probs   (batch, capacity) float32, of chosen tokens under the model, beside `sequence`; where they are asked for
    sampler     random state of a sampler, where there is one
    seen        (batch, vocabulary_size) float32, occurrences in prompt and text, where a setting asks
    counts      (batch, vocabulary_size) float32, occurrences in the text, where a setting asks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.generation import choosing
from keras_tfm.generation.program import Program, Tree, eagerly
from keras_tfm.generation.recorded import Kept
from keras_tfm.ops import kv_cache
from keras_tfm.ops.backend import NAME

State = dict[str, Any]


class Decoder:
    """The compiled programs of a language model, kept by the shapes and the kinds of settings that they serve.

    Args:
        model: A `CausalLM` or `Seq2SeqLM`.
        inductor: On torch, compile the steps, and record the reading of prompts.

    Attributes:
        traces: How often a program was traced: a prompt of another length in a known bucket adds nothing.
    """

    def __init__(self, model: keras.Model, inductor: bool = False):
        self.model, self.backbone, self.inductor = model, model.backbone, inductor
        self.config = model.backbone.config
        self.is_seq2seq = self.config.kind == "encoder_decoder"
        self.traces = 0
        self._programs: dict[Any, Program] = {}

    def program(
        self,
        name: str,
        function: Any,
        *key: Any,
        variables: Sequence[Any] = (),
        inductor: bool = False,
        consumes: bool = False,
    ) -> Program:
        """The program of this name and key, made if need be. `variables`: that it reads beside the model's."""
        found = self._programs.get((name, *key))
        if found is None:
            every = [*self.model.variables, *variables]
            found = self._programs[name, *key] = Program(every, function, self._traced, inductor, consumes)
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

    def empty_cache(
        self, batch: int, capacity: int, context: Any = None, dtype: str | None = None, spare: int = 0
    ) -> list:
        """A cache without tokens; of an encoder-decoder with the context's keys and values."""
        if context is None:
            return self.backbone.make_cache(batch, capacity, dtype, spare)

        def make(context):
            return self.backbone.make_cache(batch, capacity, dtype, spare, context)

        return self.program("context", make, batch, capacity, dtype, spare, tuple(context.shape))(context)

    def grow(self, cache: list, capacity: int, spare: int = 0, in_tiles: bool = False) -> list:
        """The cache with room for so many tokens; windowed blocks keep to their window and the spare ones.

        `in_tiles`: as of `kv_cache.grow`.
        """
        blocks = self.backbone.decoder_blocks if self.is_seq2seq else self.backbone.blocks
        grown = []
        for block, part in zip(blocks, cache, strict=True):
            window = block.attention.window
            wanted = capacity if window is None else min(capacity, window + spare)
            attention = kv_cache.grow(part["attention"], wanted, ring=window is not None, in_tiles=in_tiles)
            grown.append({**part, "attention": attention})
        return grown

    def slim(self, cache: list) -> list:
        """A cache as a loop carries it: what blocks keep alike, where their tokens stand, once for all of them.

        Keys and values are in the form in which XLA overwrites them.
        """
        slim: list[dict[str, Any]] = []
        for first, part in zip(self._firsts(cache), cache, strict=True):
            kept = {name: kv_cache.squeezed(x) for name, x in part["attention"].items()}
            if first < len(slim):
                del kept["positions"], kept["length"]
            slim.append({**part, "attention": kept})
        return slim

    def full(self, slim: list, like: list) -> list:
        """The inverse of `slim`; `like` is a cache of the same shapes."""
        full: list[dict[str, Any]] = []
        for first, part, given in zip(self._firsts(like), slim, like, strict=True):
            arrays = part["attention"]
            shapes = {name: tuple(x.shape) for name, x in given["attention"].items()}
            restored = {
                name: x if tuple(x.shape) == shapes[name] else ops.reshape(x, shapes[name])
                for name, x in arrays.items()
            }
            if first < len(full):
                restored |= {name: full[first]["attention"][name] for name in ("positions", "length")}
            full.append({**part, "attention": restored})
        return full

    def _firsts(self, cache: list) -> list[int]:
        """For each block the first whose cache is filled as its own is."""
        blocks = self.backbone.decoder_blocks if self.is_seq2seq else self.backbone.blocks
        kinds = [
            (block.attention.window, part["attention"]["positions"].shape[1])
            for block, part in zip(blocks, cache, strict=True)
        ]
        return [kinds.index(kind) for kind in kinds]

    # Programs ----------------------------------------------------------------------------------------------------------

    def prefill(self, cache: list, token_ids: np.ndarray, padding_mask: np.ndarray, context_mask: Any = None):
        """Read prompts: the cache with them, and the logits behind each row's last token, (batch, vocabulary_size)."""
        cache, (_, logits) = self._prefill(False, cache, token_ids, padding_mask, context_mask)
        return cache, logits

    def prefill_all(self, cache: list, token_ids: np.ndarray, padding_mask: np.ndarray, context_mask: Any = None):
        """As `prefill`, and in front of the logits the hidden states of all tokens, (batch, length, width) float32."""
        return self._prefill(True, cache, token_ids, padding_mask, context_mask)

    def _prefill(self, everything: bool, cache: list, *arguments: Any):
        def prefill(cache, token_ids, padding_mask, context_mask):
            hidden, cache = self.hidden(token_ids, padding_mask, cache, context_mask)
            places = ops.arange(padding_mask.shape[1], dtype="int32")[None, :]
            last = ops.max(ops.where(padding_mask, places, 0), axis=1)  # (batch,)
            newest = ops.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
            return cache, (ops.cast(hidden, "float32") if everything else (), self.logits(newest))

        if NAME == "torch" and not self.inductor:  # one run does not pay for recording it
            return eagerly(prefill, cache, *arguments)
        key = (everything, *shapes(cache), *(None if each is None else each.shape for each in arguments))
        return self.program("prefill", prefill, *key)(cache, *arguments)

    def first(self, logits: Tree, state: State, arrays: dict[str, Any], static: tuple, method: Any) -> State:
        """Choose the token that follows the prompts."""

        def first(logits, state, arrays):
            return method(logits, state, arrays, static)

        if NAME == "torch":
            return eagerly(first, logits, state, arrays)
        return self.program("first", first, method, static, *shapes(state), *names(arrays))(logits, state, arrays)

    def repeat(
        self,
        once: Any,
        state: State,
        arrays: dict[str, Any],
        until: int,
        context_mask: Any,
        kept: Kept,
        variables: Any = (),
    ) -> State:
        """The state after as many rounds as it takes to choose `until` tokens or to end every row; there must be room.

        Args:
            once: (state, arrays, context_mask) to the next state; hashable, and equal to what computes the same. Its
                `decoders` says whose the state's caches are.
            kept: On torch, the same from call to call: what is made of weights.
            variables: That it reads beside the model's.
        """

        def loop(state, arrays, context_mask, until):
            return while_going(lambda state: once(state, arrays, context_mask), state, until, once.decoders)

        key = (once, *shapes(state), *names(arrays), None if context_mask is None else context_mask.shape)
        if NAME == "torch":
            if "sampler" in state:  # whose random state cannot be recorded
                while is_going(state, until):
                    state = eagerly(once, state, arrays, context_mask)
                return state
            if not is_going(state, until):
                return state

            like = keras.tree.map_structure(lambda x: Shaped(tuple(x.shape)), state)  # the program outlives the state

            def step(slim, arrays, context_mask, until):
                after = once(whole(slim, like, once.decoders), arrays, context_mask)
                return is_going(after, until), carried(after, once.decoders)

            program = self.program("once", step, *key, variables=variables, inductor=self.inductor)
            slim = program.repeat(kept, carried(state, once.decoders), arrays, context_mask, np.int32(until))
            return whole(slim, like, once.decoders)
        program = self.program("loop", loop, *key, variables=variables, consumes=True)
        return program(state, arrays, context_mask, np.int32(until))


@dataclass(frozen=True)
class Shaped:
    """What has a shape, and no values."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One token for each row: read the one last chosen, then choose.

    Attributes:
        decoder: Of the model.
        method: Logits to the next state, as `advance`.
        static: See `Choosing.static`.
    """

    decoder: Decoder
    method: Any
    static: tuple

    @property
    def decoders(self) -> dict[str, Decoder]:
        """Whose the caches of the state are."""
        return {"cache": self.decoder}

    def __call__(self, state: State, arrays: dict[str, Any], context_mask: Any) -> State:
        """The state after it."""
        hidden, cache = self.decoder.hidden(state["token"][:, None], None, state["cache"], context_mask)
        return self.method(self.decoder.logits(hidden[:, 0]), {**state, "cache": cache}, arrays, self.static)


def while_going(step: Any, state: State, until: Any, decoders: dict[str, Decoder]) -> State:
    """The backend's loop over steps; `decoders` says whose the caches in the state are."""
    fixed = sorted(state)

    def given(values):
        return dict(zip(fixed, values, strict=True))

    def slim(state):
        state = carried(state, decoders)
        return tuple(state[name] for name in fixed)

    def going(*values):
        return is_going(given(values), until)

    def body(*values):
        return slim(step(whole(given(values), state, decoders)))

    return whole(given(ops.while_loop(going, body, slim(state))), state, decoders)


def is_going(state: State, until: Any) -> Any:
    """Whether there are tokens left to choose, a boolean tensor without dimensions."""
    return ops.logical_and(state["step"] < until, ops.logical_not(ops.all(state["done"])))


def carried(state: State, decoders: dict[str, Decoder]) -> State:
    """A state as a loop carries it."""
    return state | {name: decoder.slim(state[name]) for name, decoder in decoders.items()}


def whole(slim: State, like: State, decoders: dict[str, Decoder]) -> State:
    """The inverse of `carried`; `like` is a state of the same shapes."""
    return slim | {name: decoder.full(slim[name], like[name]) for name, decoder in decoders.items()}


def advance(logits: Any, state: State, arrays: dict[str, Any], static: tuple) -> State:
    """Choose a token for each row and write it down."""
    wanted, state = choosing.penalized(logits, arrays, state, state["step"], static), {**state}
    if static[3] is None:
        token = choosing.choose(wanted, arrays, state["step"], static)
    else:
        token, state["sampler"] = choosing.by_sampler(static[3], wanted, state["sampler"])
    return taken(token, logits, state, arrays)


def taken(token: Any, logits: Any, state: State, arrays: dict[str, Any]) -> State:
    """The state with the tokens chosen, (batch,) int32, written down."""
    step = state["step"]
    after = {**state, "filled": state["filled"] + 1, "step": step + 1}
    if "log_probs" in state:
        chosen = ops.take_along_axis(ops.log_softmax(logits, axis=-1), token[:, None], axis=1)  # (batch, 1)
        after["log_probs"] = write_columns(state["log_probs"], chosen, state["filled"])
    after["token"] = token = ops.where(state["done"], arrays["pad"], token)
    after["sequence"] = write_columns(state["sequence"], token[:, None], state["filled"])
    ended = ops.logical_or(ops.take(arrays["ends"], token, axis=0), step + 1 >= arrays["max_new_tokens"])
    after["done"] = ops.logical_or(state["done"], ended)
    for name in ("seen", "counts"):
        if name in state:
            ids = ops.arange(logits.shape[-1], dtype="int32")[None, :]
            after[name] = state[name] + ops.cast(ids == token[:, None], "float32")
    return after


def write_columns(into: Any, columns: Any, place: Any) -> Any:
    """(batch, slots, …) with (batch, new, …) in its slots from `place` on."""
    columns = ops.cast(columns, into.dtype)
    if NAME == "torch":
        import torch

        return into.index_copy(1, place.long() + torch.arange(columns.shape[1], device=into.device), columns)
    return ops.slice_update(into, (0, place, *[0] * (len(into.shape) - 2)), columns)


def shapes(tree: Tree) -> tuple[Any, ...]:
    """Shapes and dtypes of a tree's tensors, to tell programs apart by."""
    return tuple((tuple(x.shape), str(x.dtype)) for x in keras.tree.flatten(tree))


def names(arrays: dict[str, Any]) -> tuple[Any, ...]:
    """Names and shapes of settings."""
    return tuple((name, tuple(np.shape(arrays[name]))) for name in sorted(arrays))


def decoder_of(model: Any, inductor: bool = False) -> Decoder:
    """The model's decoder; a new one where the model's variables are others than before, as after `quantize`."""
    variables = tuple(id(variable) for variable in model.variables)
    known: tuple[int, ...] | None
    decoders: dict[bool, Decoder]
    known, decoders = getattr(model, "_decoders", None) or (None, {})
    if known != variables:
        decoders = {}
        object.__setattr__(model, "_decoders", (variables, decoders))
    if inductor not in decoders:
        decoders[inductor] = Decoder(model, inductor)
    return decoders[inductor]
