"""Raw rows of a task, as datasets, examples and batches."""

from __future__ import annotations

import random
from typing import Any

from keras_tfm.data import ExampleBatches, Examples, TextBatches
from keras_tfm.data.tokenizer import BaseTokenizer
from keras_tfm.models.raw_data import is_examples, is_text, packed_examples, text_examples
from keras_tfm.models.text_dataset import TextDataset
from keras_tfm.ops import backend


class RawRows:
    """What a task model does with strings and examples; it says in `_examples` and `_text_labels` what they become."""

    name: str
    tokenizer: BaseTokenizer | None
    backbone: Any
    _input_keys: Any
    _text_labels: Any = None  # (batch, labels) -> labels, where a task makes them from the tokens

    def dataset(
        self,
        texts,
        labels=None,
        *,
        batch_size: int = 32,
        shuffle: bool = False,
        max_length: int | None = None,
        pack: int | None = None,
        sample_weight=None,
        seed: int | None = None,
        group_by_length: bool = True,
    ) -> TextDataset:
        """Raw rows as a Keras dataset for `fit`, `evaluate` and `predict`: tokenized, grouped by length, shuffled.

        Args:
            texts: Strings, or pairs of strings, or examples (`keras_tfm.data.Examples`, `MappedExamples`); what else a
                task takes, it says.
            labels: (rows, ...) or None.
            batch_size: Rows a batch.
            shuffle: Another order each epoch.
            max_length: Longest row in tokens. Default: the tokenizer's and the model's limit.
            pack: Length of rows that hold several texts each, as segments that do not see each other
                (`keras_tfm.data.pack`); such a dataset is for `fit` and `evaluate`.
            sample_weight: (rows,) or None.
            seed: Of the shuffling. Default: drawn, so that `keras.utils.set_random_seed` governs it.
            group_by_length: Let rows of like length share a batch; otherwise, unless shuffled, they keep their order.
        """
        # A compiled step is compiled once a shape: XLA gets few of them, the others the exact length.
        multiple = 16 if backend.NAME == "jax" or getattr(self, "jit_compile", False) else 1
        options: dict[str, Any] = {
            "shuffle": shuffle,
            "group_by_length": group_by_length,
            "length_multiple": multiple,
        }
        limit = self._longest(max_length)
        if pack is not None and sample_weight is not None:
            raise ValueError("sample_weight is of rows, of which pack puts several into one; give one of them.")
        texts = texts if is_examples(texts) else list(texts)
        examples = self._made(texts, labels, limit, pack)
        if examples is None or "labels" not in examples[0]:
            options["transform"] = self._transform()
        if seed is None:  # nothing is drawn that has no use: `predict` leaves the random state alone
            seed = random.randrange(2**31) if shuffle or options.get("transform") else 0
        options["seed"] = seed
        if examples is None:
            batches: Any = TextBatches(texts, self._require_tokenizer(), batch_size, max_length=limit, **options)
            return TextDataset(batches, self._input_keys, self._check_labels(labels), sample_weight, self._text_labels)
        side = "right" if self.tokenizer is None else self.tokenizer.padding_side
        options |= {"max_length": pack or limit, "pad_id": self._pad_id(), "padding_side": side}
        batches = ExampleBatches(examples, batch_size, **options)
        labels = labels if is_examples(texts) else None
        return TextDataset(batches, self._input_keys, labels, sample_weight, self._example_labels)

    def examples(self, texts, labels=None, *, max_length: int | None = None, pack: int | None = None) -> Examples:
        """Raw rows as the examples of which `dataset` makes batches: tokenized, not padded.

        Such as `keras_tfm.data.write_examples` writes, for data larger than memory. Arguments are as of `dataset`.
        """
        texts = texts if is_examples(texts) else list(texts)
        limit = self._longest(max_length)
        found = self._made(texts, labels, limit, pack)
        if found is None:
            found = text_examples(self._require_tokenizer(), texts, self._check_labels(labels), limit)
        return found

    def collate(self, rows, labels=None, *, max_length: int | None = None, seed: int | None = None) -> tuple:
        """Some raw rows, or examples, as one batch for `fit`: (inputs,) or (inputs, labels), of NumPy arrays.

        For input pipelines that draw the rows themselves: `batch_fn` of grain's `batch`; on torch, `collate_fn` of its
        `DataLoader`.

        Args:
            rows: Raw rows as `dataset` takes them, or examples: dicts of arrays.
            labels: Of raw rows, or None.
            max_length: Longest row in tokens. Default: the tokenizer's and the model's limit.
            seed: Of what is drawn, such as tokens that are masked. Default: another one each time.
        """
        rows = rows if is_examples(rows) else list(rows)
        if not rows:
            raise ValueError("There are no rows to collate.")
        rows = Examples(rows) if isinstance(rows[0], dict) else rows
        options: dict[str, Any] = {"batch_size": len(rows), "max_length": max_length, "group_by_length": False}
        return self.dataset(rows, labels, seed=seed, **options)[0]

    def _is_raw(self, x: Any) -> bool:
        """Whether x is for `dataset` to make batches of."""
        return is_examples(x) or is_text(x)

    def _made(self, rows: Any, labels: Any, limit: int | None, pack: int | None) -> Any:
        """Rows as examples, packed if need be; None where texts are batched as they are."""
        examples = rows if is_examples(rows) else self._examples(rows, labels, limit)
        if pack is None:
            return examples
        if examples is None:
            examples = text_examples(self._require_tokenizer(), rows, self._check_labels(labels), limit)
        return packed_examples(examples, pack, self._pad_id())

    def _pad_id(self) -> int:
        return 0 if self.tokenizer is None else self.tokenizer.special_id("pad") or 0

    def _examples(self, rows: list, labels: Any, max_length: int | None) -> Examples | None:
        """Raw rows and labels as examples, by tasks whose labels follow the tokens; None where texts are batched."""
        return None

    def _example_labels(self, batch: dict[str, Any], labels: Any) -> Any:
        """What the loss takes, of a batch of examples."""
        if self._text_labels is not None and "labels" not in batch:
            return self._text_labels(batch, labels)
        return batch.get("labels", batch.get("label", labels))

    def _transform(self) -> Any:
        """What is done to each batch at random, such as masking."""
        return None

    def _longest(self, max_length: int | None = None) -> int | None:
        """The longest row of tokens that the caller, the tokenizer and the model allow."""
        own = None if self.tokenizer is None else self.tokenizer.max_length
        limits = (max_length, own, self.backbone.config.max_sequence_length)
        return min((limit for limit in limits if limit is not None), default=None)

    def _require_tokenizer(self) -> BaseTokenizer:
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer, so it takes token ids, not strings. Give it one: "
                f"{type(self).__name__}(..., tokenizer=...)."
            )
        return self.tokenizer

    def _check_labels(self, labels: Any) -> Any:
        """Labels of raw strings, checked."""
        return labels
