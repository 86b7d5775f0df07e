"""Attention with linear biases."""

from __future__ import annotations

from keras import ops

from keras_tfm.layers.base import register
from keras_tfm.layers.position_scheme import PositionBias
from keras_tfm.ops import positions as position_ops


@register
class ALiBi(PositionBias):
    """Penalizes scores in proportion to distance, a slope per head, no weights (Press et al. 2022).

    As a layer: `ALiBi()(query, key)` gives the bias, (batch or 1, heads, queries, keys) float32, for
    (batch, length, heads, head_dim) inputs. As a `position`, attention adds it to the scores. Distances count in both
    directions, so it serves encoders too.
    """

    def between(self, query_positions, key_positions, num_heads):
        distance = ops.abs(query_positions[:, None, :, None] - key_positions[:, None, None, :])
        slopes = ops.convert_to_tensor(position_ops.alibi_slopes(num_heads))[None, :, None, None]
        return -slopes * ops.cast(distance, "float32")
