"""From a sequence of vectors to one."""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.layers.base import Layer, check_choice, register
from keras_tfm.ops import backend
from keras_tfm.ops.attention import check_mask
from keras_tfm.ops.backend import static_shape
from keras_tfm.ops.places import at_places

KINDS = ("first", "last", "mean", "max")


@register
class Pooling(Layer):
    """Reduces (batch, length, width) to (batch, width) over real tokens.

    Args:
        kind: "first" and "last" take the row's first and last real token (BERT's [CLS]; a decoder's summary), "mean" and
            "max" run over its real tokens, in float32. A row without tokens gives zeros.

    Call arguments:
        x: (batch, length, width), float.
        padding_mask: (batch, length), true = a token. Default: the mask that Keras attached to x, if any.
    """

    def __init__(self, kind: str = "mean", **kwargs):
        super().__init__(**kwargs)
        check_choice("kind", kind, KINDS)
        self.kind = kind
        self.supports_masking = True
        self.built = True

    def call(self, x, padding_mask=None):
        check_mask("padding_mask", padding_mask, [static_shape(x)[:2]])
        padding_mask = backend.implicit_mask(x) if padding_mask is None else padding_mask
        if padding_mask is None:
            if self.kind == "first":
                return x[:, 0]
            if self.kind == "last":
                return x[:, -1]
            padding_mask = ops.ones(ops.shape(x)[:2], dtype="bool")
        real = ops.cast(padding_mask, "bool")
        wide = ops.cast(x, "float32")
        if self.kind == "mean":
            weights = ops.cast(real, "float32")[:, :, None]
            pooled = ops.sum(ops.where(real[:, :, None], wide, 0.0), axis=1) / ops.maximum(
                ops.sum(weights, axis=1), 1.0
            )
        elif self.kind == "max":
            pooled = ops.max(ops.where(real[:, :, None], wide, -1e30), axis=1)
        else:
            pooled = at_places(wide, place_of(self.kind, real))[:, 0]
        pooled = ops.where(ops.any(real, axis=1, keepdims=True), pooled, 0.0)
        return ops.cast(pooled, x.dtype)

    def compute_mask(self, x, previous_mask=None):
        return None

    def compute_output_spec(self, x, padding_mask=None):
        check_mask("padding_mask", padding_mask, [static_shape(x)[:2]])
        return keras.KerasTensor((x.shape[0], x.shape[2]), dtype=self.compute_dtype)


def place_of(kind: str, padding_mask):
    """The token that a pooling of kind "first" or "last" takes, (batch, 1) int32; of a row without tokens the first.

    `padding_mask` is (batch, length), true = a token.
    """
    real = ops.cast(padding_mask, "bool")
    if kind == "first":
        index = ops.argmax(ops.cast(real, "int32"), axis=1)
    elif kind == "last":
        index = ops.max(ops.where(real, ops.arange(ops.shape(real)[1], dtype="int32")[None, :], 0), axis=1)
    else:
        raise ValueError(f"A pooling of kind {kind!r} takes no one token.")
    return ops.cast(index, "int32")[:, None]
