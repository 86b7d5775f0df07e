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
    global_tokens: int = 0
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
        structured = structure and (self.causal or self.window is not None)
        query_positions, key_positions = self.query_positions, self.key_positions
        if structured:
            query_positions = masks.positions(ops.shape(self.query)[1]) if query_positions is None else query_positions
            key_positions = masks.positions(ops.shape(self.key)[1]) if key_positions is None else key_positions
        return allowed(
            query_positions=query_positions,
            key_positions=key_positions,
            causal=self.causal and structure,
            window=self.window if structure else None,
            global_tokens=self.global_tokens,
            valid=self.valid_keys(),
            query_segment_ids=self.query_segment_ids,
            key_segment_ids=self.key_segment_ids,
            attention_mask=self.attention_mask,
        )

    def valid_keys(self) -> Tensor | None:
        """(batch or 1, keys), true = a token that may be attended to by who sees it; None when all are."""
        valid = None if self.padding_mask is None else ops.cast(self.padding_mask, "bool")
        if self.key_positions is None:
            return valid
        full = self.key_positions >= 0  # negative marks an empty slot of a cache
        return full if valid is None else ops.logical_and(full, valid)

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


def allowed(
    *,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    causal: bool = False,
    window: int | None = None,
    global_tokens: int = 0,
    valid: Tensor | None = None,
    query_segment_ids: Tensor | None = None,
    key_segment_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor | None:
    """All that `ops.attention` is told about who may attend to whom, as one mask; None when everyone may.

    Args:
        query_positions, key_positions: (batch or 1, queries) and (batch or 1, keys) int32; None where neither causal nor
            window is.
        causal, window, global_tokens, query_segment_ids, key_segment_ids, attention_mask: As of `ops.attention`.
        valid: (batch or 1, keys), true = a token.

    Returns:
        Boolean, broadcastable to (batch, heads, queries, keys), or None.
    """
    words: list[Tensor | None] = []
    if causal:
        words.append(masks.causal(query_positions, key_positions))
    if window is not None:
        words.append(
            masks.window(query_positions, key_positions, window, is_causal=causal, global_tokens=global_tokens)
        )
    if valid is not None:
        words.append(masks.padding(valid))
    if query_segment_ids is not None:
        words.append(masks.segments(query_segment_ids, key_segment_ids))
    if attention_mask is not None:
        words.append(masks.explicit(attention_mask))
    return masks.combine(*words)
