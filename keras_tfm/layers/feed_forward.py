"""The position-wise feed-forward layer, gated or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_tfm.layers.base import Layer, check_positive, check_rate, clone_initializer, logical_axes, register
from keras_tfm.layers.dropout import Dropout
from keras_tfm.layers.projection import project
from keras_tfm.ops import activations


@register
class FeedForward(Layer):
    """down(activation(up(x))), or gated: down(activation(gate(x)) * up(x)) (Vaswani et al. 2017, 3.3; Shazeer 2020).

    SwiGLU is activation="silu", gated=True; GeGLU "gelu"; ReGLU "relu". Squared ReLU is activation="squared_relu".

    Args:
        intermediate_dim: Width between the two products.
        activation: A name (see `ops.activations.get`) or a callable registered with Keras.
        gated: A third projection gates the second.
        dropout: Of the intermediate activations, while training.
        use_bias: In all projections.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer: Of the projections.
        seed: An int, for reproducible dropout.

    Call arguments:
        x: (..., width), float. Returns the same shape.
    """

    def __init__(
        self,
        intermediate_dim: int,
        activation: str | Callable = "gelu",
        gated: bool = False,
        dropout: float = 0.0,
        use_bias: bool = True,
        *,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(intermediate_dim=intermediate_dim)
        check_rate(dropout=dropout)
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.gated = gated
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self.seed = seed
        self.supports_masking = True
        self.activation_function = activations.get(activation)
        self.dropout_layer = Dropout(dropout, seed, **self.sublayer_options("dropout"))

    def _projection(self, name: str, width: int, units: int, axes: tuple[str, str]) -> keras.layers.Dense:
        layer = keras.layers.Dense(
            units,
            use_bias=self.use_bias,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            **self.sublayer_options(name),
        )
        layer.build((None, None, width))
        logical_axes(getattr(layer, "_kernel", None), *axes)
        logical_axes(layer.bias, axes[1])
        return layer

    def build(self, x_shape):
        width = x_shape[-1]
        self.gate = self._projection("gate", width, self.intermediate_dim, ("embed", "mlp")) if self.gated else None
        self.up = self._projection("up", width, self.intermediate_dim, ("embed", "mlp"))
        self.down = self._projection("down", self.intermediate_dim, width, ("mlp", "embed"))

    def call(self, x, training=None):
        if self.gate is not None:
            hidden = self.activation_function(project(self.gate, x)) * project(self.up, x)
        else:
            hidden = self.activation_function(project(self.up, x))  # (..., intermediate_dim)
        hidden = self.dropout_layer(hidden, training=training)
        return project(self.down, hidden)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
