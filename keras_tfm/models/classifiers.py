"""Task models that give a whole row a class, or a number: texts and images."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.layers import Pooling
from keras_tfm.layers.base import register
from keras_tfm.layers.pooling import place_of
from keras_tfm.models.backbone import Backbone
from keras_tfm.models.heads import classification_head, named_classes, sequence_output
from keras_tfm.models.objectives import TokenAccuracy, TokenCrossentropy
from keras_tfm.models.task import Task
from keras_tfm.ops.backend import is_symbolic


class Classifier(Task):
    """A class, or a number, for a whole row: what classifiers of texts and of images share.

    Args:
        backbone: A `Backbone`.
        num_classes: Logits; 1 is regression (mean squared error). Default: as many as `labels`, else 2.
        labels: Names of the classes, in order; labels given as names are then understood by `fit`.
        pooling: "first", "last", "mean", "max", or "pooler" (BERT's).
        dropout: Before the projection. Default: the backbone's.
        head: Further options of `ClassificationHead`, a dict, such as {"hidden_dim": 768}.
        tokenizer, name, trainable, dtype: As of `Task`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        labels: list[str] | None = None,
        pooling: str | None = None,
        dropout: float | None = None,
        head: dict[str, Any] | None = None,
        **kwargs,
    ):
        self.num_classes, self.labels = named_classes(
            2 if num_classes is None and labels is None else num_classes, labels
        )
        has_pooler = getattr(backbone, "pooler", None) is not None
        if pooling == "pooler" and not has_pooler:
            raise ValueError("pooling='pooler' needs a backbone with a pooler (pooler=True); this one has none.")
        self.pooling = self._usual_pooling(backbone) if pooling is None else pooling
        self.dropout = backbone.config.dropout if dropout is None else dropout
        self.head_options = head
        super().__init__(backbone, **kwargs)

    def _usual_pooling(self, backbone: Backbone) -> str:
        raise self._not_implemented_error(self._usual_pooling)

    def _head_parts(self, backbone, dtype):
        pool = None if self.pooling == "pooler" else Pooling(self.pooling, name="pooling", dtype=dtype)
        return {
            "pool": pool,
            "head": classification_head(backbone, self.num_classes, self.dropout, self.head_options, dtype),
        }

    def compute(self, inputs, training=None):
        places, real = self._read_places(inputs)
        if places is None:
            return super().compute(inputs, training)
        given = {name: inputs[name] for name in self.backbone._input_keys}
        pooled = self.backbone.states_at(given, places, training)
        if inputs.get("segment_starts") is None:
            pooled = pooled[:, 0]
        if real is not None:  # a row without tokens gives zeros, as `Pooling` has it
            pooled = ops.where(ops.any(real, axis=1, keepdims=True), pooled, 0.0)
        return self.head(pooled if self.pool is not None else self.backbone.pooler(pooled), training=training)

    def _read_places(self, inputs):
        """The tokens that the head reads, (batch, n) int, and which of a row are real (None: all, or not looked at).

        (None, None) where it reads all of them; in the functional graph, which says what the model is, where a call
        computes no more of the last block than is read; and where a subclass stands in between.
        """
        first = inputs[self._input_keys[0]]
        kind = {"pooler": "first"}.get(self.pooling, self.pooling)
        own = type(self)._apply_head is Classifier._apply_head and type(self.backbone).compute is Backbone.compute
        if is_symbolic(first) or not own or kind not in (("first", "last") if self.reads == "tokens" else ("first",)):
            return None, None
        if inputs.get("segment_starts") is not None:
            return (None, None) if kind == "last" else (inputs["segment_starts"], None)
        real = inputs.get("padding_mask")
        if real is None and self.reads == "tokens":
            real = self.backbone.token_embedding.compute_mask(first)
        if real is not None:
            real = ops.cast(real, "bool")
            return place_of(kind, real), real
        at = 0 if kind == "first" else ops.shape(first)[1] - 1
        return ops.full((ops.shape(first)[0], 1), at, dtype="int32"), None

    def _apply_head(self, hidden, inputs, training):
        if inputs.get("segment_starts") is not None:
            pooled = self._first_of_segments(sequence_output(hidden), inputs["segment_starts"])
        elif self.pool is None:
            pooled = hidden["pooled_output"]
        else:
            pooled = self.pool(sequence_output(hidden), padding_mask=inputs.get("padding_mask"))
        return self.head(pooled, training=training)

    def _first_of_segments(self, hidden, starts):
        """The states of segments' first tokens, (batch, segments, width), as a row's first would be pooled."""
        if self.pooling not in ("first", "pooler"):
            raise ValueError(f"Packed rows are pooled at each text's first token; pooling is {self.pooling!r} here.")
        first = ops.take_along_axis(hidden, starts[:, :, None], axis=1)
        return first if self.pool is not None else self.backbone.pooler(first)

    def _default_loss(self):
        return keras.losses.MeanSquaredError() if self.num_classes == 1 else TokenCrossentropy()

    def _default_metrics(self):
        return ["mean_absolute_error"] if self.num_classes == 1 else [TokenAccuracy()]

    def _check_labels(self, labels):
        if labels is None or self.num_classes == 1:
            return labels
        labels = np.asarray(labels)
        if labels.dtype.kind in "UO":
            if self.labels is None:
                raise ValueError(
                    f"Labels are names ({labels.flat[0]!r}, …): tell the model theirs, "
                    f"{type(self).__name__}(..., labels=[...]), or give integers."
                )
            index = {name: i for i, name in enumerate(self.labels)}
            unknown = sorted({str(name) for name in labels} - set(index))
            if unknown:
                raise ValueError(f"Labels {unknown[:5]} are not among the model's, {self.labels}.")
            return np.array([index[str(name)] for name in labels], np.int32)
        if labels.dtype.kind in "iub" and labels.size and not (labels.min() >= -1 and labels.max() < self.num_classes):
            raise ValueError(
                f"Labels must be from 0 to {self.num_classes - 1} (num_classes={self.num_classes}); "
                f"got {labels.min()} to {labels.max()}."
            )
        return labels

    def _array_labels(self, x, y):
        return self._check_labels(y) if isinstance(y, (list, np.ndarray)) and np.ndim(y) == 1 else y

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "labels": self.labels,
            "pooling": self.pooling,
            "dropout": self.dropout,
            "head": self.head_options,
        }


