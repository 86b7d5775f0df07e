"""Task heads: what turns hidden states into logits."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers import norm as norms
from keras_tfm.layers.base import Layer, check_positive, check_rate, logical_axes, register, serialize
from keras_tfm.layers.dropout import Dropout
from keras_tfm.ops import activations


@register
class ClassificationHead(Layer):
    """Dropout and a projection to classes, behind an optional hidden layer.

    Args:
        num_classes: Logits.
        hidden_dim: Width of a hidden layer before them (RoBERTa's head); None for none (BERT's).
        activation: Of the hidden layer.
        dropout: Before each projection.
        use_bias: Of the projections.
        kernel_initializer: Of the projections.

    Call arguments:
        x: (..., width), float. Returns (..., num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int | None = None,
        activation: Any = "tanh",
        dropout: float = 0.0,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_classes=num_classes, hidden_dim=hidden_dim)
        check_rate(dropout=dropout)
        if hidden_dim is None and activation != "tanh":
            raise ValueError(f"activation={activation!r} is that of a hidden layer; give its hidden_dim too.")
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.activation = activation
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.supports_masking = True
        self.dropout_layer = Dropout(dropout, **self.sublayer_options("dropout"))
        options = {"kernel_initializer": kernel_initializer, "use_bias": use_bias}
        self.hidden = None
        if hidden_dim is not None:
            self.hidden = keras.layers.Dense(
                hidden_dim, activation=activations.get(activation), **options, **self.sublayer_options("hidden")
            )
        self.logits = keras.layers.Dense(num_classes, **options, **self.sublayer_options("logits"))

    def build(self, x_shape):
        if self.hidden is not None:
            self.hidden.build(x_shape)
            logical_axes(getattr(self.hidden, "_kernel", None), "embed", "mlp")
            logical_axes(self.hidden.bias, "mlp")
            x_shape = (*x_shape[:-1], self.hidden_dim)
        self.logits.build(x_shape)
        logical_axes(getattr(self.logits, "_kernel", None), "embed", "classes")
        logical_axes(self.logits.bias, "classes")

    def call(self, x, training=None):
        x = self.dropout_layer(x, training=training)
        if self.hidden is not None:
            x = self.dropout_layer(self.hidden(x), training=training)
        return self.logits(x)

    def compute_output_spec(self, x, training=None):
        return keras.KerasTensor((*x.shape[:-1], self.num_classes), dtype=self.compute_dtype)


@register
class MaskedLMHead(Layer):
    """BERT's head for masked tokens: a hidden layer, a norm, the tied table, a bias (Devlin et al. 2019, appendix A.1).

    Args:
        vocabulary_size: Logits.
        activation: Of the hidden layer.
        norm: As in the blocks.
        hidden_dim: Width of the hidden layer, that of the table. Default: the input's.
        use_bias: Of the hidden layer.
        kernel_initializer: Of the hidden layer.

    Call arguments:
        x: (..., width), float.
        token_embedding: The `TokenEmbedding` whose table gives the logits.

    Returns:
        (..., vocabulary_size).
    """

    def __init__(
        self,
        vocabulary_size: int,
        activation: Any = "gelu",
        norm: Any = "layer_norm",
        hidden_dim: int | None = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(vocabulary_size=vocabulary_size, hidden_dim=hidden_dim)
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.use_bias = use_bias
        self.activation = activation
        norms.check(norm)
        self.kernel_initializer = kernel_initializer
        self.given(norm=serialize(norm))
        self.supports_masking = True
        self.activation_function = activations.get(activation)
        self.norm = norms.make(self._given["norm"], **self.sublayer_options("norm"))

    def build(self, x_shape):
        width = self.hidden_dim or x_shape[-1]
        options = {"use_bias": self.use_bias, "kernel_initializer": self.kernel_initializer}
        self.hidden = keras.layers.Dense(width, **options, **self.sublayer_options("hidden"))
        self.hidden.build(x_shape)
        logical_axes(getattr(self.hidden, "_kernel", None), "embed", "mlp")
        logical_axes(self.hidden.bias, "mlp")
        self.norm.build((*x_shape[:-1], width))
        norms.annotate(self.norm, "embed")
        self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")
        logical_axes(self.bias, "vocab")

    def call(self, x, token_embedding):
        x = self.norm(self.activation_function(self.hidden(x)))
        logits = token_embedding(x, reverse=True)
        logits = keras.ops.cast(logits, self.compute_dtype)
        return logits + keras.ops.cast(self.bias, logits.dtype)

    def compute_output_spec(self, x, token_embedding=None):
        return keras.KerasTensor((*x.shape[:-1], self.vocabulary_size), dtype=self.compute_dtype)
