"""T5's learned bias by bucketed distance."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_tfm.layers.base import check_positive, logical_axes, register
from keras_tfm.layers.position_scheme import PositionBias
from keras_tfm.ops import positions as position_ops


@register
class RelativePositionBias(PositionBias):
    """Adds a learned number per head and distance bucket to the scores (Raffel et al. 2020, T5, section 2.1).

    As a layer: `RelativePositionBias()(query, key)` gives the bias, (batch or 1, heads, queries, keys) float32, for
    (batch, length, heads, head_dim) inputs. T5 shares one such layer among the blocks of a stack: pass the same object.

    Args:
        num_buckets: Of distances, both directions together.
        max_distance: From which on all distances share the last bucket.
        bidirectional: Keys after the query have buckets of their own; False for decoders.
        embeddings_initializer: Of the table, (num_buckets, heads).
    """

    def __init__(
        self,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        embeddings_initializer: Any = "uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_buckets=num_buckets, max_distance=max_distance)
        if num_buckets // (4 if bidirectional else 2) < 1 or max_distance <= num_buckets // (4 if bidirectional else 2):
            raise ValueError(
                f"max_distance must exceed the exact buckets; got max_distance={max_distance}, num_buckets={num_buckets}."
            )
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.embeddings_initializer = embeddings_initializer
        self.embeddings: Any = None

    def build(self, query_shape, key_shape=None):
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.num_buckets, query_shape[2]),
            initializer=self.embeddings_initializer,
            autocast=False,
        )
        logical_axes(self.embeddings, None, "heads")

    def check_heads(self, num_heads, head_dim):
        if self.embeddings is not None and self.embeddings.shape[1] != num_heads:
            raise ValueError(
                f"This relative bias has {self.embeddings.shape[1]} heads, the attention layer {num_heads}."
            )

    def between(self, query_positions, key_positions, num_heads):
        buckets = position_ops.relative_buckets(
            key_positions[:, None, :] - query_positions[:, :, None],  # (batch or 1, queries, keys)
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            bidirectional=self.bidirectional,
        )
        values = ops.take(ops.cast(ops.convert_to_tensor(self.embeddings), "float32"), buckets, axis=0)
        return ops.transpose(values, (0, 3, 1, 2))  # (batch or 1, heads, queries, keys)
