"""Root-mean-square normalization."""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.layers.base import register


@register
class RMSNormalization(keras.layers.RMSNormalization):
    """x / rms(x) * (offset + scale) over an axis (Zhang & Sennrich 2019), as Keras's own, with an offset.

    Args:
        axis, epsilon: As of `keras.layers.RMSNormalization`.
        offset: Added to the learned scale; 1 keeps weights around zero (Gemma), where weight decay pulls to the identity.

    Call arguments:
        x: Of any shape, float. Returns the same; computed in float32.
    """

    def __init__(self, axis: int | list[int] = -1, epsilon: float = 1e-6, *, offset: float = 0.0, **kwargs):
        super().__init__(axis=axis, epsilon=epsilon, **kwargs)
        self.offset = offset

    def build(self, input_shape):
        super().build(input_shape)
        if self.offset:  # starts as the identity
            self.scale.assign(self.scale - self.offset)

    def call(self, x):
        scale = self.scale + ops.cast(self.offset, self.scale.dtype) if self.offset else self.scale
        return ops.rms_normalization(x, scale=scale, axis=self.axis, epsilon=self.epsilon)

    def get_config(self):
        return {**super().get_config(), "offset": self.offset}
