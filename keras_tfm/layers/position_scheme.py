"""What every position scheme is: one object with three hooks, of which each fills the one it needs.

`embed` adds to embeddings, `rotate` turns heads, `bias` shifts scores. Blocks know the hooks, never the scheme.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import Layer
from keras_tfm.ops import masks
from keras_tfm.ops.backend import Tensor


class PositionScheme(Layer):
    """A position scheme that does nothing; the schemes override a hook."""

    where: str = "attention"  # or "embedding": where the scheme has its effect
    projected: bool = False  # `vectors` go through the projections of attention, and from there to `bias`

    def embed(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Add to embeddings. x: (batch, length, width); positions: (batch or 1, length) int, None for 0, 1, 2, …"""
        return x

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn the heads of a chunk's queries and keys, (batch, length, heads, head_dim)."""
        return query, key

    def bias(
        self, query: Tensor, key: Tensor, query_positions: Tensor | None, key_positions: Tensor | None, **projected: Any
    ) -> Tensor | None:
        """What to add to the scores, broadcastable to (batch, heads, queries, keys) float32; None for nothing.

        Takes queries and keys as attended (keys of a whole cache, say) with (batch or 1, length) positions, None for
        0, 1, 2, …; a `projected` scheme also its `vectors` as position_query and position_key, (count, heads, head_dim).
        """
        return None

    def vectors(self) -> Tensor:
        """Of a `projected` scheme: what attention projects to queries and keys, as it does tokens. (count, width)."""
        raise self._not_implemented_error(self.vectors)

    def scale(self, head_dim: int) -> float | None:
        """The scale of the scores that goes with the scheme; None for the usual one."""
        return None

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        """Raise ValueError where the scheme cannot serve heads of this number and width."""


class PositionBias(PositionScheme):
    """A scheme whose bias depends on positions alone; subclasses give it in `between`.

    As a layer, called with queries and keys (batch, length, heads, head_dim), it gives the bias itself.
    """

    def between(self, query_positions: Tensor, key_positions: Tensor, num_heads: int) -> Tensor:
        """(batch or 1, queries) and (batch or 1, keys) int to (batch or 1, heads, queries, keys) float32."""
        raise self._not_implemented_error(self.between)

    def bias(self, query, key, query_positions=None, key_positions=None):
        query_positions = masks.positions(ops.shape(query)[1]) if query_positions is None else query_positions
        key_positions = masks.positions(ops.shape(key)[1]) if key_positions is None else key_positions
        return self.between(query_positions, key_positions, query.shape[2])

    def call(self, query, key, query_positions=None, key_positions=None):
        return self.bias(query, key, query_positions, key_positions)

    def compute_output_spec(self, query, key, query_positions=None, key_positions=None):
        batches = [p.shape[0] for p in (query_positions, key_positions) if p is not None]
        batch = next((b for b in batches if b != 1), 1)
        return keras.KerasTensor((batch, query.shape[2], query.shape[1], key.shape[1]), dtype="float32")
