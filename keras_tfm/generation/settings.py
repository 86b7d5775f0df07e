"""What a caller says about choosing tokens, checked, and as arrays with a value for each row."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Settings that may differ from row to row: lowest and highest value, and whether these are excluded.
RANGES: dict[str, tuple[float, float, bool]] = {
    "temperature": (0.0, np.inf, False),
    "top_k": (1, np.inf, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "typical_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, np.inf, True),
    "presence_penalty": (-np.inf, np.inf, False),
    "frequency_penalty": (-np.inf, np.inf, False),
    "min_new_tokens": (0, np.inf, False),
}
SAMPLING = ("top_k", "top_p", "min_p", "typical_p")  # of no effect on the most likely token
WHOLE = ("top_k", "min_new_tokens")
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class Choosing:
    """How the next token is chosen from logits.

    Attributes:
        temperature: Divides logits; 0 takes the most likely token. Default: 0, and 1 where anything else below asks for
            a draw.
        top_k: Draw among so many of the most likely.
        top_p: Draw among the fewest that have this probability together (Holtzman et al. 2020).
        min_p: Draw among those with at least this share of the most likely one's probability (Nguyen et al. 2024).
        typical_p: Draw among those nearest the expected information that have this probability (Meister et al. 2023).
        repetition_penalty: Divides the logits of tokens that prompt or text have, where positive; multiplies negative
            ones (Keskar et al. 2019).
        presence_penalty, frequency_penalty: Subtracted from the logits of generated tokens, once, and per occurrence.
        no_repeat_ngram: No sequence of so many tokens twice, the prompt's included (Paulus et al. 2018).
        min_new_tokens: No end before so many tokens.
        forbidden_tokens: Ids that are never chosen.
        forced_tokens: Ids of the first tokens, None for a free one.
        processors: Called with (token_ids, logits) and giving logits: token_ids (batch, slots) int32, right-aligned up to
            the token last chosen, -1 elsewhere; logits (batch, vocabulary_size) float32. Of backend ops only.
        seed: Of the draws: the same seed gives the same tokens. Row r of a batch draws from the seed's stream r.
        sampler: In place of the draw: an object with `get_next_token(probabilities)`, (batch, vocabulary_size) float32 to
            (batch,) ids, `temperature` and `variables`, as KerasHub's samplers are.

    The first six, both penalties and min_new_tokens may be lists with a value for each prompt.
    """

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    typical_p: Any = None
    repetition_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    no_repeat_ngram: int | None = None
    min_new_tokens: Any = None
    forbidden_tokens: Sequence[int] = ()
    forced_tokens: Sequence[int | None] = ()
    processors: Sequence[Callable[..., Any]] = field(default_factory=tuple)
    seed: int | None = None
    sampler: Any = None

    def check(self, vocabulary_size: int) -> None:
        """Raise ValueError for what cannot be meant."""
        for name, (low, high, open_) in RANGES.items():
            given = getattr(self, name)
            for value in () if given is None else np.atleast_1d(np.asarray(given, dtype=object)):
                if value is None:
                    continue
                number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
                if not number or not (low <= value <= high) or (open_ and value == low):
                    limits = f"{'above' if open_ else 'at least'} {low}" + (
                        "" if high == np.inf else f", at most {high}"
                    )
                    raise ValueError(f"{name} must be a number {limits}; got {value!r}.")
                if name in WHOLE and int(value) != value:
                    raise ValueError(f"{name} must be a whole number; got {value!r}.")
        if self.no_repeat_ngram is not None and (not isinstance(self.no_repeat_ngram, int) or self.no_repeat_ngram < 1):
            raise ValueError(f"no_repeat_ngram must be an int of at least 1; got {self.no_repeat_ngram!r}.")
        for name in ("forbidden_tokens", "forced_tokens"):
            for token in getattr(self, name):
                if token is None and name == "forced_tokens":
                    continue
                if not isinstance(token, (int, np.integer)) or not 0 <= token < vocabulary_size:
                    raise ValueError(f"{name} must be ids below vocabulary_size={vocabulary_size}; got {token!r}.")
        if len(set(self.forbidden_tokens)) >= vocabulary_size:
            raise ValueError("forbidden_tokens leaves no token to choose.")
        both = set(self.forbidden_tokens) & set(self.forced_tokens)
        if both:
            raise ValueError(f"Tokens {sorted(both)} are both forbidden and forced.")
        drawn = [name for name in (*SAMPLING, "seed") if getattr(self, name) is not None]
        if drawn and self.temperature is not None and not np.any(np.asarray(self.temperature, float) > 0):
            raise ValueError(f"temperature=0 takes the most likely token, so {drawn} would have no effect.")
        if self.seed is not None and (not isinstance(self.seed, (int, np.integer)) or self.seed < 0):
            raise ValueError(f"seed must be an int of at least 0; got {self.seed!r}.")
        for processor in self.processors:
            if not callable(processor):
                raise ValueError(f"processors must be callables (token_ids, logits) -> logits; got {processor!r}.")

    def row(self, row: int) -> Choosing:
        """What is said of one row."""
        listed = {name: getattr(self, name) for name in RANGES if np.size(getattr(self, name)) > 1}
        return dataclasses.replace(self, **{name: value[row] for name, value in listed.items()})

    @property
    def draws(self) -> bool:
        """Whether any row samples."""
        if self.temperature is None:
            return any(getattr(self, name) is not None for name in (*SAMPLING, "seed"))
        return bool(np.any(np.asarray(self.temperature, float) > 0))

    def arrays(self, batch: int, vocabulary_size: int) -> dict[str, np.ndarray]:
        """Those settings that are on, as arrays for `batch` rows.

        Raises:
            ValueError: for a list of another length.
        """
        neutral = {
            "temperature": 1.0 if self.draws else 0.0,
            "top_k": vocabulary_size,
            "top_p": 1.0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "min_new_tokens": 0,
        }
        result: dict[str, np.ndarray] = {}
        for name, usual in neutral.items():
            given = getattr(self, name)
            if given is None and not (name == "temperature" and self.draws):
                continue
            if name == "temperature" and not self.draws:
                continue
            values = np.atleast_1d(np.asarray(given, dtype=object))
            if len(values) not in (1, batch):
                raise ValueError(f"{name} has {len(values)} values for {batch} rows.")
            values = np.array([usual if value is None else value for value in values])
            kind = np.int32 if name in WHOLE else np.float32
            result[name] = np.broadcast_to(values.astype(kind), (batch,)).copy()
        if "top_k" in result:
            result["top_k"] = np.minimum(result["top_k"], vocabulary_size)
        if self.forbidden_tokens:
            result["forbidden"] = np.zeros((vocabulary_size,), bool)
            result["forbidden"][list(self.forbidden_tokens)] = True
        if self.forced_tokens:
            result["forced"] = np.array([-1 if token is None else token for token in self.forced_tokens], np.int32)
        return result

    def static(self, arrays: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """What a compiled program depends on, apart from the arrays' shapes."""
        most = 0 if "top_k" not in arrays else 1 << int(arrays["top_k"].max() - 1).bit_length()
        return (most, self.no_repeat_ngram, tuple(self.processors), self.sampler)


def uniforms(seed: int, rows: Sequence[int], count: int) -> np.ndarray:
    """Numbers in [0, 1), (rows, count) float32: row r is the beginning of the seed's stream r, whatever the backend."""
    streams = (np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, row)))) for row in rows)
    return np.stack([stream.random(count, dtype=np.float32) for stream in streams])
