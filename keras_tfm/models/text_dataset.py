"""Texts and labels as a `PyDataset`, which `fit` takes on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from keras_tfm.data import TextBatches
from keras_tfm.distribution.agreeing import digest
from keras_tfm.distribution.sharing import check_rows, filled_up, local_rows, shares
from keras_tfm.models.objectives import TokenCrossentropy
from keras_tfm.ops.backend import NAME


class TextDataset(keras.utils.PyDataset):
    """Batches of `TextBatches` with their labels, a new order each epoch.

    Args:
        batches: The tokenized texts.
        inputs: Names of the model's inputs; what else a tokenizer gives is left out.
        labels: (rows, ...) array, or None.
        sample_weight: (rows,) array, or None.
        label_batch: Given the batch and its labels, what the loss takes; by default the labels.
    """

    def __init__(
        self,
        batches: TextBatches,
        inputs: tuple[str, ...],
        labels: Any = None,
        sample_weight: Any = None,
        label_batch: Callable | None = None,
    ):
        super().__init__()
        self.batches = batches
        self.inputs = inputs
        self.labels = None if labels is None else np.asarray(labels)
        self.sample_weight = None if sample_weight is None else np.asarray(sample_weight)
        self.label_batch = label_batch
        self._start, self._stand_in = 0, None
        rows = len(batches.lengths)
        for name, array in (("y", self.labels), ("sample_weight", self.sample_weight)):
            if array is not None and len(array) != rows:
                raise ValueError(f"{name} has {len(array)} rows, x has {rows} texts.")

    def __len__(self):
        return len(self.batches)

    def get_state(self) -> dict[str, Any]:
        """Which epoch of which order this is, for `set_state`; JSON-able."""
        return {"seed": self.batches.seed, "epoch": self.batches.epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to the beginning of the epoch of which `get_state` was."""
        self.batches.seed, self.batches.epoch = state["seed"], state["epoch"] - 1
        self.batches.next_epoch()

    def start_at(self, index: int) -> None:
        """In this epoch, give batch `index` in place of those before it, which then cost nothing."""
        self._start = min(index, len(self) - 1)
        self._stand_in = self[self._start] if index else None

    def __getitem__(self, index):
        if index < self._start:
            return self._stand_in
        batch, rows = self.batches[index], self.batches.rows(index)
        x = {name: batch[name] for name in self.inputs if name in batch}
        y = None if self.labels is None else self.labels[rows]
        if self.label_batch is not None:
            y = self.label_batch(batch, y)
        if y is None:
            return (x,)
        return (x, y) if self.sample_weight is None else (x, y, self.sample_weight[rows])

    def digest(self) -> str:
        """Of the first batch."""
        return digest(keras.tree.flatten(self[0]))

    def described(self) -> dict[str, Any]:
        """What processes that share it, or runs that take it up, must have the same, JSON-able."""
        lengths, size = np.asarray(self.batches.lengths, np.int64), self.batches.batch_size
        found = {"rows": len(lengths), "tokens": int(lengths.sum()), "batch_size": size}
        return {**found, "lengths": digest([lengths])}

    def for_fit(self, loss: Any = None) -> Any:
        """What to hand to Keras: this, or on TensorFlow the same as `tf.data`; batches that devices can share.

        Raises:
            ValueError: for a batch that they cannot, unless the loss leaves labels of -100 out.
        """
        if (parts := shares()) > 1:
            rows = len(self.batches.lengths)
            whole = rows - rows % parts if isinstance(loss, TokenCrossentropy) else rows
            check_rows(whole, self.batches.batch_size, ", or compile with a loss that leaves labels of -100 out")
            # Under a strategy, Keras begins an epoch to build the model by its first batch, and leaves it there.
            shared = SharedDataset(self, parts)
            return as_tf_data(shared, trials=1) if NAME == "tensorflow" else shared
        return self.to_tf_data() if NAME == "tensorflow" else self

    def to_tf_data(self) -> Any:
        """The same batches as a `tf.data.Dataset`, each time it is iterated over those of the next epoch."""
        return as_tf_data(self)

    def on_epoch_end(self):
        self._start, self._stand_in = 0, None
        if self.batches.shuffle:
            self.batches.next_epoch()


class SharedDataset(keras.utils.PyDataset):
    """Another dataset's batches, filled up so that so many devices can share them.

    Attributes:
        rows: Of the batch given last: how many it has in all processes, without those that fill it up.
    """

    def __init__(self, dataset: TextDataset, parts: int):
        super().__init__()
        self.dataset, self.parts = dataset, parts
        self.rows: int | None = None

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        batch = self.dataset[index]
        self.rows = len(keras.tree.flatten(batch)[0])
        # Of torch's processes one may have a row less than another, but each needs one.
        batch = filled_up(batch, self.parts if NAME != "torch" or self.rows < self.parts else 1)
        if NAME == "tensorflow":
            return batch
        rows = local_rows(len(keras.tree.flatten(batch)[0]))
        return keras.tree.map_structure(lambda array: array[rows], batch)

    def described(self) -> dict[str, Any]:
        return self.dataset.described()

    def digest(self) -> str:
        return self.dataset.digest()

    def get_state(self) -> dict[str, Any]:
        return self.dataset.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.dataset.set_state(state)

    def on_epoch_end(self):
        self.dataset.on_epoch_end()


@contextmanager
def sharing_itself(*data: Any) -> Iterator[None]:
    """Inside, Keras takes data that are all of `SharedDataset` as this process's part, which they are."""
    distribution: Any = keras.distribution.distribution() if NAME == "jax" else None
    ours = all(one is None or isinstance(one, SharedDataset) for one in data)
    if not ours or not getattr(distribution, "auto_shard_dataset", False):
        yield
        return
    distribution.auto_shard_dataset = False
    try:
        yield
    finally:
        distribution.auto_shard_dataset = True


def as_tf_data(dataset: Any, trials: int = 0) -> Any:
    """A `PyDataset` as `tf.data`; the first `trials` iterations do not count as epochs."""

    def epoch():
        nonlocal trials
        trial, trials = trials > 0, max(trials - 1, 0)
        for index in range(len(dataset)):
            yield dataset[index]
        if not trial:
            dataset.on_epoch_end()

    return _tf_data(epoch, dataset[0], len(dataset))


def is_grain(x: Any) -> bool:
    """Whether x is one of grain's data sets, which has an order of its own."""
    return any(base.__module__.partition(".")[0] == "grain" for base in type(x).__mro__)


def opened(x: Any) -> Any:
    """What `fit` is given, or on TensorFlow, for batches of grain, the same as `tf.data`."""
    if NAME != "tensorflow" or not is_grain(x):
        return x
    return _tf_data(lambda: iter(x), next(iter(x)), len(x) if hasattr(x, "__len__") else None)


def _tf_data(epoch: Callable, first: Any, count: int | None) -> Any:
    """`tf.data` of batches like the first, with lengths left open.

    Keras would read the lengths off the first two batches and fail at the first of another length.
    """
    import tensorflow as tf

    signature = keras.tree.map_structure(lambda x: tf.TensorSpec([None] * np.ndim(x), np.asarray(x).dtype), first)
    data = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    if count is not None:
        data = data.apply(tf.data.experimental.assert_cardinality(count))
    return data.prefetch(2)
