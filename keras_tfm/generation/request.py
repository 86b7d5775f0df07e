"""What a call of `generate` asks for, checked before anything is computed, and the form of what it gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.generation.batch import Batch, Prefix, Task
from keras_tfm.generation.chat import chat_ids, is_chat
from keras_tfm.generation.contrastive import Contrastive
from keras_tfm.generation.decoder import decoder_of
from keras_tfm.generation.settings import Choosing
from keras_tfm.generation.speculative import Draft, Lookup, Rows, Speculative
from keras_tfm.generation.text import TextStream
from keras_tfm.layers.base import check_names
from keras_tfm.models.generative import Generated
from keras_tfm.ops.backend import NAME

DEFAULT_LENGTH = 128
UNCUT = 1 << 30  # tokens: a prompt that is too long is refused, not shortened


class Request:
    """What a call asks for, checked before anything is computed.

    Args: those of `Generative.generate`.

    Attributes:
        prompts: Ids of each row, on the decoder's side.
        sources: Ids of each row's source, of an encoder-decoder.
        single: One prompt was given, not a list.
        is_text: Strings were given, and strings are wanted.
    """

    def __init__(
        self,
        model: Any,
        prompts: Any,
        max_new_tokens: Any = None,
        stop: Any = (),
        prefix: Prefix | None = None,
        num_return_sequences: int = 1,
        num_copies: int = 1,
        draft_model: Any = None,
        num_speculative_tokens: int | None = None,
        penalty_alpha: float | None = None,
        cache_dtype: str | None = None,
        jit_compile: bool | None = None,
        **options: Any,
    ):
        self.model, self.prefix = model, prefix
        self.inductor = checked_jit(jit_compile)
        self.cache_dtype = checked_dtype(cache_dtype)
        check_names("generate", options, [field.name for field in dataclasses.fields(Choosing)])
        metadata = model.backbone.config.metadata or {}
        tokenizer = model.tokenizer
        rows, self.single, self.is_text = token_rows(model, prompts)
        if not isinstance(num_return_sequences, int) or num_return_sequences < 1:
            raise ValueError(f"num_return_sequences must be an int of at least 1; got {num_return_sequences!r}.")
        self.returned = num_return_sequences
        self.copies = copies = num_return_sequences * num_copies
        special = {
            role: metadata[f"{role}_token_id"]
            if metadata.get(f"{role}_token_id") is not None
            else tokenizer.special_id(role)
            if tokenizer is not None
            else None
            for role in ("bos", "eos", "pad")
        }
        self.stops, ids = stops_of(stop)
        outside = [token for token in ids if not 0 <= token < model.vocabulary_size]
        if outside:
            raise ValueError(f"stop has ids outside of the vocabulary of {model.vocabulary_size}: {outside}.")
        if self.stops and tokenizer is None:
            raise ValueError(f"stop={self.stops} are strings, and the model has no tokenizer to find them with.")
        ends = special["eos"]
        self.ends = [*([] if ends is None else [ends] if isinstance(ends, int) else ends), *ids]
        self.pad = special["pad"] if special["pad"] is not None else (self.ends or [0])[0]
        self.sources: list[list[int]] | None = None
        self.forced_end: int | None = None
        if model.backbone.config.kind == "encoder_decoder":
            self.sources = rows
            start = metadata.get("decoder_start_token_id")
            start = special["bos"] if start is None else start
            if start is None:
                raise ValueError(
                    "The model's config names no decoder_start_token_id, which the decoder begins with. "
                    "Put it into the config's metadata."
                )
            rows = [[start] for _ in rows]
            forced = metadata.get("forced_bos_token_id")
            if forced is not None and not options.get("forced_tokens"):
                options["forced_tokens"] = [forced]
            end = metadata.get("forced_eos_token_id")
            self.forced_end = end[0] if isinstance(end, list) else end
        if prefix is not None:
            if self.sources is not None:
                raise ValueError("A prefix is read by a decoder; this model's prompts are read by its encoder.")
            if cache_dtype is not None:
                raise ValueError("A prefix has its cache already; give cache_dtype to model.prefix.")
            if not isinstance(prefix, Prefix):
                raise ValueError(f"prefix must come from model.prefix(text); got {type(prefix).__name__}.")
            prefix.check(model)
            begins = [special["bos"]] if self.is_text and special["bos"] is not None else []  # which the prefix has
            rows = [row[1:] if row[:1] == begins else row for row in rows]
            rows = [[*prefix.token_ids.tolist(), *row] for row in rows]
        for index, row in enumerate(rows):
            if not row:
                if special["bos"] is None:
                    raise ValueError(f"Prompt {index} is empty, and the model has no token to begin with.")
                row.append(special["bos"])
        self.prompts = [row for row in rows for _ in range(copies)]
        if self.sources is not None:
            self.sources = [row for row in self.sources for _ in range(copies)]
        if callable(options.get("processors")):
            options["processors"] = (options["processors"],)
        self.contrast = None if penalty_alpha is None else contrast_of(penalty_alpha, options)
        self.choosing = Choosing(**options)
        self.choosing.check(model.vocabulary_size)
        if self.inductor and self.choosing.sampler is not None:
            raise ValueError("jit_compile=True compiles no step of a sampler, whose random state is its own.")
        if self.returned > 1 and not self.choosing.draws and self.choosing.sampler is None:
            raise ValueError(
                f"num_return_sequences={self.returned} without temperature or beams would be the same text each time."
            )
        if self.contrast is not None and (self.choosing.draws or prefix is not None or draft_model is not None):
            raise ValueError("Contrastive search (penalty_alpha) takes no draws, no prefix and no draft_model.")
        self.max_new_tokens = self._lengths(max_new_tokens)
        self._check_room()
        self.proposals = None
        if draft_model is not None:
            self.proposals = self._proposals(draft_model)
        elif num_speculative_tokens is not None:
            raise ValueError("num_speculative_tokens is of a draft_model; give one, or 'prompt_lookup'.")
        self.proposed = 5 if num_speculative_tokens is None else num_speculative_tokens
        if not isinstance(self.proposed, int) or self.proposed < 1:
            raise ValueError(f"num_speculative_tokens must be an int of at least 1; got {num_speculative_tokens!r}.")
        fewest = self.choosing.min_new_tokens
        if fewest is not None and np.max(fewest) > self.max_new_tokens.max():
            raise ValueError(f"min_new_tokens={fewest} exceeds max_new_tokens={self.max_new_tokens.max()}.")

    def _lengths(self, given: Any) -> np.ndarray:
        """max_new_tokens of each row."""
        if given is None:
            limit = self.model.backbone.config.max_sequence_length
            room = DEFAULT_LENGTH if limit is None else limit - max(map(len, self.prompts))
            given = min(DEFAULT_LENGTH, max(room, 0))
        values = np.atleast_1d(np.asarray(given, dtype=object))
        values = values if len(values) == 1 else values.repeat(self.copies)
        if len(values) not in (1, len(self.prompts)) or not all(
            isinstance(value, (int, np.integer)) and value >= 0 for value in values
        ):
            raise ValueError(f"max_new_tokens must be an int, or one for each prompt, none negative; got {given!r}.")
        return np.broadcast_to(values.astype(np.int32), (len(self.prompts),)).copy()

    def _check_room(self) -> None:
        limit = self.model.backbone.config.max_sequence_length
        if limit is None:
            return
        for side, rows, extra in (("prompt", self.prompts, self.max_new_tokens), ("source", self.sources, None)):
            for index, row in enumerate(rows or []):
                more = 0 if extra is None else int(extra[index])
                if len(row) + more > limit:
                    raise ValueError(
                        f"The {side} {index} has {len(row)} tokens"
                        + (f" and max_new_tokens={more} may follow" if more else "")
                        + f"; the model reads at most max_sequence_length={limit}. Shorten the {side}"
                        + (", ask for fewer tokens," if more else "")
                        + " or load the model with a larger max_sequence_length, if its positions allow that."
                    )

    def _proposals(self, draft: Any) -> Draft | Lookup:
        """Where the tokens of speculative decoding come from."""
        if self.choosing.sampler is not None:
            raise ValueError("A sampler's choice cannot be foretold: draft_model takes temperature, top_k, top_p, …")
        if isinstance(draft, str):
            if draft != "prompt_lookup":
                raise ValueError(f"draft_model must be a model or 'prompt_lookup'; got {draft!r}.")
            return Lookup()
        if type(draft) is not type(self.model):
            raise ValueError(f"draft_model must be a {type(self.model).__name__} too; got {type(draft).__name__}.")
        if draft.vocabulary_size != self.model.vocabulary_size:
            raise ValueError(
                f"draft_model must share the vocabulary: its vocabulary_size is {draft.vocabulary_size}, "
                f"the model's {self.model.vocabulary_size}."
            )
        limit = draft.backbone.config.max_sequence_length
        most = max(len(row) + int(more) for row, more in zip(self.prompts, self.max_new_tokens, strict=True))
        most = max(most, *map(len, self.sources or [[]]), 0)
        if limit is not None and most > limit:
            raise ValueError(f"draft_model reads at most max_sequence_length={limit} tokens; {most} may be needed.")
        return Draft(decoder_of(draft, self.inductor))

    def task(self, log_probs: bool = True) -> Task:
        """What is to be written, and whether with log-probabilities."""
        return Task(
            self.prompts,
            self.choosing,
            self.max_new_tokens,
            self.ends,
            self.pad,
            self.sources,
            self.prefix,
            self.forced_end,
            self.cache_dtype,
            log_probs=log_probs,
        )

    def batch(self, log_probs: bool = True) -> Batch | Rows:
        """The work, as whoever chooses the tokens does it; without log-probabilities it is a little less."""
        task = self.task(log_probs)
        decoder = decoder_of(self.model, self.inductor)
        if self.contrast is not None:
            candidates, penalty = self.contrast
            return Contrastive(decoder, task, min(candidates, self.model.vocabulary_size), penalty)
        if self.proposals is None:
            return Batch(decoder, task)
        limits = [self.model.backbone.config.max_sequence_length]
        if isinstance(self.proposals, Draft):
            limits.append(self.proposals.decoder.config.max_sequence_length)
        limit = min((limit for limit in limits if limit is not None), default=None)
        rows = range(len(self.prompts))
        return Rows([Speculative(decoder, task.row(row), self.proposals, self.proposed, limit) for row in rows])

    def streams(self) -> list[TextStream]:
        """The text of each row, as it comes."""
        before = [[] if self.sources is not None else prompt for prompt in self.prompts]
        return [TextStream(self.model.tokenizer, prompt, self.stops) for prompt in before]


def checked_jit(jit_compile: bool | None) -> bool:
    """Whether Inductor is to compile the steps: on torch, if asked for."""
    if jit_compile not in (None, True, False):
        raise ValueError(f"jit_compile must be True, False or None; got {jit_compile!r}.")
    if NAME != "torch":
        if jit_compile is False:
            raise ValueError(f"On {NAME} generation is always compiled; jit_compile=False is for torch.")
        return False
    return bool(jit_compile)


def checked_dtype(dtype: Any) -> str | None:
    """A cache's dtype.

    Raises:
        ValueError: for what keys and values cannot be kept in.
    """
    known = ("float32", "bfloat16", "float16", "int8")
    if dtype not in (None, *known):
        raise ValueError(f"cache_dtype must be one of {known}; got {dtype!r}.")
    return dtype


def contrast_of(penalty_alpha: Any, options: dict[str, Any]) -> tuple[int, float]:
    """Candidates and penalty of contrastive search; takes top_k, the candidates, out of the options."""
    candidates = options.pop("top_k", None)
    candidates = 4 if candidates is None else candidates
    if not isinstance(candidates, int) or candidates < 2:
        raise ValueError(f"Contrastive search looks at top_k candidates, an int of at least 2; got {candidates!r}.")
    if not isinstance(penalty_alpha, (int, float)) or not 0 <= penalty_alpha <= 1:
        raise ValueError(f"penalty_alpha must be a number from 0 to 1; got {penalty_alpha!r}.")
    return candidates, float(penalty_alpha)


def text_of(request: Request, row: int, ids: np.ndarray) -> str | None:
    """The text of a row's ids; None without a tokenizer."""
    if request.model.tokenizer is None:
        return None
    stream = request.streams()[row]
    return stream.feed(without_end(ids, request.ends), last=True)


