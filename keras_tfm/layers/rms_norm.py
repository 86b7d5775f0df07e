"""Root-mean-square normalization."""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.layers.base import logical_axes, register


@register
class RMSNormalization(keras.layers.RMSNormalization):
    """x / rms(x) * (offset + scale) over an axis (Zhang & Sennrich 2019), as Keras's own, with an offset.

    Args:
        axis, epsilon: As of `keras.layers.RMSNormalization`.
        offset: Added to the learned scale; 1 keeps weights around zero (Gemma), where weight decay pulls to the identity.

    Call arguments:
        x: Of any shape, float. Returns the same; computed in float32, the weights unrounded under any dtype policy.

    Example:
        >>> keras_tfm.layers.RMSNormalization(offset=1.0)(keras.random.normal((2, 16, 32))).shape
        (2, 16, 32)
    """

    def __init__(self, axis: int | list[int] = -1, epsilon: float = 1e-6, *, offset: float = 0.0, **kwargs):
        super().__init__(axis=axis, epsilon=epsilon, **kwargs)
        self.offset = offset
        self.supports_masking = True

    def build(self, input_shape):
        axes = [self.axis] if isinstance(self.axis, int) else sorted(self.axis)
        self.scale = self.add_weight(
            name="scale",
            shape=tuple(input_shape[axis] for axis in axes),
            initializer=keras.initializers.Constant(1.0 - self.offset),  # starts as the identity
            autocast=False,
        )
        logical_axes(self.scale, *("embed" if axis in (-1, len(input_shape) - 1) else None for axis in axes))
        self.built = True

    def call(self, x):
        scale = self.scale + self.offset if self.offset else self.scale
        return ops.rms_normalization(x, scale=scale, axis=self.axis, epsilon=self.epsilon)

    def get_config(self):
        return {**super().get_config(), "offset": self.offset}
