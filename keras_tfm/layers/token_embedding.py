"""Token embeddings, and the tied head that reads them backwards."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import Layer, check_positive, logical_axes, register
from keras_tfm.ops import backend, few_rows
from keras_tfm.ops.shards import with_rows_split

EXACT = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}  # every integer up to this is a number of the dtype


@register
class TokenEmbedding(Layer):
    """Looks tokens up in a table; `layer(x, reverse=True)` gives logits by the same table (Press & Wolf 2017).

    Args:
        vocabulary_size: Rows of the table.
        hidden_dim: Its width.
        mask_zero: Token 0 is padding: the output carries a Keras mask.
        scale: Factor on the embeddings, such as hidden_dim ** 0.5 (Vaswani et al. 2017, 3.4); not on the logits.
        tied: The head uses the table itself; False gives it one of its own, (hidden_dim, vocabulary_size).
        output_bias: The head adds a bias to its logits.
        logit_scale: What logits are multiplied with (Cohere; T5's hidden_dim ** -0.5).
        logit_softcap: Logits then become cap * tanh(logits / cap) (Gemma 2).
        embeddings_initializer: Of the table. `embeddings_regularizer` likewise.

    Call arguments:
        x: (batch, length) token ids in [0, vocabulary_size), int or float; reversed, (..., hidden_dim) float.
            Ids outside raise where they can be read without cost: NumPy arrays, and eager tensors on the CPU. Inside a
            compiled function TensorFlow raises on the CPU, torch everywhere; XLA clamps them.
        reverse: Compute logits, (..., vocabulary_size).
    """

    def __init__(
        self,
        vocabulary_size: int,
        hidden_dim: int,
        mask_zero: bool = False,
        *,
        scale: float | None = None,
        tied: bool = True,
        output_bias: bool = False,
        logit_scale: float | None = None,
        logit_softcap: float | None = None,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(vocabulary_size=vocabulary_size, hidden_dim=hidden_dim)
        self.vocabulary_size = vocabulary_size
        self.hidden_dim = hidden_dim
        self.mask_zero = mask_zero
        self.scale = scale
        if logit_softcap is not None and logit_softcap <= 0:
            raise ValueError(f"logit_softcap must be positive; got {logit_softcap}.")
        self.tied = tied
        self.output_bias = output_bias
        self.logit_scale = logit_scale
        self.logit_softcap = logit_softcap
        self.embeddings_initializer = embeddings_initializer
        self.embeddings_regularizer = embeddings_regularizer
        self.supports_masking = True
        self.autocast = False  # ids are no activations; reversed, the table casts
        self.table = keras.layers.ReversibleEmbedding(
            vocabulary_size,
            hidden_dim,
            tie_weights=tied,
            reverse_dtype=self.compute_dtype,
            embeddings_initializer=embeddings_initializer,
            embeddings_regularizer=embeddings_regularizer,
            **self.sublayer_options("table"),
        )

        self.table.supports_masking = True  # reversed, it takes masked states; it passes no mask on

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        reverse = args[1] if len(args) > 1 else kwargs.get("reverse")
        if args and not reverse:
            args = (as_ids(args[0], self.vocabulary_size), *args[1:])
        elif "x" in kwargs and not reverse:
            kwargs["x"] = as_ids(kwargs["x"], self.vocabulary_size)
        return super().__call__(*args, **kwargs)

    def build(self, x_shape=None):
        self.table.build()
        logical_axes(getattr(self.table, "_embeddings", None), "vocab", "embed")
        if not self.tied:
            logical_axes(self.table.reverse_embeddings, "embed", "vocab")
        self.bias = None
        if self.output_bias:
            self.bias = self.add_weight(name="bias", shape=(self.vocabulary_size,), initializer="zeros")
            logical_axes(self.bias, "vocab")

    def call(self, x, reverse=False):
        if reverse:
            return self._logits(x)
        check_token_ids(x, self.vocabulary_size)
        embedded = with_rows_split(self.table(x), getattr(self.table, "_embeddings", None))
        return embedded if self.scale is None else embedded * ops.cast(self.scale, embedded.dtype)

    def _logits(self, x):
        logits = self._products(x)  # (..., vocabulary_size)
        if self.bias is not None:
            logits = logits + ops.cast(self.bias, logits.dtype)
        if self.logit_scale is not None:
            logits = logits * ops.cast(self.logit_scale, logits.dtype)
        if self.logit_softcap is not None:
            logits = self.logit_softcap * ops.tanh(logits / self.logit_softcap)
        return logits

    def _products(self, x):
        """Of x and every row of the table."""
        plain = self.tied and self.table.quantization_mode is None and not self.table.lora_enabled
        if plain and backend.is_recording() and None not in x.shape:
            rows, width = math.prod(x.shape[:-1]), x.shape[-1]
            flat = ops.reshape(ops.cast(x, self.compute_dtype), (rows, width))
            table = ops.cast(self.table.embeddings, self.compute_dtype)
            found = few_rows.by_table(flat, table)
            if found is None and backend.NAME == "tensorflow" and rows == 1:
                # XLA transposes the table element by element in front of the other product.
                found = ops.matmul(table, ops.reshape(flat, (width, 1)))
            if found is not None:
                return ops.reshape(found, (*x.shape[:-1], -1))
        return self.table(x, reverse=True)

    def projection(self, bias: Any = None) -> dict[str, Any]:
        """The tied head as arguments of `linear_crossentropy`; `bias`, (vocabulary_size,), is added to its own.

        Raises:
            ValueError: for a quantized table, which has no gradient.
        """
        if self.table.quantization_mode is not None:
            raise ValueError(f"{self.path} is quantized to {self.table.quantization_mode}: the loss cannot train it.")
        table = self.table.embeddings if self.tied else self.table.reverse_embeddings
        biases = [ops.cast(b, self.compute_dtype) for b in (self.bias, bias) if b is not None]
        return {
            "table": ops.cast(table, self.compute_dtype),
            "bias": sum(biases[1:], biases[0]) if biases else None,
            "transposed": not self.tied,
            "scale": self.logit_scale,
            "softcap": self.logit_softcap,
        }

    def compute_mask(self, x, previous_mask=None):
        # A call turns ids into integers first: floats are hidden states here, or ids where somebody asks for their mask.
        hidden = is_float(x) and (len(x.shape) != 2 or x.shape[-1] == self.hidden_dim)
        return previous_mask if hidden or not self.mask_zero else ops.not_equal(x, 0)

    def compute_output_spec(self, x, reverse=False):
        if reverse:
            return keras.KerasTensor((*x.shape[:-1], self.vocabulary_size), dtype=self.compute_dtype)
        return keras.KerasTensor((*x.shape, self.hidden_dim), dtype=self.compute_dtype)


def is_float(x: Any) -> bool:
    """Whether x has a float dtype, bfloat16 included."""
    return "float" in str(getattr(x, "dtype", ""))


def as_ids(x: Any, vocabulary_size: int) -> Any:
    """Ids as integers. Keras's `Sequential` without an Input hands them over as floats, in the compute dtype.

    Raises:
        ValueError: for floats too coarse to tell all ids apart.
    """
    if not is_float(x):
        return x
    dtype = keras.backend.standardize_dtype(x.dtype)
    if vocabulary_size - 1 > EXACT.get(dtype, vocabulary_size):
        raise ValueError(
            f"Token ids came as {dtype}, which holds integers exactly up to {EXACT[dtype]}; vocabulary_size is "
            f"{vocabulary_size}. Begin the model with keras.Input((None,), dtype='int32')."
        )
    return ops.cast(x, "int32")


def check_token_ids(token_ids: Any, vocabulary_size: int, name: str = "token_ids") -> None:
    """Raise ValueError for ids outside [0, vocabulary_size), where their values can be read without cost."""
    values = backend.concrete(token_ids)
    if values is not None and values.size and (values.min() < 0 or values.max() >= vocabulary_size):
        raise ValueError(
            f"{name} must be from 0 to {vocabulary_size - 1}, vocabulary_size - 1; got {values.min()} to {values.max()}."
        )