def arranged(request: Request, results: list[Generated], details: bool, returned: int | None = None) -> Any:
    """Results, `returned` for each prompt, in the form of what was asked."""
    returned = returned or request.returned
    outputs: list[Any] = list(results)
    if not details:
        outputs = [result.text if request.is_text else result.token_ids for result in results]
    if returned > 1:
        outputs = [outputs[i : i + returned] for i in range(0, len(outputs), returned)]
    return outputs[0] if request.single else outputs


def trimmed(tokens: np.ndarray, ends: Sequence[int], limit: int) -> np.ndarray:
    """A row's ids up to its end, that included."""
    tokens = tokens[:limit]
    places = np.flatnonzero(np.isin(tokens, ends))
    return tokens[: places[0] + 1] if len(places) else tokens


def without_end(ids: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """Ids without the one that ended them."""
    return ids[:-1] if len(ids) and ids[-1] in ends else ids


def stops_of(stop: Any) -> tuple[list[str], list[int]]:
    """Stop strings and stop ids of what was given."""
    given: list[Any] = [stop]
    if stop is None or isinstance(stop, (list, tuple, set, frozenset)):
        given = list(stop or ())
    for item in given:
        if not isinstance(item, (str, int, np.integer)) or isinstance(item, bool) or item == "":
            raise ValueError(f"stop must be strings or token ids, none of them empty; got {item!r}.")
    return [s for s in given if isinstance(s, str)], [int(s) for s in given if not isinstance(s, str)]


def token_rows(model: Any, prompts: Any) -> tuple[list[list[int]], bool, bool]:
    """Prompts as lists of ids; whether it was one; whether it was text.

    Raises:
        ValueError: for anything but strings and ids, and for ids outside of the vocabulary.
    """
    if isinstance(prompts, str):
        rows, single, text = list[Any]([prompts]), True, True
    elif is_chat(prompts):
        return [chat_ids(model._require_tokenizer(), prompts)], True, True
    elif isinstance(prompts, (list, tuple)) and prompts and all(is_chat(each) for each in prompts):
        return [chat_ids(model._require_tokenizer(), each) for each in prompts], False, True
    elif isinstance(prompts, dict):
        ids = np.asarray(prompts["token_ids"])
        mask = np.asarray(prompts.get("padding_mask", np.ones_like(ids)), bool)
        rows, single, text = [row[real].tolist() for row, real in zip(ids, mask, strict=True)], False, False
    else:
        if not isinstance(prompts, (list, tuple)):
            if not getattr(prompts, "shape", ()):
                raise ValueError(f"Prompts must be strings or token ids; got {prompts!r}.")
            prompts = ops.convert_to_numpy(prompts)
        rows = list(prompts)
        if not rows:
            raise ValueError("There are no prompts.")
        text = all(isinstance(row, str) for row in rows)
        single = not text and all(isinstance(row, (int, np.integer)) for row in rows)
        rows = [rows] if single else rows
    if text:
        encodings = model._require_tokenizer().encode([str(row) for row in rows], UNCUT)
        return [list(encoding.ids) for encoding in encodings], single, True
    try:
        result = [[int(token) for token in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError("Prompts must be strings, or token ids; got something else among them.") from error
    for index, row in enumerate(result):
        if row and not 0 <= min(row) <= max(row) < model.vocabulary_size:
            raise ValueError(f"Prompt {index} has ids outside of the vocabulary of {model.vocabulary_size}.")
    return result, single, False
