"""BERT's sentence A / sentence B embeddings."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import Layer, check_positive, logical_axes, register
from keras_tfm.layers.token_embedding import check_token_ids


@register
class TokenTypeEmbedding(Layer):
    """Adds a learned vector per token type (Devlin et al. 2019, figure 2).

    Args:
        vocabulary_size: Kinds of token.
        embeddings_initializer: Of the table, (vocabulary_size, width).

    Call arguments:
        x: (batch, length, width), float.
        token_type_ids: (batch, length) int in [0, vocabulary_size). Default: all 0.
    """

    def __init__(self, vocabulary_size: int = 2, embeddings_initializer: Any = "uniform", **kwargs):
        super().__init__(**kwargs)
        check_positive(vocabulary_size=vocabulary_size)
        self.vocabulary_size = vocabulary_size
        self.embeddings_initializer = embeddings_initializer
        self.supports_masking = True

    def build(self, x_shape):
        self.embeddings = self.add_weight(
            name="embeddings", shape=(self.vocabulary_size, x_shape[-1]), initializer=self.embeddings_initializer
        )
        logical_axes(self.embeddings, None, "embed")

    def call(self, x, token_type_ids=None):
        table = ops.cast(ops.convert_to_tensor(self.embeddings), x.dtype)
        if token_type_ids is None:
            return x + table[0]
        check_token_ids(token_type_ids, self.vocabulary_size, "token_type_ids")
        # A product with one-hot rows: its gradient is a product too, not a scatter into two rows.
        return x + ops.matmul(
            ops.one_hot(ops.cast(token_type_ids, "int32"), self.vocabulary_size, dtype=x.dtype), table
        )

    def compute_output_spec(self, x, token_type_ids=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
