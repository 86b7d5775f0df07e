"""What the heads of task models share."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers import ClassificationHead
from keras_tfm.layers.base import check_options, check_positive
from keras_tfm.models.backbone import Backbone


def sequence_output(hidden: Any) -> Any:
    """Hidden states of any kind of backbone, (batch, length, hidden_dim)."""
    return hidden["sequence_output"] if isinstance(hidden, dict) else hidden


def classification_head(
    backbone: Backbone, num_classes: int, dropout: float, given: dict[str, Any] | None, dtype: Any
) -> ClassificationHead:
    """The projection to `num_classes`; `given` are options of `ClassificationHead` that go before the others."""
    initializer = keras.initializers.TruncatedNormal(stddev=backbone.config.initializer_range)
    check_options("head", given or {}, ClassificationHead)
    options = {"dropout": dropout, "kernel_initializer": initializer, **(given or {})}
    return ClassificationHead(num_classes, **options, name="head", dtype=dtype)


def named_classes(num_classes: int | None, labels: list[str] | None) -> tuple[int, list[str] | None]:
    """How many classes there are, and their names."""
    if num_classes is None:
        if labels is None:
            raise ValueError("Either num_classes or labels must be given.")
        num_classes = len(labels)
    check_positive(num_classes=num_classes)
    if labels is not None and len(labels) != num_classes:
        raise ValueError(f"labels names {len(labels)} classes; num_classes is {num_classes}.")
    return num_classes, None if labels is None else [str(label) for label in labels]
