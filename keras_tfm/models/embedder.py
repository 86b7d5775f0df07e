"""Texts as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.layers import Pooling
from keras_tfm.layers.base import Layer, register
from keras_tfm.models.backbone import Backbone
from keras_tfm.models.heads import sequence_output
from keras_tfm.models.task import Task


@register
class TextEmbedder(Task):
    """A vector for a whole text, for search and comparison (Reimers & Gurevych 2019, Sentence-BERT).

    Args:
        backbone: An encoder or decoder.
        pooling: "mean", "first" (BERT's [CLS]), "last" (decoders) or "max", over real tokens. Default: "mean" of an
            encoder, "last" of a decoder; `from_pretrained` takes it from a sentence-transformers directory.
        normalize: Vectors have length 1, so that their dot product is the cosine.
        tokenizer: For raw strings.

    Calling it gives vectors, (batch, hidden_dim) float32. It has no loss of its own: `compile` takes one.

    Example:
        >>> embedder = keras_tfm.TextEmbedder(keras_tfm.models.bert("tiny"))
        >>> embedder(np.ones((2, 16), "int32")).shape
        (2, 128)
    """

    kinds = ("encoder", "decoder")

    def __init__(
        self,
        backbone: Backbone,
        *,
        pooling: str | None = None,
        normalize: bool = True,
        tokenizer: Any = None,
        **kwargs,
    ):
        if pooling is None:
            pooling = "last" if backbone.config.kind == "decoder" else "mean"
        self.pooling = pooling
        self.normalize = normalize
        super().__init__(backbone, tokenizer=tokenizer, **kwargs)

    def _head_parts(self, backbone, dtype):
        unit = UnitLength(name="unit_length", dtype="float32") if self.normalize else None
        return {"pool": Pooling(self.pooling, name="pooling", dtype="float32"), "unit": unit}

    def _apply_head(self, hidden, inputs, training):
        pooled = self.pool(sequence_output(hidden), padding_mask=inputs["padding_mask"])
        return pooled if self.unit is None else self.unit(pooled)

    def embed(self, texts: str | Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Vectors of texts, (texts, hidden_dim) float32, in their order; of a single string (hidden_dim,)."""
        single = isinstance(texts, str)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            return np.zeros((0, self.backbone.config.hidden_dim), np.float32)
        vectors = self.predict(texts, batch_size=batch_size, verbose=0)
        return vectors[0] if single else vectors

    def _default_loss(self):
        raise ValueError("TextEmbedder has no loss of its own: give one to compile(loss=...).")

    def _default_metrics(self):
        return []

    def get_config(self):
        return {**super().get_config(), "pooling": self.pooling, "normalize": self.normalize}


@register
class UnitLength(Layer):
    """Divides vectors by their Euclidean length, (..., width); zeros stay zeros."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.built = True

    def call(self, x):
        return x * ops.rsqrt(ops.maximum(ops.sum(ops.square(x), axis=-1, keepdims=True), 1e-24))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