@register
class TextClassifier(Classifier):
    """A class, or a number, for a whole text.

    Args:
        backbone: An encoder or decoder.
        num_classes: Logits; 1 is regression (mean squared error). Default: as many as `labels`, else 2.
        labels: Names of the classes, in order; labels given as names are then understood by `fit`.
        pooling: "first", "last", "mean", "max", or "pooler" (BERT's). Default: the pooler where there is one, else the
            first token of an encoder and the last of a decoder.
        dropout: Before the projection. Default: the backbone's.
        head: Further options of `ClassificationHead`, a dict, such as {"hidden_dim": 768}.
        tokenizer: For raw strings.

    Calling it gives logits, (batch, num_classes). With "segment_starts" among the inputs, (batch, segments) int, where
    the texts packed in a row begin, it gives (batch, segments, num_classes), of labels of (batch, segments).

    Example:
        >>> classifier = keras_tfm.TextClassifier(keras_tfm.models.bert("tiny"), num_classes=3)
        >>> classifier(np.ones((2, 16), "int32")).shape
        (2, 3)
    """

    kinds = ("encoder", "decoder")
    more_inputs = ("segment_starts",)

    def _usual_pooling(self, backbone):
        if getattr(backbone, "pooler", None) is not None:
            return "pooler"
        return "last" if backbone.config.kind == "decoder" else "first"


@register
class ImageClassifier(Classifier):
    """A class, or a number, for an image (Dosovitskiy et al. 2021).

    Args:
        backbone: An encoder of images, such as `models.vit`.
        num_classes: Logits; 1 is regression (mean squared error). Default: as many as `labels`, else 2.
        labels: Names of the classes, in order; labels given as names are then understood by `fit`.
        pooling: "first", "last", "mean", "max", or "pooler". Default: "first", the class token, or "mean" where the
            backbone has none.
        dropout: Before the projection. Default: the backbone's.
        head: Further options of `ClassificationHead`, a dict, such as {"hidden_dim": 768}.

    Calling it gives logits, (batch, num_classes), for images (batch, height, width, channels) of floats.

    Example:
        >>> classifier = keras_tfm.ImageClassifier(keras_tfm.models.vit("tiny", image_size=32, patch_size=8), num_classes=3)
        >>> classifier(np.zeros((2, 32, 32, 3), "float32")).shape
        (2, 3)
    """

    kinds = ("encoder",)
    reads = "images"

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        labels: list[str] | None = None,
        pooling: str | None = None,
        dropout: float | None = None,
        head: dict[str, Any] | None = None,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
    ):
        options: dict[str, Any] = {"name": name, "trainable": trainable, "dtype": dtype}
        super().__init__(backbone, num_classes, labels=labels, pooling=pooling, dropout=dropout, head=head, **options)

    def _usual_pooling(self, backbone):
        return "first" if (backbone.config.patch_embedding or {}).get("class_token", True) else "mean"

    def _require_tokenizer(self):
        raise ValueError(
            f"{self.name} reads images, arrays of floats; got strings. Load the files that they name first."
        )

    def get_config(self):
        return {name: value for name, value in super().get_config().items() if name != "tokenizer"}
