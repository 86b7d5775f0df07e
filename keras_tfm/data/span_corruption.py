"""Spans of a text replaced by sentinels, and the target that restores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_tfm.data.accepted import as_tokenizer


class SpanCorruption:
    """T5's unsupervised objective (Raffel et al. 2020, sections 3.1.4 and 3.3.4).

    A row of n tokens loses round(n * rate) of them, at least one and not all, in round(that / span_length) spans, at
    least one. The lengths of the spans, and of what stays between them, are drawn evenly among all that add up, as in
    T5's published preprocessor (`random_spans_noise_mask`); what stays comes first, and a span last. A row of one token
    loses it. The source holds a sentinel for each span, `<extra_id_0>`, `<extra_id_1>`, ...; the target holds each
    sentinel and its span's tokens. Both end with the end token.

    Args:
        tokenizer: What `as_tokenizer` takes, with an end token and sentinels.
        rate: Share of tokens that are lost, above 0 and below 1.
        span_length: Mean length of the spans, in tokens, at least 1.
        start_id: First decoder token. Default: the padding token, as T5's.

    Raises:
        ValueError: for a tokenizer without an end token, sentinels or, where it is needed, a padding token; and for a
            rate or a length out of range.

    Example:
        >>> corrupt = keras_tfm.data.SpanCorruption(tokenizer)
        >>> example = corrupt(tokenizer.encode(["Thank you for inviting me."])[0].ids, np.random.default_rng(0))
    """

    def __init__(self, tokenizer: Any, rate: float = 0.15, span_length: float = 3.0, *, start_id: int | None = None):
        self.tokenizer = as_tokenizer(tokenizer)
        if not 0 < rate < 1:
            raise ValueError(f"rate must be above 0 and below 1; got {rate}.")
        if span_length < 1:
            raise ValueError(f"span_length must be at least 1; got {span_length}.")
        end_id = self.tokenizer.special_id("eos")
        if end_id is None:
            raise ValueError("The tokenizer has no end token; name it in its settings, {'eos_token': '</s>'}.")
        self._pad_id = self.tokenizer.special_id("pad")
        if start_id is None:
            start_id = self._pad_id
            if start_id is None:
                raise ValueError("The tokenizer has no padding token to begin a target with; give start_id.")
        self.rate = rate
        self.span_length = span_length
        self.start_id = start_id
        self.end_id = end_id
        self.sentinels = _sentinels(self.tokenizer)

    def __call__(self, example: Any, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One corrupted row.

        Args:
            example: (tokens,) int, or a dict with such "token_ids", which alone are used. Not padded; an end token at
                the end is set aside.
            rng: What to draw from.

        Returns:
            {"token_ids" (source,), "decoder_token_ids" (target,), "labels" (target,)}, all int32; the decoder's are the
            labels moved right behind `start_id`.

        Raises:
            ValueError: for a row without tokens, one that holds sentinels or padding, and one that needs more sentinels
                than there are.
        """
        token_ids = np.asarray(example["token_ids"] if isinstance(example, Mapping) else example)
        if token_ids.ndim != 1 or (token_ids.size and token_ids.dtype.kind not in "iu"):
            raise ValueError(f"token_ids must be (tokens,) integers; got {token_ids.shape}, {token_ids.dtype}.")
        if token_ids.size and token_ids[-1] == self.end_id:
            token_ids = token_ids[:-1]
        if not token_ids.size:
            raise ValueError("The row has no tokens but the end token.")
        if np.isin(token_ids, self.sentinels).any():
            raise ValueError("The row holds sentinels itself, which could not be told from those of its spans.")
        if self._pad_id != self.end_id and (token_ids == self._pad_id).any():
            raise ValueError(f"The row holds padding, token {self._pad_id}; give its tokens alone.")
        lost, kept = self._lengths(len(token_ids), rng)
        if len(lost) > len(self.sentinels):
            raise ValueError(
                f"A row of {len(token_ids)} tokens has {len(lost)} spans, for which the tokenizer has "
                f"{len(self.sentinels)} sentinels; cut the row, or raise span_length."
            )
        ends = np.cumsum(kept + lost)
        noise = np.repeat(np.tile([False, True], len(lost)), np.stack([kept, lost], 1).ravel())
        sentinels = self.sentinels[: len(lost)]
        source = np.insert(token_ids, ends, sentinels)[~np.insert(noise, ends, False)]
        target = np.insert(token_ids, ends - lost, sentinels)[np.insert(noise, ends - lost, True)]
        labels = np.append(target, self.end_id).astype(np.int32)
        return {
            "token_ids": np.append(source, self.end_id).astype(np.int32),
            "decoder_token_ids": np.append(self.start_id, labels[:-1]).astype(np.int32),
            "labels": labels,
        }

    def _lengths(self, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of the spans that are lost, and of what is kept before each."""
        if size == 1:
            return np.array([1]), np.array([0])
        lost = min(max(round(size * self.rate), 1), size - 1)
        spans = min(max(round(lost / self.span_length), 1), size - lost)
        return _composition(lost, spans, rng), _composition(size - lost, spans, rng)


def _composition(total: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """`parts` lengths of at least 1 that add up to `total`, each way to do so as likely as any other."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def _sentinels(tokenizer: Any) -> np.ndarray:
    """Ids of `<extra_id_0>`, `<extra_id_1>`, ... as far as there are any."""
    base = tokenizer.tokenizer
    known = base.get_vocab(with_added_tokens=True) if hasattr(base, "get_vocab") else {}  # KerasHub's have none
    found: list[int] = []
    while (i := known.get(f"<extra_id_{len(found)}>")) is not None:
        found.append(i)
    if not found:
        raise ValueError("The tokenizer has no sentinels: no token is called '<extra_id_0>'.")
    return np.array(found)
