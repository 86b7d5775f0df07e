"""What one attention call asks for: the tensors, and the structure in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from keras import ops

from keras_tfm.ops import masks
from keras_tfm.ops.backend import Tensor


@dataclass
class Request:
    """The arguments of `ops.attention`, checked. Shapes are (batch, length, heads, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor
    causal: bool = False
    window: int | None = None
    padding_mask: Tensor | None = None
    query_segment_ids: Tensor | None = None
    key_segment_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    bias: Tensor | None = None
    scale: float | None = None
    softcap: float | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
    seed: object = None
    query_positions: Tensor | None = None
    key_positions: Tensor | None = None
    sees_itself: bool = False
    return_scores: bool = False

    def __post_init__(self) -> None:
        if self.scale is None:
            self.scale = 1.0 / math.sqrt(self.query.shape[-1])
        for name in ("query_positions", "key_positions", "query_segment_ids", "key_segment_ids"):
            if getattr(self, name) is not None:
                setattr(self, name, ops.cast(getattr(self, name), "int32"))

    @property
    def num_heads(self) -> int:
        """Query heads."""
        return self.query.shape[2]

    @property
    def num_key_value_heads(self) -> int:
        """Key/value heads."""
        return self.key.shape[2]

    @property
    def groups(self) -> int:
        """Query heads per key/value head."""
        return self.num_heads // self.num_key_value_heads

    @property
    def aligned(self) -> bool:
        """Query i and key i are the same token, so causality and windows can be told in words."""
        return self.query_positions is None and self.key_positions is None

    def mask(self, *, structure: bool = True) -> Tensor | None:
        """Who may attend to whom, broadcastable to (batch, heads, queries, keys); None when everyone may.

        Args:
            structure: include causality and the window; a kernel that is told them in words leaves them out.
        """
        words = []
        if structure and (self.causal or self.window is not None):
            query_positions = self.query_positions
            if query_positions is None:
                query_positions = masks.positions(ops.shape(self.query)[1])
            key_positions = self.key_positions
            if key_positions is None:
                key_positions = masks.positions(ops.shape(self.key)[1])
            if self.causal:
                words.append(masks.causal(query_positions, key_positions))
            if self.window is not None:
                words.append(masks.window(query_positions, key_positions, self.window, is_causal=self.causal))
        if self.key_positions is not None:  # negative marks an empty slot of a cache
            words.append((self.key_positions >= 0)[:, None, None, :])
        if self.padding_mask is not None:
            words.append(masks.padding(self.padding_mask))
        if self.query_segment_ids is not None:
            words.append(masks.segments(self.query_segment_ids, self.key_segment_ids))
        if self.attention_mask is not None:
            words.append(masks.explicit(self.attention_mask))
        return masks.combine(*words)

    @property
    def may_have_empty_rows(self) -> bool:
        """Whether some query might be allowed no key at all. Structure alone never does that: a query sees itself."""
        told = (
            self.padding_mask,
            self.attention_mask,
            self.query_segment_ids,
            self.query_positions,
            self.key_positions,
        )
        return not self.sees_itself and any(part is not None for part in told)
