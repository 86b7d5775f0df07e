"""The residual connection around a sub-layer: every norm placement is one formula."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers import norm as norms
from keras_tfm.layers.base import Layer, check_choice, check_rate, derived_seed, register, serialize
from keras_tfm.layers.dropout import Dropout, DropPath, LayerScale

# Placement to the norms of y = output_norm(x + residual_norm(f(input_norm(x)))).
PLACEMENTS: dict[str, tuple[str, ...]] = {
    "pre": ("input_norm",),  # Xiong et al. 2020; GPT-2
    "post": ("output_norm",),  # Vaswani et al. 2017; BERT
    "sandwich": ("input_norm", "residual_norm"),  # Ding et al. 2021 (CogView); Gemma 2
    "residual": ("residual_norm",),  # Liu et al. 2021 (Swin v2, "res-post-norm"); OLMo 2
    "none": (),
}


@register
class Residual(Layer):
    """y = output_norm(x + drop_path(scale(dropout(residual_norm(f(input_norm(x))))))), where f is the caller's.

    Use: `f(residual.enter(x))`, then `residual.leave(x, result)`.

    Args:
        norm: "layer_norm", "rms_norm", a dict of options, or a layer as pattern.
        norm_placement: A key of `PLACEMENTS`: "pre", "post", "sandwich", "residual" or "none".
        dropout: Of the branch, element-wise.
        drop_path: Of the branch, for whole samples (`DropPath`).
        layer_scale: Initial gain of a `LayerScale` on the branch; None for none.
        seed: An int, for reproducible dropout.
    """

    def __init__(
        self,
        norm: Any = "layer_norm",
        norm_placement: str = "pre",
        dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        norms.check(norm)
        check_choice("norm_placement", norm_placement, PLACEMENTS)
        check_rate(dropout=dropout, drop_path=drop_path)
        self.norm = serialize(norm)
        self.norm_placement = norm_placement
        self.dropout = dropout
        self.drop_path = drop_path
        self.layer_scale = layer_scale
        self.seed = seed
        self.supports_masking = True
        placed = PLACEMENTS[norm_placement]
        self.input_norm, self.residual_norm, self.output_norm = (
            norms.make(self.norm, **self.sublayer_options(place)) if place in placed else None
            for place in ("input_norm", "residual_norm", "output_norm")
        )
        self.dropout_layer = Dropout(dropout, seed, **self.sublayer_options("dropout"))
        self.drop_path_layer = DropPath(
            drop_path, derived_seed(seed, "drop_path"), **self.sublayer_options("drop_path")
        )
        self.layer_scale_layer = (
            None if layer_scale is None else LayerScale(layer_scale, **self.sublayer_options("layer_scale"))
        )

    def build(self, x_shape):
        for layer in (self.input_norm, self.residual_norm, self.output_norm):
            if layer is not None:
                layer.build(x_shape)
                norms.annotate(layer, "embed")
        if self.layer_scale_layer is not None:
            self.layer_scale_layer.build(x_shape)

    def enter(self, x):
        """What the branch works on. (batch, length, width), as everything here."""
        return x if self.input_norm is None else self.input_norm(x)

    def leave(self, x, branch, training=None):
        """The branch's result, back on the residual stream."""
        if self.residual_norm is not None:
            branch = self.residual_norm(branch)
        if self.dropout:
            branch = self.dropout_layer(branch, training=training)
        if self.layer_scale_layer is not None:
            branch = self.layer_scale_layer(branch)
        if self.drop_path:
            branch = self.drop_path_layer(branch, training=training)
        x = x + ops.cast(branch, x.dtype)  # a part of another dtype does not change the stream's
        return x if self.output_norm is None else self.output_norm(x)

    def call(self, x, branch, training=None):
        return self.leave(x, branch, training=training)

    def compute_output_spec(self, x, branch, training=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
