"""Dropout over features, and over whole residual branches."""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.layers.base import Layer, check_rate, register
from keras_tfm.ops import random


@register
class Dropout(Layer):
    """Dropout (Srivastava et al. 2014) as `keras.layers.Dropout`, drawn more cheaply (see `ops.random.dropout`).

    Args:
        rate: Probability that an element is zeroed, in [0, 1].
        seed: An int for reproducible draws.
    """

    def __init__(self, rate: float, seed: int | None = None, **kwargs):
        super().__init__(**kwargs)
        check_rate(rate=rate)
        self.rate = rate
        self.seed = seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed) if rate > 0 else None
        self.built = True

    def call(self, x, training=None):
        if not training or self.rate == 0:
            return x
        return random.dropout(x, self.rate, self.seed_generator)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


@register
class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for whole samples, scaling the others up.

    Args:
        rate: Probability that a sample's branch is dropped, in [0, 1].
        seed: An int for reproducible draws.
    """

    def call(self, x, training=None):
        if not training or self.rate == 0:
            return x
        shape = (ops.shape(x)[0], *([1] * (len(x.shape) - 1)))  # one draw a sample
        return x * random.dropout(ops.ones(shape, dtype=x.dtype), self.rate, self.seed_generator)


@register
class LayerScale(Layer):
    """A learned gain per channel on a residual branch (Touvron et al. 2021, CaiT, eq. 2).

    Args:
        initial_value: What every gain starts from; small, such as 1e-5, for deep models.
    """

    def __init__(self, initial_value: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.initial_value = initial_value
        self.supports_masking = True

    def build(self, x_shape):
        self.gain = self.add_weight(
            name="gain", shape=(x_shape[-1],), initializer=keras.initializers.Constant(self.initial_value)
        )
        self.gain.logical_axes = ("embed",)

    def call(self, x):
        return x * ops.cast(self.gain, x.dtype)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
