"""DeBERTa's disentangled attention: content with position, and position with content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_tfm.layers import norm as norms
from keras_tfm.layers.base import check_choice, check_positive, logical_axes, register, serialize
from keras_tfm.layers.position_scheme import PositionScheme
from keras_tfm.ops import masks
from keras_tfm.ops import positions as position_ops

TERMS = ("content_to_position", "position_to_content")


@register
class DisentangledBias(PositionScheme):
    """Scores of queries with relative positions, and of relative positions with keys (He et al. 2021, DeBERTa, eq. 4).

    As a `position`, its vectors pass through the attention layer's own query and key projections (He et al. 2023,
    DeBERTaV3), and all scores are divided by sqrt(head_dim * (1 + number of terms)), those of content with content too.
    DeBERTa shares one such layer among the blocks of a stack: pass the same object.

    As a layer: `DisentangledBias()(query, key)` gives the bias, (batch, heads, queries, keys) float32, for
    (batch, length, heads, head_dim) inputs; the vectors are then only split into heads.

    Args:
        num_buckets: Rows of the table, both directions together; near distances have one each, farther ones share them,
            logarithmically. None: one a distance, up to max_distance either way.
        max_distance: From which on all distances share the last row.
        terms: "content_to_position" (queries with the position of keys), "position_to_content", or both.
        norm: Of the vectors: "layer_norm", "rms_norm", a dict of options with a "kind", or a layer as pattern.
        embeddings_initializer: Of the table, (rows, width).

    Example:
        >>> block = keras_tfm.layers.TransformerEncoderBlock(4, 64, position={"kind": "disentangled", "num_buckets": 16})
        >>> block(keras.random.normal((2, 12, 32))).shape
        (2, 12, 32)
    """

    projected = True

    def __init__(
        self,
        num_buckets: int | None = 512,
        max_distance: int = 512,
        terms: Sequence[str] = TERMS,
        norm: Any = "layer_norm",
        embeddings_initializer: Any = "uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_buckets=num_buckets, max_distance=max_distance)
        if num_buckets is not None and (num_buckets % 2 or num_buckets < 4 or max_distance <= num_buckets // 4 + 1):
            raise ValueError(
                "num_buckets must be even, at least 4, and max_distance beyond the exact ones, num_buckets / 4 + 1; "
                f"got num_buckets={num_buckets}, max_distance={max_distance}."
            )
        if not terms or isinstance(terms, str):
            raise ValueError(f"terms must be a list with one or both of {TERMS}; got {terms!r}.")
        for term in terms:
            check_choice("terms", term, TERMS)
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.terms = list(terms)
        self.embeddings_initializer = embeddings_initializer
        self.embeddings: Any = None
        self.given(norm=serialize(norm))
        self.norm = None if norm is None else norms.make(self._given["norm"], **self.sublayer_options("norm"))

    def build(self, query_shape, key_shape=None):
        width = query_shape[2] * (query_shape[3] if len(query_shape) == 4 else 1)
        shape = (self.num_buckets or 2 * self.max_distance, width)
        self.embeddings = self.add_weight(
            name="embeddings", shape=shape, initializer=self.embeddings_initializer, autocast=False
        )
        logical_axes(self.embeddings, None, "embed")
        if self.norm is not None:
            self.norm.build(shape)
            norms.annotate(self.norm, "embed")

    def scale(self, head_dim):
        return (head_dim * (1 + len(set(self.terms)))) ** -0.5

    def vectors(self):
        vectors = ops.convert_to_tensor(self.embeddings)
        return vectors if self.norm is None else self.norm(vectors)

    def bias(self, query, key, query_positions=None, key_positions=None, *, position_query=None, position_key=None):
        heads, kv_heads = query.shape[2], key.shape[2]
        if position_query is None:
            if heads != kv_heads:
                raise ValueError(f"Without projections, query and key must agree in heads; got {heads} and {kv_heads}.")
            position_query = position_key = ops.reshape(self.vectors(), (-1, *query.shape[2:]))
        query, key, position_query, position_key = (
            ops.cast(x, "float32") for x in (query, key, position_query, position_key)
        )
        query_positions = masks.positions(ops.shape(query)[1]) if query_positions is None else query_positions
        key_positions = masks.positions(ops.shape(key)[1]) if key_positions is None else key_positions
        rows = position_ops.disentangled_rows(
            query_positions[:, :, None] - key_positions[:, None, :],  # (batch or 1, queries, keys)
            num_rows=self.num_buckets,
            max_distance=self.max_distance,
        )[:, None]
        scores = []
        if "content_to_position" in self.terms:
            position_key = ops.repeat(position_key, heads // kv_heads, axis=1)  # (rows, heads, head_dim)
            every = ops.einsum("bqhd,rhd->bhqr", query, position_key)
            scores.append(ops.take_along_axis(every, _as_many(rows, every), axis=-1))  # (batch, heads, queries, keys)
        if "position_to_content" in self.terms:
            key = ops.repeat(key, heads // kv_heads, axis=2)
            every = ops.transpose(ops.einsum("bkhd,rhd->bhkr", key, position_query), (0, 1, 3, 2))
            scores.append(ops.take_along_axis(every, _as_many(rows, every), axis=-2))
        return sum(scores) * self.scale(query.shape[3])

    def call(self, query, key, query_positions=None, key_positions=None):
        return self.bias(query, key, query_positions, key_positions)

    def compute_output_spec(self, query, key, query_positions=None, key_positions=None):
        return keras.KerasTensor((query.shape[0], query.shape[2], query.shape[1], key.shape[1]), dtype="float32")


def _as_many(rows: Any, scores: Any) -> Any:
    """Rows, (batch or 1, 1, queries, keys), for every batch row and head of the scores."""
    return ops.broadcast_to(rows, (*ops.shape(scores)[:2], *ops.shape(rows)[2:]))
