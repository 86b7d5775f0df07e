"""Absolute positions, added to embeddings."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.layers.base import check_choice, check_positive, logical_axes, register
from keras_tfm.layers.position_scheme import PositionScheme
from keras_tfm.ops import backend
from keras_tfm.ops import positions as position_ops


@register
class PositionalEncoding(PositionScheme):
    """Adds a vector per position to embeddings: fixed sinusoids (Vaswani et al. 2017, 3.5) or a learned table.

    Args:
        kind: "sinusoidal" or "learned".
        max_length: Rows of the learned table (required there). With sinusoids, which have no limit, it must be None.
        base: Of the sinusoids: ratio of the longest to the shortest wavelength.
        interleaved: Of the sinusoids: sin and cos alternate, as in the paper, rather than all sines first.
        offset: Added to positions before the table is read (OPT and RoBERTa keep their first 2 rows for padding).
        embeddings_initializer: Of the learned table.

    Call arguments:
        x: (batch, length, width), float.
        positions: (batch or 1, length) int. Default: 0, 1, 2, …, or counted over real tokens, anew in each segment,
            where masks are given. Under `jax.jit`, where an out-of-range value cannot raise, it gives NaN.
        padding_mask: (batch, length), true = a token. Default: the mask that Keras attached to x, if any.
        segment_ids: (batch, length) int, of packed sequences.

    Returns:
        As x. Angles are computed in float32 under any dtype policy.

    Raises:
        ValueError: for a sequence longer than the learned table, or an odd width with sinusoids.

    Example:
        >>> x = keras.random.normal((2, 16, 32))
        >>> keras_tfm.layers.PositionalEncoding("learned", max_length=64)(x).shape
        (2, 16, 32)
    """

    where = "embedding"

    def __init__(
        self,
        kind: str = "sinusoidal",
        max_length: int | None = None,
        *,
        base: float = 10_000.0,
        interleaved: bool = True,
        offset: int = 0,
        embeddings_initializer: Any = "uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_choice("kind", kind, ("sinusoidal", "learned"))
        check_positive(max_length=max_length)
        if kind == "learned" and max_length is None:
            raise ValueError("kind='learned' needs max_length, the number of positions in its table.")
        if kind == "sinusoidal" and max_length is not None:
            raise ValueError(f"kind='sinusoidal' has no table: max_length must be None; got {max_length}.")
        if kind == "learned" and (base != 10_000.0 or not interleaved):
            raise ValueError("base and interleaved belong to kind='sinusoidal'; a learned table has neither.")
        if kind == "sinusoidal" and embeddings_initializer != "uniform":
            raise ValueError("embeddings_initializer belongs to kind='learned'; sinusoids have no table.")
        if offset < 0:
            raise ValueError(f"offset must not be negative; got {offset}.")
        self.kind = kind
        self.max_length = max_length
        self._rows = (max_length or 0) + offset  # of the table
        self.base = base
        self.interleaved = interleaved
        self.offset = offset
        self.embeddings_initializer = embeddings_initializer
        self.supports_masking = True

    def build(self, x_shape):
        width = x_shape[-1]
        if self.kind == "sinusoidal":
            if width % 2:
                raise ValueError(f"Sinusoids need an even width; got {width}.")
            return
        shape = (self._rows, width)
        self.embeddings = self.add_weight(name="embeddings", shape=shape, initializer=self.embeddings_initializer)
        logical_axes(self.embeddings, "positions", "embed")

    def call(self, x, positions=None, padding_mask=None, segment_ids=None):
        if positions is None:
            padding_mask = backend.implicit_mask(x) if padding_mask is None else padding_mask
            positions = position_ops.default(ops.shape(x)[1], padding_mask, segment_ids)
            if positions is not None and self.kind == "learned":
                self._check_length(x, None)
        return self.embed(x, positions)

    def embed(self, x, positions=None):
        if self.kind == "sinusoidal":
            if positions is None:
                positions = ops.arange(ops.shape(x)[1], dtype="int32")[None, :]
            added = position_ops.sinusoidal(
                positions + self.offset, x.shape[-1], base=self.base, interleaved=self.interleaved
            )
            return x + ops.cast(added, x.dtype)
        self._check_length(x, positions)
        table = ops.convert_to_tensor(self.embeddings)
        if positions is None:
            rows = table[self.offset : self.offset + self._length(x)][None]  # (1, length, width)
        else:
            positions = ops.cast(positions, "int32") + self.offset
            rows = ops.take(table, positions, axis=0)
            if backend.NAME == "jax":  # which clamps: make what is out of range visible
                inside = ops.logical_and(positions >= 0, positions < self._rows)
                rows = ops.where(inside[..., None], rows, np.nan)
        return x + ops.cast(rows, x.dtype)

    def _length(self, x):
        """The sequence's length; on TensorFlow, where it may be unknown until the graph runs, checked there."""
        if backend.NAME != "tensorflow" or x.shape[1] is not None:
            return ops.shape(x)[1]
        import tensorflow as tf

        length = tf.shape(x)[1]
        message = f"Sequence longer than the table of learned positions, max_length={self.max_length}."
        with tf.control_dependencies([tf.debugging.assert_less_equal(length, self.max_length, message=message)]):
            return tf.identity(length)

    def _check_length(self, x, positions) -> None:
        length = x.shape[1]
        if positions is None and length is not None and length > self.max_length:
            raise ValueError(
                f"The sequence has {length} tokens, the table of learned positions max_length={self.max_length}. "
                "Shorten it, or build with a larger max_length."
            )
        values = None if positions is None else backend.concrete(positions)
        if values is not None and values.size and (values.max() >= self.max_length or values.min() < 0):
            raise ValueError(
                f"positions must be from 0 to {self._rows - self.offset - 1}, the table's last; "
                f"got {values.min()} to {values.max()}."
            )

    def compute_output_spec(self, x, positions=None, padding_mask=None, segment_ids=None):
        if not backend.is_symbolic(positions):
            self._check_length(x, positions) if self.kind == "learned" else None
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
