"""Metrics over texts and tokens as papers report them, as `compile` takes them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.layers.base import check_choice, check_positive, register
from keras_tfm.models.objectives import weighted
from keras_tfm.ops.losses import token_crossentropy

AVERAGES = ("micro", "macro", "weighted", None)


@register
class Perplexity(keras.metrics.Mean):
    """exp of the mean cross-entropy of the labelled tokens; 1 where none has been seen.

    The mean is over all tokens since the last reset, not over batches. Where the loss is "linear_crossentropy", which
    leaves no logits for a metric, the exponential of the loss is the perplexity.

    Args:
        name, dtype: As of any Keras metric.

    Labels: (batch, ...) int, negative (-100, -1) for none. Predictions: (batch, ..., classes), logits of any float
    dtype, which are read in float32. A `sample_weight`, of (batch,) or of the labels' shape, weighs tokens; Keras gives
    it to `compile(weighted_metrics=[...])` alone.
    """

    def __init__(self, name: str = "perplexity", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        losses, weights = token_crossentropy(y_true, y_pred)
        # Flat: Keras takes the mean of each row first, in which a token of a short batch counts for more.
        weights = ops.reshape(weighted(weights, sample_weight), (-1,))
        return super().update_state(ops.reshape(losses, (-1,)), sample_weight=weights)

    def result(self):
        return ops.exp(super().result())


@register
class F1(keras.metrics.Metric):
    """The harmonic mean of precision and recall over rows or tokens, by class and averaged.

    The same numbers as scikit-learn's `f1_score(labels, predictions, labels=range(num_classes))`, over all labelled rows
    or tokens since the last reset.

    Args:
        num_classes: Logits a row or token, at least 2.
        average: "macro", the mean over classes; "weighted", the mean weighed by how often a class is the label; "micro",
            of the hits and misses of all classes together; None, a score for each class, (num_classes,).
        ignore_class: A class whose own score is not in the average, such as that of the tag "O". Confusions of other
            classes with it count for those. (Keras's argument of this name leaves out what has this label.)
        zero_division: The score of a class that is neither a label nor predicted: 0, 1, or NaN, which leaves it out of
            the average, as `f1_score` does when not told `labels`.
        name, dtype: As of any Keras metric.

    Labels: (batch, ...) int, negative (-100, -1) for none. Predictions: (batch, ..., num_classes), logits. A
    `sample_weight`, of (batch,) or of the labels' shape, weighs what is counted; Keras gives it to
    `compile(weighted_metrics=[...])` alone.

    Raises:
        ValueError: for values out of range, ignore_class with average=None, and logits of other classes.

    Example:
        >>> tagger.compile(metrics=[keras_tfm.training.F1(9, ignore_class=0)])
    """

    def __init__(
        self,
        num_classes: int,
        average: str | None = "macro",
        *,
        ignore_class: int | None = None,
        zero_division: float = 0.0,
        name: str = "f1",
        dtype: Any = None,
    ):
        check_positive(num_classes=num_classes)
        check_choice("average", average, AVERAGES)
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2; got {num_classes}. Regression has no F1.")
        if ignore_class is not None and not 0 <= ignore_class < num_classes:
            raise ValueError(f"ignore_class must be from 0 to {num_classes - 1}; got {ignore_class}.")
        if ignore_class is not None and average is None:
            raise ValueError(
                f"ignore_class={ignore_class} is left out of an average, and there is none with average=None: drop its "
                "score from the result."
            )
        if not (zero_division in (0, 1) or np.isnan(zero_division)):
            raise ValueError(f"zero_division must be 0, 1 or NaN; got {zero_division!r}.")
        super().__init__(name=name, dtype=dtype)
        self.num_classes = num_classes
        self.average = average
        self.ignore_class = ignore_class
        self.zero_division = float(zero_division)
        for count in ("hits", "predicted", "labelled"):
            setattr(self, count, self.add_variable((num_classes,), initializer="zeros", name=count))

    def update_state(self, y_true, y_pred, sample_weight=None):
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                f"{self.name} is of num_classes={self.num_classes}; got predictions of shape {tuple(y_pred.shape)}."
            )
        y_true = ops.cast(y_true, "int32")
        chosen = ops.cast(ops.argmax(y_pred, axis=-1), "int32")
        weights = weighted(ops.cast(y_true >= 0, "float32"), sample_weight)
        labels, chosen, weights = (ops.reshape(x, (-1,)) for x in (ops.maximum(y_true, 0), chosen, weights))
        hits = ops.where(ops.equal(labels, chosen), weights, 0.0)
        for count, classes, values in (
            (self.hits, labels, hits),
            (self.predicted, chosen, weights),
            (self.labelled, labels, weights),
        ):
            sums = ops.segment_sum(values, classes, num_segments=self.num_classes)
            count.assign_add(ops.cast(sums, count.dtype))

    def result(self):
        counts = (ops.convert_to_tensor(count) for count in (self.hits, self.predicted, self.labelled))
        if self.ignore_class is not None:
            kept = np.delete(np.arange(self.num_classes), self.ignore_class)
            counts = (ops.take(count, kept, axis=0) for count in counts)
        hits, predicted, labelled = counts
        if self.average == "micro":
            return self._score(ops.sum(hits), ops.sum(predicted) + ops.sum(labelled))
        scores = self._score(hits, predicted + labelled)
        if self.average is None:
            return scores
        defined = ops.cast(ops.logical_not(ops.isnan(scores)), scores.dtype)
        weights = labelled if self.average == "weighted" else ops.ones_like(labelled)
        weights = ops.where(ops.sum(weights) > 0, weights, ops.ones_like(weights)) * defined
        # Where no class has a score, 0 / 0 is the NaN that was asked for.
        return ops.sum(ops.where(defined > 0, scores, 0.0) * weights) / ops.sum(weights)

    def _score(self, hits: Any, occurrences: Any) -> Any:
        """2 hits over how often a class is predicted or the label."""
        occurs = occurrences > 0
        return ops.where(occurs, 2.0 * hits / ops.where(occurs, occurrences, 1.0), self.zero_division)

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "average": self.average,
            "ignore_class": self.ignore_class,
            "zero_division": self.zero_division,
        }


@register
class ExactMatch(keras.metrics.Mean):
    """The share of rows of which every labelled token is right.

    Args:
        name, dtype: As of any Keras metric.

    Labels: (batch, ...) int, negative (-100, -1) for none. Predictions: (batch, ..., classes), logits. A row without
    labels does not count. A `sample_weight` of (batch,) weighs rows; of one of the labels' shape, a row has the mean
    of its labelled tokens, and tokens of weight 0 need not be right. Keras gives it to
    `compile(weighted_metrics=[...])` alone.

    `update_state` also takes dicts of labels and of predictions, such as `QuestionAnswerer`'s, of which all must be
    right. In `compile`, Keras gives a metric one output at a time: {"start_logits": [ExactMatch()]} counts starts. What
    a paper reports as exact match of answers is `AnswerScores`.
    """

    def __init__(self, name: str = "exact_match", dtype: Any = None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels, logits = keras.tree.flatten(y_true), keras.tree.flatten(y_pred)
        if isinstance(y_true, dict) and set(y_true) != set(y_pred):
            raise ValueError(f"Labels are of {sorted(y_true)}, predictions of {sorted(y_pred)}.")
        parts = [_wrong_and_weights(*pair, sample_weight) for pair in zip(labels, logits, strict=True)]
        wrong, weight, count = (sum(sums[1:], sums[0]) for sums in zip(*parts, strict=True))
        right = ops.cast(ops.equal(wrong, 0.0), "float32")
        return super().update_state(right, sample_weight=weight / ops.where(count == 0, 1.0, count))


def _wrong_and_weights(y_true: Any, y_pred: Any, sample_weight: Any) -> tuple[Any, Any, Any]:
    """Of each row, (batch,): how many tokens are wrong, the sum of the tokens' weights, and how many have weight."""
    y_true = ops.cast(y_true, "int32")
    weights = weighted(ops.cast(y_true >= 0, "float32"), sample_weight)
    counted = ops.cast(weights != 0, "float32")
    wrong = ops.cast(ops.not_equal(y_true, ops.cast(ops.argmax(y_pred, axis=-1), "int32")), "float32") * counted
    axes = tuple(range(1, len(y_true.shape)))
    if not axes:
        return wrong, weights, counted
    return ops.sum(wrong, axes), ops.sum(weights, axes), ops.sum(counted, axes)
