"""Texts as batches of similar length, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_tfm.data.accepted import as_tokenizer


class TextBatches:
    """Tokenized texts in batches, `batches[i]` a dict of arrays; shuffled anew each epoch, rows of like length together.

    Args:
        texts: Strings or pairs of strings.
        tokenizer: What `as_tokenizer` takes: ours, of `tokenizers`, of `transformers`, or of KerasHub.
        batch_size: Rows a batch; the last may be smaller.
        max_length: Longest row, in tokens. Default: the tokenizer's.
        shuffle: Draw a new order at each `next_epoch`. Otherwise rows keep their order if not grouped.
        group_by_length: Sort stretches of 50 batches by length before cutting them; the batches' order stays random.
            Without shuffling, all rows are sorted.
        length_multiple: Pad rows to a multiple of this, so that a compiled step sees few shapes.
        seed: Of the orders; epoch e of seed s is the same everywhere.

    Attributes:
        order: (rows,) the texts' indices in the order in which this epoch's batches hold them.
    """

    STRETCH = 50

    def __init__(
        self,
        texts: Sequence[Any],
        tokenizer: Any,
        batch_size: int = 32,
        *,
        max_length: int | None = None,
        shuffle: bool = False,
        group_by_length: bool = True,
        length_multiple: int = 1,
        seed: int = 0,
    ):
        for name, value in (("batch_size", batch_size), ("length_multiple", length_multiple)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        if len(texts) == 0:
            raise ValueError("There are no texts: the list is empty.")
        for index, text in enumerate(texts):
            parts = text if isinstance(text, (tuple, list)) else (text,)
            if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
                raise ValueError(f"texts[{index}] must be a string or a pair of strings; got {text!r}.")
        tokenizer = self.tokenizer = as_tokenizer(tokenizer)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.group_by_length = group_by_length
        self.length_multiple = length_multiple
        self.seed = seed
        self.epoch = -1
        self.limit = max_length or tokenizer.max_length
        self._encodings = tokenizer.encode([tuple(t) if isinstance(t, list) else t for t in texts], max_length)
        self.lengths = np.array([len(encoding.ids) for encoding in self._encodings])
        self.next_epoch()

    def next_epoch(self) -> None:
        """Draw the next epoch's order."""
        self.epoch += 1
        order = np.arange(len(self.lengths))
        random = np.random.default_rng((self.seed, self.epoch))
        if self.shuffle:
            random.shuffle(order)
        if self.group_by_length:
            stretch = self.STRETCH * self.batch_size if self.shuffle else len(order)
            parts = [order[start : start + stretch] for start in range(0, len(order), stretch)]
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if self.shuffle:
            random.shuffle(batches)
        self._batches = batches
        self.order = np.concatenate(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def rows(self, index: int) -> np.ndarray:
        """Indices of the texts in batch `index`."""
        return self._batches[index]

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rows = self._batches[index]
        longest = int(self.lengths[rows].max())
        pad_to = -(-longest // self.length_multiple) * self.length_multiple
        if self.limit is not None:
            pad_to = min(pad_to, self.limit)
        return self.tokenizer.pad([self._encodings[row] for row in rows], max(pad_to, longest))
