"""Attention with linear biases."""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.layers.base import register
from keras_tfm.layers.position import PositionScheme
from keras_tfm.ops import masks
from keras_tfm.ops import positions as position_ops


@register
class ALiBi(PositionScheme):
    """Penalizes scores in proportion to distance, a slope per head, no weights (Press et al. 2022).

    As a layer: `ALiBi()(query, key)` gives the bias, (batch or 1, heads, queries, keys) float32, for
    (batch, length, heads, head_dim) inputs. As a `position`, attention adds it to the scores. Distances count in both
    directions, so it serves encoders too.
    """

    def call(self, query, key, query_positions=None, key_positions=None):
        return self.bias(query, key, query_positions, key_positions)

    def compute_output_spec(self, query, key, query_positions=None, key_positions=None):
        batches = [p.shape[0] for p in (query_positions, key_positions) if p is not None]
        batch = next((b for b in batches if b != 1), 1)
        return keras.KerasTensor((batch, query.shape[2], query.shape[1], key.shape[1]), dtype="float32")

    def bias(self, query, key, query_positions, key_positions):
        query_positions = masks.positions(ops.shape(query)[1]) if query_positions is None else query_positions
        key_positions = masks.positions(ops.shape(key)[1]) if key_positions is None else key_positions
        distance = ops.abs(query_positions[:, None, :, None] - key_positions[:, None, None, :])
        slopes = ops.convert_to_tensor(position_ops.alibi_slopes(query.shape[2]))[None, :, None, None]
        return -slopes * ops.cast(distance, "float32")
