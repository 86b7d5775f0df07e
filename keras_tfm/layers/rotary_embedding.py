"""Rotary position embedding."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import register
from keras_tfm.layers.position_scheme import PositionScheme
from keras_tfm.ops import positions as position_ops


@register
class RotaryEmbedding(PositionScheme):
    """Turns pairs of head features by an angle that grows with position (Su et al. 2021, RoFormer).

    Args:
        base: Of the geometric series of frequencies ("rope theta").
        fraction: Part of each head that turns, in (0, 1]; the rest passes (GPT-J, GPT-NeoX, Phi).
        scaling: None, or a dict with "kind" and options, for contexts beyond the trained one:
            {"kind": "linear", "factor"}, {"kind": "dynamic", "factor", "original_max_length"},
            {"kind": "yarn", "factor", "original_max_length", ...}, {"kind": "llama3", "factor", "original_max_length",
            "low_freq_factor", "high_freq_factor"}, {"kind": "longrope", "short_factor", "long_factor",
            "original_max_length", ...}. See `ops.positions.rope_frequencies` for the papers.
        interleaved: Pairs are neighbours (the paper, GPT-J) rather than halves of the head (GPT-NeoX, Llama).

    Call arguments:
        x: (batch, length, heads, head_dim), float.
        positions: (batch or 1, length) int; default 0, 1, 2, …

    Returns:
        As x. Angles and the turn itself are float32 under any dtype policy.

    Example:
        >>> keras_tfm.layers.RotaryEmbedding()(keras.random.normal((2, 16, 4, 8))).shape
        (2, 16, 4, 8)
    """

    def __init__(
        self,
        base: float = 10_000.0,
        fraction: float = 1.0,
        scaling: dict[str, Any] | None = None,
        interleaved: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"fraction must be above 0 and at most 1; got {fraction}.")
        if base <= 1.0:
            raise ValueError(f"base must be above 1; got {base}.")
        position_ops.check_rope_scaling(scaling)
        self.base = base
        self.fraction = fraction
        self.scaling = dict(scaling) if scaling is not None else None
        self.interleaved = interleaved
        self.supports_masking = True

    def rotated_dim(self, head_dim: int) -> int:
        """How many features of a head turn; even."""
        dim = int(head_dim * self.fraction + 1e-6)  # a fraction that was a quotient may fall just short
        if dim % 2 or dim == 0:
            raise ValueError(
                "Rotary embedding turns pairs: head_dim * fraction must be even and positive; "
                f"got {head_dim} * {self.fraction} = {dim}."
            )
        return dim

    def check_heads(self, num_heads, head_dim):
        position_ops.check_rope_scaling(self.scaling, self.rotated_dim(head_dim))

    def call(self, x, positions=None):
        cos, sin = self.angles(x, positions)
        return position_ops.rotate(x, cos, sin, interleaved=self.interleaved)

    def compute_output_spec(self, x, positions=None):
        self.rotated_dim(x.shape[-1])
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)

    def rotate(self, query, key, positions):
        cos, sin = self.angles(query, positions)
        return tuple(position_ops.rotate(x, cos, sin, interleaved=self.interleaved) for x in (query, key))

    def angles(self, x, positions):
        """cos and sin, each (batch or 1, length, 1, rotated_dim / 2) float32."""
        dim = self.rotated_dim(x.shape[-1])
        if positions is None:
            positions = ops.arange(ops.shape(x)[1], dtype="int32")[None, :]
        positions = ops.cast(positions, "float32")
        frequencies = self._frequencies(dim, ops.max(positions) + 1.0)
        angles = positions[:, :, None, None] * frequencies  # (batch or 1, length, 1, dim / 2)
        factor = position_ops.rope_attention_factor(self.scaling)
        cos, sin = ops.cos(angles), ops.sin(angles)
        return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)

    def _frequencies(self, dim: int, length):
        scaling = self.scaling
        if scaling is not None and scaling["kind"] == "dynamic":
            return position_ops.rope_dynamic_frequencies(
                dim, self.base, scaling["factor"], scaling["original_max_length"], length
            )
        frequencies = ops.convert_to_tensor(position_ops.rope_frequencies(dim, self.base, scaling), dtype="float32")
        if scaling is not None and scaling["kind"] == "longrope":
            longer = ops.convert_to_tensor(
                position_ops.rope_frequencies(dim, self.base, scaling, long=True), dtype="float32"
            )
            frequencies = ops.where(length > scaling["original_max_length"], longer, frequencies)
        return frequencies
