"""Task models that say something of each token: its class, or whether an answer begins or ends there."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.data import question_examples, token_examples
from keras_tfm.layers.base import register
from keras_tfm.models.backbone import Backbone
from keras_tfm.models.heads import classification_head, named_classes, sequence_output
from keras_tfm.models.objectives import TokenAccuracy, TokenCrossentropy
from keras_tfm.models.raw_data import is_words
from keras_tfm.models.task import Task


@register
class TokenClassifier(Task):
    """A class for every token (named entities, parts of speech).

    Args:
        backbone: An encoder or decoder.
        num_classes: Logits a token. Default: as many as `labels`.
        labels: Names of the classes, in order; tags given as names are then understood by `fit`.
        dropout: Before the projection. Default: the backbone's.
        head: Further options of `ClassificationHead`, a dict, such as {"hidden_dim": 768}.
        tokenizer: For raw texts: strings in `predict`, and lists of words, with lists of tags as labels.

    Calling it gives logits, (batch, length, num_classes). Labels are (batch, length) int, negative (-100) where a token
    has none. Of raw words, a word's first piece has its tag.
    """

    kinds = ("encoder", "decoder")

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        labels: list[str] | None = None,
        dropout: float | None = None,
        head: dict[str, Any] | None = None,
        tokenizer: Any = None,
        **kwargs,
    ):
        self.num_classes, self.labels = named_classes(num_classes, labels)
        self.dropout = backbone.config.dropout if dropout is None else dropout
        self.head_options = head
        super().__init__(backbone, tokenizer=tokenizer, **kwargs)

    def _head_parts(self, backbone, dtype):
        return {"head": classification_head(backbone, self.num_classes, self.dropout, self.head_options, dtype)}

    def _is_raw(self, x):
        return is_words(x) or super()._is_raw(x)

    def _examples(self, rows, labels, max_length):
        if not is_words(rows):
            if labels is not None:
                raise ValueError("A tag for each word needs words: fit(lists of words, lists of tags).")
            return None
        tags = [[None] * len(row) for row in rows] if labels is None else labels
        names = self.labels or [str(number) for number in range(self.num_classes)]
        return token_examples(rows, tags, self._require_tokenizer(), labels=names, max_length=max_length)

    def _apply_head(self, hidden, inputs, training):
        return self.head(sequence_output(hidden), training=training)

    def _default_loss(self):
        return TokenCrossentropy()

    def _default_metrics(self):
        return [TokenAccuracy()]

    def get_config(self):
        head = {"dropout": self.dropout, "head": self.head_options}
        return {**super().get_config(), "num_classes": self.num_classes, "labels": self.labels, **head}


@register
class QuestionAnswerer(Task):
    """Where in the text an answer begins and ends (extractive question answering, Devlin et al. 2019, section 4.2).

    Args:
        backbone: An encoder or decoder.
        dropout: Before the projection. Default: 0, as BERT's.
        head: Further options of `ClassificationHead`, a dict.
        tokenizer: For raw (question, context) pairs, with answers as labels: {"text", "answer_start"} or None, as
            `keras_tfm.data.question_examples` takes them. Long contexts become several rows.

    Calling it gives {"start_logits", "end_logits"}, each (batch, length) float32 with -1e9 at padded places. Labels are a
    dict of these names, each (batch,) int.
    """

    kinds = ("encoder", "decoder")

    def __init__(
        self,
        backbone: Backbone,
        *,
        dropout: float = 0.0,
        head: dict[str, Any] | None = None,
        tokenizer: Any = None,
        **kwargs,
    ):
        self.dropout = dropout
        self.head_options = head
        super().__init__(backbone, tokenizer=tokenizer, **kwargs)

    def _head_parts(self, backbone, dtype):
        return {
            "head": classification_head(backbone, 2, self.dropout, self.head_options, dtype),
            "spans": SpanLogits(name="spans", dtype="float32"),
        }

    def _examples(self, rows, labels, max_length):
        if labels is None:
            return None
        if not all(isinstance(row, (tuple, list)) and len(row) == 2 for row in rows):
            raise ValueError(f"{self.name} takes pairs, fit([(question, context), ...], answers); got {rows[0]!r}.")
        limit = {} if max_length is None else {"max_length": max_length, "stride": min(128, max_length // 4)}
        questions, contexts = zip(*rows, strict=True)
        return question_examples(questions, contexts, labels, tokenizer=self._require_tokenizer(), **limit)

    def _example_labels(self, batch, labels):
        if "start" not in batch:
            return labels
        return {"start_logits": batch["start"], "end_logits": batch["end"]}

    def _apply_head(self, hidden, inputs, training):
        logits = self.head(sequence_output(hidden), training=training)  # (batch, length, 2)
        start, end = self.spans(logits, padding_mask=inputs["padding_mask"])
        return {"start_logits": start, "end_logits": end}

    def _default_loss(self):
        return {"start_logits": TokenCrossentropy(), "end_logits": TokenCrossentropy()}

    def _default_metrics(self):
        return {"start_logits": [TokenAccuracy()], "end_logits": [TokenAccuracy()]}

    def get_config(self):
        return {**super().get_config(), "dropout": self.dropout, "head": self.head_options}


@register
class SpanLogits(keras.layers.Layer):
    """Splits (batch, length, 2) into start and end logits and rules out padded places."""

    def call(self, x, padding_mask=None):
        start, end = x[..., 0], x[..., 1]
        if padding_mask is None:
            return start, end
        return tuple(
            ops.where(ops.cast(padding_mask, "bool"), logits, ops.cast(-1e9, logits.dtype)) for logits in (start, end)
        )

    def compute_output_spec(self, x, padding_mask=None):
        return tuple(keras.KerasTensor(x.shape[:2], dtype=self.compute_dtype) for _ in range(2))
