"""Texts and examples as batches of similar length, so that little padding is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_tfm.data.accepted import as_tokenizer
from keras_tfm.data.mapped import MappedExamples
from keras_tfm.data.packing import FILLS


class Batches(ABC):
    """Rows in batches, `batches[i]` a dict of arrays; shuffled anew each epoch, rows of like length together.

    Args:
        lengths: (rows,) int, what to group by.
        batch_size: Rows a batch; the last may be smaller.
        max_length: What no row is padded beyond, in tokens.
        shuffle: Draw a new order at each `next_epoch`. Otherwise rows keep their order if not grouped.
        group_by_length: Sort stretches of 50 batches by length before cutting them; the batches' order stays random.
            Without shuffling, all rows are sorted.
        length_multiple: Pad rows to a multiple of this, so that a compiled step sees few shapes.
        seed: Of the orders, and of what `transform` draws; epoch e of seed s is the same everywhere.
        transform: (batch, numpy.random.Generator) to (batch, labels), such as `Masking`; the labels become
            batch["labels"].

    Attributes:
        order: (rows,) the rows' indices in the order in which this epoch's batches hold them.
    """

    STRETCH = 50

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int = 32,
        *,
        max_length: int | None = None,
        shuffle: bool = False,
        group_by_length: bool = True,
        length_multiple: int = 1,
        seed: int = 0,
        transform: Callable[..., Any] | None = None,
    ):
        for name, value in (("batch_size", batch_size), ("length_multiple", length_multiple)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}.")
        self.batch_size = batch_size
        self.limit = max_length
        self.shuffle = shuffle
        self.group_by_length = group_by_length
        self.length_multiple = length_multiple
        self.seed = seed
        self.transform = transform
        self.epoch = -1
        self.lengths = np.asarray(lengths)
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
        """Indices of the rows in batch `index`."""
        return self._batches[index]

    def padded_to(self, longest: int) -> int:
        """The length to pad rows to of which the longest has so many tokens."""
        multiple = -(-longest // self.length_multiple) * self.length_multiple
        return max(multiple if self.limit is None else min(multiple, self.limit), longest)

    @abstractmethod
    def collated(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """These rows as one batch."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch = self.collated(self._batches[index])
        if self.transform is None:
            return batch
        epoch = self.epoch if self.shuffle else 0
        batch, labels = self.transform(batch, np.random.default_rng((self.seed, epoch, index)))
        return {**batch, "labels": labels}


class TextBatches(Batches):
    """Tokenized texts in `Batches`.

    Args:
        texts: Strings or pairs of strings.
        tokenizer: What `as_tokenizer` takes: ours, of `tokenizers`, of `transformers`, or of KerasHub.
        batch_size: Rows a batch; the last may be smaller.
        max_length: Longest row, in tokens. Default: the tokenizer's.
        options: As of `Batches`.
    """

    def __init__(
        self,
        texts: Sequence[Any],
        tokenizer: Any,
        batch_size: int = 32,
        *,
        max_length: int | None = None,
        **options: Any,
    ):
        if len(texts) == 0:
            raise ValueError("There are no texts: the list is empty.")
        for index, text in enumerate(texts):
            parts = text if isinstance(text, (tuple, list)) else (text,)
            if len(parts) > 2 or not all(isinstance(part, str) for part in parts):
                raise ValueError(f"texts[{index}] must be a string or a pair of strings; got {text!r}.")
        tokenizer = self.tokenizer = as_tokenizer(tokenizer)
        limit = max_length or tokenizer.max_length
        self._encodings = tokenizer.encode([tuple(t) if isinstance(t, list) else t for t in texts], max_length)
        lengths = [len(encoding.ids) for encoding in self._encodings]
        super().__init__(lengths, batch_size, max_length=limit, **options)

    def collated(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """These rows as one batch."""
        pad_to = self.padded_to(int(self.lengths[rows].max()))
        return self.tokenizer.pad([self._encodings[row] for row in rows], pad_to)


class ExampleBatches(Batches):
    """Examples, dicts of arrays of tokens and of scalars, in padded `Batches`.

    A batch has each field: scalars as (batch,), arrays as (batch, length, ...), padded to the longest row's; and, beside
    "token_ids" and "decoder_token_ids", "padding_mask" and "decoder_padding_mask", true = a token.

    Args:
        examples: Such as `token_examples` makes; a field has tokens along its first axis.
        batch_size: Rows a batch; the last may be smaller.
        pad_id: What fills "token_ids" and "decoder_token_ids".
        padding_side: "right" or "left".
        fills: What fills other fields, by name. Default: -100 for "labels", -1 for "word_ids" and "offsets", else 0.
        options: As of `Batches`.

    Raises:
        ValueError: for no examples, or some that differ in their fields.
    """

    def __init__(
        self,
        examples: Sequence[Mapping[str, Any]],
        batch_size: int = 32,
        *,
        pad_id: int = 0,
        padding_side: str = "right",
        fills: Mapping[str, int] | None = None,
        **options: Any,
    ):
        if len(examples) == 0:
            raise ValueError("There are no examples: the list is empty.")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right'; got {padding_side!r}.")
        keys = examples[0].keys()
        if "token_ids" not in keys:
            raise ValueError(f"An example must have 'token_ids'; examples[0] has {sorted(keys)}.")
        if isinstance(examples, MappedExamples):  # of which all have the same
            lengths = examples.lengths
        else:
            for index, example in enumerate(examples):
                if example.keys() != keys:
                    raise ValueError(f"examples[{index}] has {sorted(example)}, where examples[0] has {sorted(keys)}.")
            lengths = np.array([len(example["token_ids"]) for example in examples])
        self.examples = examples
        self.padding_side = padding_side
        self.fills = {**FILLS, "token_ids": pad_id, "decoder_token_ids": pad_id, **(fills or {})}
        super().__init__(lengths, batch_size, **options)

    def collated(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """These rows as one batch."""
        chosen = [self.examples[row] for row in rows]
        batch = {name: self._stacked(name, [example[name] for example in chosen]) for name in chosen[0]}
        for side in ("", "decoder_"):
            if f"{side}token_ids" in batch and f"{side}padding_mask" not in batch:
                real = [np.ones(len(example[f"{side}token_ids"]), bool) for example in chosen]
                batch[f"{side}padding_mask"] = self._stacked("padding_mask", real)
        return batch

    def _stacked(self, name: str, values: list[Any]) -> np.ndarray:
        arrays = [np.asarray(value) for value in values]
        if arrays[0].ndim == 0:
            return np.stack(arrays)
        width = self.padded_to(max(len(array) for array in arrays))
        shape = (len(arrays), width, *arrays[0].shape[1:])
        stacked = np.full(shape, self.fills.get(name, 0), arrays[0].dtype)
        for row, array in enumerate(arrays):
            start = 0 if self.padding_side == "right" else width - len(array)
            stacked[row, start : start + len(array)] = array
        return stacked
