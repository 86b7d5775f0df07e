"""Tokens hidden at random, and the labels that ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_tfm.data.accepted import as_tokenizer
from keras_tfm.data.special import is_special, word_starts

IGNORED = -100


class Masking:
    """Chooses tokens to be predicted, and hides most of them (BERT: Devlin et al. 2019, section 3.1).

    Of the tokens of a row that are not special (padding and the unknown token are), a share of `rate` is chosen: rate
    times their number, rounded up or down at random so that the share is met on average, and at least one. Chosen tokens
    become the mask token, or a random one that is not special, or stay.

    Args:
        tokenizer: What `as_tokenizer` takes, with a mask token.
        rate: Share of tokens chosen, above 0 and at most 1; of words, with `whole_words`.
        mask_rate: Share of the chosen that become the mask token.
        random_rate: Share of the chosen that become a random token. The rest stays as it is.
        whole_words: Choose words, all pieces of each (Devlin et al., release of May 2019). Each piece is then hidden
            by itself. Words are told by the batch's "word_ids", or else by the marks of the tokenizer's pieces, "##",
            "▁" or "Ġ".
        span_length: Choose spans of tokens, or of words with `whole_words`, whose lengths are geometric with success
            probability 1 / span_length, renormalized to lengths of at most `max_span` (SpanBERT: Joshi et al. 2020,
            section 3.1, where 5 and 10 give a mean of 3.8). A row's last drawn span is cut where the share is met.
            A span becomes masks, or random tokens, or stays, as one. Spans go on behind special tokens within a row.
        max_span: Longest span.

    Raises:
        ValueError: for rates out of range, a tokenizer without a mask token or without marks of words, and `max_span`
            without `span_length`.

    Example:
        >>> masking = keras_tfm.data.Masking(tokenizer)
        >>> batch, labels = masking(tokenizer(texts), np.random.default_rng(0))
    """

    def __init__(
        self,
        tokenizer: Any,
        rate: float = 0.15,
        *,
        mask_rate: float = 0.8,
        random_rate: float = 0.1,
        whole_words: bool = False,
        span_length: float | None = None,
        max_span: int = 10,
    ):
        self.tokenizer = as_tokenizer(tokenizer)
        if not 0 < rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1; got {rate}.")
        for name, value in (("mask_rate", mask_rate), ("random_rate", random_rate)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1; got {value}.")
        if mask_rate + random_rate > 1 + 1e-9:
            raise ValueError(f"mask_rate + random_rate must be at most 1; got {mask_rate} + {random_rate}.")
        if span_length is None and max_span != 10:
            raise ValueError(f"max_span={max_span} has no effect without span_length.")
        if max_span < 1:
            raise ValueError(f"max_span must be at least 1; got {max_span}.")
        if span_length is not None and span_length < 1:
            raise ValueError(f"span_length must be at least 1; got {span_length}.")
        mask_id = self.tokenizer.special_id("mask")
        if mask_id is None:
            raise ValueError("The tokenizer has no mask token, which masking needs; see `special_id`.")
        self.rate = rate
        self.mask_rate = mask_rate
        self.random_rate = random_rate
        self.whole_words = whole_words
        self.span_length = span_length
        self.max_span = max_span
        self.mask_id = mask_id
        self._special = is_special(self.tokenizer)
        self._ordinary = np.flatnonzero(~self._special).astype(np.int32)
        if not self._ordinary.size:
            raise ValueError("The tokenizer has special tokens only, of which none can be masked.")
        self._starts: tuple[np.ndarray, np.ndarray] | None = None
        if span_length is not None:
            chances = (1 - 1 / span_length) ** np.arange(max_span)
            self._length_chances = chances / chances.sum()

    def __call__(
        self, batch: Mapping[str, np.ndarray], rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """A batch with tokens hidden, and their labels.

        Args:
            batch: {"token_ids" (batch, length) int, "padding_mask" (batch, length) bool, true = a token, ...}. Without a
                mask all are tokens. "word_ids", (batch, length) int, equal for neighbouring pieces of a word, is read
                with `whole_words`.
            rng: What to draw from; the same state gives the same result.

        Returns:
            The batch with other "token_ids" and without "word_ids", which no model takes; and the labels, (batch,
            length) int32: the token where one was chosen, -100 elsewhere.

        Raises:
            ValueError: for arrays of other shapes, and ids outside the vocabulary.
        """
        token_ids = np.asarray(batch["token_ids"])
        if token_ids.ndim != 2 or token_ids.dtype.kind not in "iu":
            raise ValueError(f"token_ids must be (batch, length) integers; got {token_ids.shape}, {token_ids.dtype}.")
        for name in ("padding_mask", "word_ids"):
            if name in batch and np.shape(batch[name]) != token_ids.shape:
                raise ValueError(f"{name} must have token_ids' shape {token_ids.shape}; got {np.shape(batch[name])}.")
        if token_ids.size and not 0 <= token_ids.min() <= token_ids.max() < len(self._special):
            raise ValueError(
                f"token_ids must be from 0 to {len(self._special) - 1}, the tokenizer's; got {token_ids.min()} to "
                f"{token_ids.max()}."
            )
        ordinary = ~self._special[token_ids]
        if "padding_mask" in batch:
            ordinary &= np.asarray(batch["padding_mask"], bool)
        starts = self._unit_starts(token_ids, ordinary, batch.get("word_ids"))
        units = starts.sum(1)  # per row: words, or tokens
        counts = np.floor(self.rate * units + rng.random(len(units))).astype(np.int64)
        counts = np.minimum(np.maximum(counts, 1), units)
        width = int(units.max(initial=0))
        if self.span_length is None:
            spans = _chosen_units(units, counts, width, rng)
        else:
            spans = self._chosen_spans(units, counts, width, rng)
        unit = np.maximum(np.cumsum(starts, 1) - 1, 0)
        span = np.where(ordinary, np.take_along_axis(spans, unit, 1) if width else -1, -1)
        labels = np.where(span >= 0, token_ids, IGNORED).astype(np.int32)
        draws = rng.random(token_ids.shape)
        if self.span_length is not None:  # one draw a span
            draws = np.take_along_axis(draws, np.maximum(span, 0), 1)
        masked = (span >= 0) & (draws < self.mask_rate)
        replaced = (span >= 0) & ~masked & (draws < self.mask_rate + self.random_rate)
        hidden = np.where(masked, self.mask_id, token_ids).astype(np.int32)
        hidden[replaced] = rng.choice(self._ordinary, int(replaced.sum()))
        return {**{name: array for name, array in batch.items() if name != "word_ids"}, "token_ids": hidden}, labels

    def _unit_starts(self, token_ids: np.ndarray, ordinary: np.ndarray, word_ids: Any) -> np.ndarray:
        """(batch, length) bool: the first token of each word; without whole_words, each token that is not special."""
        if not self.whole_words:
            return ordinary
        new = np.ones(token_ids.shape, bool)
        if word_ids is not None:
            word_ids = np.asarray(word_ids)
            new[:, 1:] = word_ids[:, 1:] != word_ids[:, :-1]
        else:
            if self._starts is None:
                self._starts = word_starts(self.tokenizer)
            starts, ends = self._starts
            new[:, 1:] = starts[token_ids[:, 1:]] | ends[token_ids[:, :-1]]
        new[:, 1:] |= ~ordinary[:, :-1]
        return ordinary & new

    def _chosen_spans(self, units: np.ndarray, counts: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
        """(batch, width) int: the number of the span that a unit is in, -1 for none.

        Spans and the units left over are put in a random order.
        """
        rows, most = len(units), int(counts.max(initial=0))
        lengths = rng.choice(np.arange(1, self.max_span + 1), (rows, most), p=self._length_chances)
        before = np.cumsum(lengths, 1) - lengths
        lengths = np.clip(counts[:, None] - before, 0, lengths)  # to the number asked for
        # Pieces in a random order: spans first, then single units, then nothing.
        spans = (lengths > 0).sum(1)
        pieces = spans + units - counts
        index = np.arange(most + width)
        keys = np.where(index < pieces[:, None], rng.random((rows, most + width)), 2.0)
        order = np.argsort(keys, 1)
        sizes = np.ones((rows, most + width), np.int64)
        sizes[:, :most] = np.where(index[:most] < spans[:, None], lengths, 1)
        sizes[index >= pieces[:, None]] = 0
        numbers = np.where(index < spans[:, None], index, -1)
        sizes, numbers = np.take_along_axis(sizes, order, 1), np.take_along_axis(numbers, order, 1)
        chosen = np.full((rows, width), -1)
        row, unit = np.nonzero(np.arange(width) < units[:, None])
        chosen[row, unit] = np.repeat(numbers.ravel(), sizes.ravel())
        return chosen


def _chosen_units(units: np.ndarray, counts: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """(batch, width) int: 0 for a chosen unit, -1 for none."""
    keys = np.where(np.arange(width) < units[:, None], rng.random((len(units), width)), 2.0)
    ranks = np.argsort(np.argsort(keys, 1), 1)
    return np.where(ranks < counts[:, None], 0, -1)
