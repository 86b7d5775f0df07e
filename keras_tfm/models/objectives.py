"""Loss and metric over tokens, as `compile` takes them: tokens without a label do not count."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import check_positive, register
from keras_tfm.ops import replicas
from keras_tfm.ops.linear_crossentropy import linear_crossentropy
from keras_tfm.ops.losses import token_crossentropy


def weighted(weights: Any, sample_weight: Any) -> Any:
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

    Args:
        label_smoothing: The share of each label that is spread over all classes (Szegedy et al. 2016, section 7).
        z_loss: Factor on the square of the logarithm of the softmax's normalizer, which is added (Chowdhery et al. 2022,
            section 5: 1e-4).
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        name: str = "token_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction="sum", dtype=dtype)
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must be at least 0 and less than 1; got {label_smoothing}.")
        if z_loss < 0.0:
            raise ValueError(f"z_loss must not be negative; got {z_loss}.")
        self.label_smoothing = label_smoothing
        self.z_loss = z_loss

    def total_weight(self, y_true: Any, sample_weight: Any = None) -> Any:
        """What the mean is over: how many tokens have a label, or the sum of their weights; a scalar, float32."""
        counted = ops.cast(ops.cast(y_true, "int32") >= 0, "float32")
        return ops.sum(weighted(counted, sample_weight))

    def __call__(self, y_true, y_pred, sample_weight=None):
        losses, weights = token_crossentropy(y_true, y_pred, label_smoothing=self.label_smoothing, z_loss=self.z_loss)
        weights = weighted(weights, sample_weight)
        return mean_of(ops.sum(losses * weights), ops.sum(weights))

    def get_config(self):
        return {"name": self.name, "label_smoothing": self.label_smoothing, "z_loss": self.z_loss}


@register
class LinearCrossentropy(TokenCrossentropy):
    """`TokenCrossentropy` of a language model whose logits are never held as a whole, only `chunk` tokens' at a time.

    `CausalLM`, `MaskedLM` and `Seq2SeqLM` take it in `compile(loss=...)`, also by its name, "linear_crossentropy". In
    `fit` and `evaluate` they then give it the states before the projection to the vocabulary, and no metric can be had,
    for those would need the logits; the exponential of the loss is the perplexity. Anywhere else it is given logits.

    Args:
        label_smoothing, z_loss: As of `TokenCrossentropy`.
        chunk: Tokens at a time. Default: as many as give 8 M logits.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        chunk: int | None = None,
        name: str = "linear_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(label_smoothing=label_smoothing, z_loss=z_loss, name=name, dtype=dtype)
        check_positive(chunk=chunk)
        self.chunk = chunk
        self._projection: dict[str, Any] | None = None

    @contextlib.contextmanager
    def of_states(self, **projection: Any):
        """Within: predictions are states, and these are `linear_crossentropy`'s arguments beside them."""
        self._projection = projection
        try:
            yield
        finally:
            self._projection = None

    def __call__(self, y_true, y_pred, sample_weight=None):
        if self._projection is None:
            return super().__call__(y_true, y_pred, sample_weight)
        y_true = ops.cast(y_true, "int32")
        weights = weighted(ops.ones_like(y_true, dtype="float32"), sample_weight)
        options: dict[str, Any] = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss, "chunk": self.chunk}
        return mean_of(*linear_crossentropy(y_pred, labels=y_true, weights=weights, **options, **self._projection))

    def get_config(self):
        return {**super().get_config(), "chunk": self.chunk}


def mean_of(total: Any, weights: Any) -> Any:
    """total / weights; 0 where nothing has weight.

    Where replicas share a batch, `weights` are summed over all of them: this is a replica's share of the batch's mean, and
    the shares add up to it, as gradients do; those of torch's processes, whose gradients are averaged, have it as their
    mean. Keras would take the mean of means, which gives a token of a replica with few of them more weight than one of a
    replica with many.
    """
    weights = replicas.summed(weights) * (replicas.addends() / replicas.count())
    return total / ops.where(weights == 0, 1.0, weights)


@register
class TokenAccuracy(keras.metrics.Mean):
    """The share of labelled tokens whose largest logit is the label's. Labels and predictions as `TokenCrossentropy`."""

    def __init__(self, name: str = "accuracy", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        y_true = ops.cast(y_true, "int32")
        hits = ops.cast(ops.equal(y_true, ops.cast(ops.argmax(y_pred, axis=-1), "int32")), "float32")
        # Flat: Keras takes the mean of each row first, in which a token of a short batch counts for more.
        weights = ops.reshape(weighted(ops.cast(y_true >= 0, "float32"), sample_weight), (-1,))
        return super().update_state(ops.reshape(hits, (-1,)), sample_weight=weights)
