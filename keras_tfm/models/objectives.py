"""Loss and metric over tokens, as `compile` takes them: tokens without a label do not count."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import register
from keras_tfm.ops.losses import token_crossentropy


def _weighted(weights: Any, sample_weight: Any) -> Any:
    """Weights of tokens times those of samples, (batch,), or of tokens, as the labels."""
    if sample_weight is None:
        return weights
    sample_weight = ops.cast(sample_weight, "float32")
    while len(sample_weight.shape) < len(weights.shape):
        sample_weight = sample_weight[..., None]
    return weights * sample_weight


@register
class TokenCrossentropy(keras.losses.Loss):
    """Mean cross-entropy over the tokens that have a label; 0, not NaN, for a batch that has none.

    Labels: (batch, ...) int, negative (-100, -1) for none. Predictions: (batch, ..., classes), logits. A `sample_weight`
    of (batch,) or of the labels' shape weighs tokens; the mean is over the sum of weights.
    """

    def __init__(self, name: str = "token_crossentropy", dtype: Any = None):
        super().__init__(name=name, reduction="sum", dtype=dtype)

    def __call__(self, y_true, y_pred, sample_weight=None):
        losses, weights = token_crossentropy(y_true, y_pred)
        weights = _weighted(weights, sample_weight)
        total = ops.sum(weights)
        return ops.sum(losses * weights) / ops.where(total == 0, 1.0, total)

    def get_config(self):
        return {"name": self.name}


@register
class TokenAccuracy(keras.metrics.Mean):
    """The share of labelled tokens whose largest logit is the label's. Labels and predictions as `TokenCrossentropy`."""

    def __init__(self, name: str = "accuracy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.cast(y_true, "int32")
        hits = ops.cast(ops.equal(y_true, ops.cast(ops.argmax(y_pred, axis=-1), "int32")), "float32")
        return super().update_state(hits, sample_weight=_weighted(ops.cast(y_true >= 0, "float32"), sample_weight))
