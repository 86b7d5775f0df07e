"""Task heads: what turns hidden states into logits."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers import norm as norms
from keras_tfm.layers.base import (
    Layer,
    check_choice,
    check_positive,
    check_rate,
    clone_initializer,
    logical_axes,
    register,
    serialize,
)
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
        use_bias: Of the projections; or a dict over "hidden" and "logits".
        kernel_initializer: Of the projections.
        norm: Behind the activation of the hidden layer (ModernBERT's head): "layer_norm", "rms_norm", a dict of options
            with a "kind", or a layer as pattern; None for none.

    Call arguments:
        x: (..., width), float. Returns (..., num_classes).
    """

    def __init__(
        self,
        num_classes: int,
        hidden_dim: int | None = None,
        activation: Any = "tanh",
        dropout: float = 0.0,
        use_bias: bool | dict[str, bool] = True,
        kernel_initializer: Any = "glorot_uniform",
        norm: Any = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_classes=num_classes, hidden_dim=hidden_dim)
        check_rate(dropout=dropout)
        if hidden_dim is None and activation != "tanh":
            raise ValueError(f"activation={activation!r} is that of a hidden layer; give its hidden_dim too.")
        if hidden_dim is None and norm is not None:
            raise ValueError(f"norm={norm!r} follows a hidden layer; give its hidden_dim too.")
        if isinstance(use_bias, dict):
            for part in use_bias:
                check_choice("use_bias", part, ("logits",) if hidden_dim is None else ("hidden", "logits"))
        self.num_classes = num_classes
        self.hidden_dim = hidden_dim
        self.activation = activation
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.supports_masking = True
        self.dropout_layer = Dropout(dropout, **self.sublayer_options("dropout"))
        self.given(norm=serialize(norm))
        self.hidden = self.norm = None
        if hidden_dim is not None:
            self.hidden = self._projection("hidden", hidden_dim, activation=activations.get(activation))
        if norm is not None:
            self.norm = norms.make(self._given["norm"], **self.sublayer_options("norm"))
        self.logits = self._projection("logits", num_classes)

    def _projection(self, name: str, units: int, **options: Any) -> keras.layers.Dense:
        use_bias = self.use_bias.get(name, True) if isinstance(self.use_bias, dict) else self.use_bias
        initializer = clone_initializer(self.kernel_initializer)
        options |= {"use_bias": use_bias, "kernel_initializer": initializer}
        return keras.layers.Dense(units, **options, **self.sublayer_options(name))

    def build(self, x_shape):
        if self.hidden is not None:
            self.hidden.build(x_shape)
            logical_axes(getattr(self.hidden, "_kernel", None), "embed", "mlp")
            logical_axes(self.hidden.bias, "mlp")
            x_shape = (*x_shape[:-1], self.hidden_dim)
        if self.norm is not None:
            self.norm.build(x_shape)
            norms.annotate(self.norm, "mlp")
        self.logits.build(x_shape)
        logical_axes(getattr(self.logits, "_kernel", None), "embed", "classes")
        logical_axes(self.logits.bias, "classes")

    def call(self, x, training=None):
        x = self.dropout_layer(x, training=training)
        if self.hidden is not None:
            x = self.hidden(x)
            x = x if self.norm is None else self.norm(x)
            x = self.dropout_layer(x, training=training)
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
        output_bias: Of the logits.

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
        output_bias: bool = True,
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
        self.output_bias = output_bias
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
        self.bias = None
        if self.output_bias:
            self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")
            logical_axes(self.bias, "vocab")

    def states(self, x: Any) -> Any:
        """What the table multiplies, (..., hidden_dim)."""
        return self.norm(self.activation_function(self.hidden(x)))

    def call(self, x, token_embedding):
        logits = token_embedding(self.states(x), reverse=True)
        logits = keras.ops.cast(logits, self.compute_dtype)
        return logits if self.bias is None else logits + keras.ops.cast(self.bias, logits.dtype)

    def compute_output_spec(self, x, token_embedding=None):
        return keras.KerasTensor((*x.shape[:-1], self.vocabulary_size), dtype=self.compute_dtype)
