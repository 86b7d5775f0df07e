"""One batch in any of the forms that `fit` takes, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_tfm.models.raw_data import is_text, is_words
from keras_tfm.models.text_dataset import TextDataset
from keras_tfm.ops import processes


def as_batch(model: Any, batch: Any) -> tuple[Any, Any, Any]:
    """A batch as (inputs, labels or None, sample weights or None): see `Probe`."""
    x, y, sample_weight = parts_of(batch)
    if is_raw(x):
        rows = [x] if isinstance(x, str) else list(x)
        data = model.dataset(rows, y, batch_size=len(rows), sample_weight=sample_weight, seed=0)
        return parts_of(data)
    if (y is None or holds_names(y)) and hasattr(model, "_array_labels"):
        y = model._array_labels(x, y)
    return x, y, sample_weight


def parts_of(batch: Any) -> tuple[Any, Any, Any]:
    """(x, y or None, sample_weight or None); a list is rows, a tuple the parts of a batch.

    Raises:
        ValueError: for a tuple of more parts.
    """
    if isinstance(batch, TextDataset):
        batch = batch[0]
    parts = batch if isinstance(batch, tuple) and batch and not isinstance(batch[0], str) else (batch,)
    if len(parts) > 3:
        raise ValueError(f"batch must be (x,), (x, y) or (x, y, sample_weight); got {len(parts)} parts.")
    return (*parts, None, None)[:3]


def is_raw(x: Any) -> bool:
    """Whether x is strings, pairs of strings, or lists of words."""
    return is_text(x) or is_words(x)


def holds_names(y: Any) -> bool:
    """Whether labels are names rather than numbers."""
    return not isinstance(y, dict) and to_numpy(y).dtype.kind in "UO"


def to_numpy(x: Any) -> np.ndarray:
    """A tensor of any backend, or a list, as an array; float32 where it is of another float dtype; like rows summed."""
    if hasattr(x, "dense_shape"):  # TensorFlow's gradient of an embedding
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
    if not ops.is_tensor(x):
        return np.asarray(x)
    if "float" in str(x.dtype):
        x = ops.cast(x, "float32")
    return processes.whole(x)
