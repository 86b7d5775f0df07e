"""Texts and labels as a `PyDataset`, which `fit` takes on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_tfm.data import TextBatches
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
        rows = len(batches.lengths)
        for name, array in (("y", self.labels), ("sample_weight", self.sample_weight)):
            if array is not None and len(array) != rows:
                raise ValueError(f"{name} has {len(array)} rows, x has {rows} texts.")

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        batch, rows = self.batches[index], self.batches.rows(index)
        x = {name: batch[name] for name in self.inputs if name in batch}
        y = None if self.labels is None else self.labels[rows]
        if self.label_batch is not None:
            y = self.label_batch(batch, y)
        if y is None:
            return (x,)
        return (x, y) if self.sample_weight is None else (x, y, self.sample_weight[rows])

    def for_fit(self) -> Any:
        """What to hand to Keras: this, or on TensorFlow the same as `tf.data` with lengths left open.

        Keras would read the lengths off the first two batches and fail at the first of another length.
        """
        if NAME != "tensorflow":
            return self
        import tensorflow as tf

        def epoch():
            for index in range(len(self)):
                yield self[index]
            self.on_epoch_end()

        signature = keras.tree.map_structure(lambda x: tf.TensorSpec([None] * np.ndim(x), x.dtype), self[0])
        data = tf.data.Dataset.from_generator(epoch, output_signature=signature)
        return data.apply(tf.data.experimental.assert_cardinality(len(self))).prefetch(2)

    def on_epoch_end(self):
        if self.batches.shuffle:
            self.batches.next_epoch()
