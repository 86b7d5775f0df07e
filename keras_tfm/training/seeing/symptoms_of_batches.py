"""What may be wrong with a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from keras_tfm.models.classifiers import Classifier
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.models.token_classifiers import TokenClassifier
from keras_tfm.training.seeing.subject import Subject


class Finding(NamedTuple):
    """One thing that looks wrong.

    Attributes:
        kind: A word for it, such as "labels", "not_finite" or "learning_rate".
        where: The row, or the layer with its number.
        message: What is wrong, and what to do.
        value: The number that shows it.
    """

    kind: str
    where: str
    message: str
    value: Any

    def __str__(self) -> str:
        return f"{self.kind}, {self.where}: {self.message}"


Check = Callable[[Subject], Iterator[Finding]]


def _labels_in_range(subject: Subject) -> Iterator[Finding]:
    for name, y, classes in subject.labels():
        if isinstance(subject.model, Classifier):  # whatever the loss
            classes = subject.model.num_classes
        if classes is None or classes == 1:
            continue
        # To the loss all negative labels are none; a class is said to be none by -1 or -100.
        strange = (y < 0) & ~np.isin(y, (-1, -100)) if isinstance(subject.model, Classifier) else False
        wrong = np.argwhere((y >= classes) | strange)
        if len(wrong):
            first = tuple(wrong[0])
            message = (
                f"{name} has {int(y[first])} at {tuple(map(int, first))}, and {len(wrong)} such in all; the loss takes 0 "
                f"to {classes - 1}, or -100 for none. Number the classes from 0, or build the model with more."
            )
            yield Finding("labels", subject.row(first[0]), message, int(y[first]))


def _labelled(subject: Subject) -> Iterator[Finding]:
    if subject.y is None:
        yield Finding("labels", "the batch", "it has no labels: give (x, y).", None)
        return
    for name, y, classes in subject.labels():
        if classes is not None and classes > 1 and y.size and (y < 0).all():
            message = f"none of {y.size} {name} is 0 or above, so that the loss is 0. Are they masked by mistake?"
            yield Finding("no_labels", "the batch", message, 0)


def _tokens(subject: Subject) -> Iterator[Finding]:
    vocabulary = subject.model.vocabulary_size
    for name in ("token_ids", "decoder_token_ids"):
        ids = subject.inputs.get(name)
        if ids is None:
            continue
        wrong = np.argwhere((ids < 0) | (ids >= vocabulary))
        if len(wrong):
            first = tuple(wrong[0])
            message = (
                f"{name} has {int(ids[first])} at {tuple(map(int, first))}; vocabulary_size is {vocabulary}. Is the "
                "tokenizer another model's?"
            )
            yield Finding("token_ids", subject.row(first[0]), message, int(ids[first]))


def _padding(subject: Subject) -> Iterator[Finding]:
    for name in ("padding_mask", "decoder_padding_mask"):
        mask = subject.inputs.get(name)
        for row in np.flatnonzero(~mask.astype(bool).any(1)) if mask is not None else ():
            message = f"{name} has no token. Is the text empty, or the mask the wrong way round (true = a token)?"
            yield Finding("padding", subject.row(row), message, 0)


def _padded_labels(subject: Subject) -> Iterator[Finding]:
    if not isinstance(subject.model, (LanguageModel, TokenClassifier)):
        return
    two_sides = subject.backbone.config.kind == "encoder_decoder"
    mask = subject.inputs.get("decoder_padding_mask" if two_sides else "padding_mask")
    for name, y, _ in subject.labels():
        if mask is not None and y.shape == mask.shape:
            wrong = np.argwhere((y >= 0) & ~mask.astype(bool))
            if len(wrong):
                share = len(wrong) / max((y >= 0).sum(), 1)
                message = f"{len(wrong)} {name}, {share:.0%} of all, are of padding. Give it -100."
                yield Finding("padded_labels", subject.row(wrong[0][0]), message, len(wrong))


OF_THE_BATCH: tuple[Check, ...] = (_labels_in_range, _labelled, _tokens, _padding, _padded_labels)
