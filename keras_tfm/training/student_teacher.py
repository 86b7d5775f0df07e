"""What a student and its teacher must have in common, and the states of their blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from keras_tfm.data.tokenizer import Tokenizer
from keras_tfm.models.classifiers import Classifier
from keras_tfm.models.language_models import CausalLM, MaskedLM, Seq2SeqLM
from keras_tfm.models.token_classifiers import QuestionAnswerer, TokenClassifier

TASKS = (Classifier, TokenClassifier, QuestionAnswerer, MaskedLM, CausalLM, Seq2SeqLM)


@contextlib.contextmanager
def block_states(model: Any, wanted: bool = True):
    """Within: a call of the model puts what each block gives, (batch, length, hidden_dim), into the list that this yields.

    Nothing is put there unless it is wanted.
    """
    found: list[Any] = []
    if not wanted:
        yield found
        return
    stack = _stack(model)
    if stack.recompute:
        raise ValueError("hidden needs the states that recompute_blocks() has let go: recompute_blocks(False).")
    blocks = stack.blocks
    stack.blocks = [_keeping(block, found) for block in blocks]
    try:
        yield found
    finally:
        stack.blocks = blocks


def _keeping(block: Any, found: list[Any]) -> Any:
    def call(x: Any, **options: Any) -> Any:
        found.append(block(x, **options))
        return found[-1]

    return call


def _stack(model: Any) -> Any:
    """The blocks behind the outputs."""
    backbone = model.backbone
    return backbone._main if backbone._decoder is None else backbone._decoder


def check_pair(student: Any, teacher: Any) -> None:
    """Raise ValueError unless the teacher's outputs mean what the student's do."""
    kinds = []
    for name, model in (("student", student), ("teacher", teacher)):
        kinds.append(next((kind for kind in TASKS if isinstance(model, kind)), None))
        if kinds[-1] is None:
            raise ValueError(f"{name} must be one of {[kind.__name__ for kind in TASKS]}; got {type(model).__name__}.")
        if getattr(model, "num_classes", 2) == 1:
            raise ValueError(f"{name} has num_classes=1, regression; there are no probabilities to learn from.")
    if kinds[0] is not kinds[1] or student.reads != teacher.reads:
        raise ValueError(
            f"student and teacher must be of one task; got {type(student).__name__} and {type(teacher).__name__}."
        )
    for name in ("num_classes", "labels", "vocabulary_size", "image_shape"):
        ours, theirs = getattr(student, name, None), getattr(teacher, name, None)
        if ours != theirs and not (name == "labels" and None in (ours, theirs)):
            raise ValueError(f"student and teacher must have the same {name}; got {ours} and {theirs}.")
    vocabularies = [_vocabulary(model) for model in (student, teacher)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ValueError(
            "student and teacher must have the same tokenizer: a token id stands for another token in each."
        )
    if {id(variable) for variable in student.variables} & {id(variable) for variable in teacher.variables}:
        raise ValueError("student and teacher share weights, which would be trained and frozen at once: copy them.")


def _vocabulary(model: Any) -> dict[str, int] | None:
    """The ids of a model's tokenizer by token; None without one, or where it does not say."""
    tokenizer = getattr(model, "tokenizer", None)
    return tokenizer.tokenizer.get_vocab() if isinstance(tokenizer, Tokenizer) else None


def layer_pairs(student: Any, teacher: Any, hidden: float, layers: Any) -> list[tuple[int, int]]:
    """Which of the student's blocks learns from which of the teacher's, checked; none without `hidden`."""
    if not hidden:
        if layers is not None:
            raise ValueError(f"layers={layers!r} says which states are compared, and with hidden=0 none are.")
        return []
    widths = [model.backbone.config.hidden_dim for model in (student, teacher)]
    if widths[0] != widths[1]:
        raise ValueError(f"hidden={hidden} needs states of one hidden_dim; got {widths[0]} and {widths[1]}.")
    counts = [len(_stack(model).blocks) for model in (student, teacher)]
    if layers is None:
        return [(counts[0] - 1, counts[1] - 1)]
    pairs = [tuple(pair) for pair in (layers.items() if isinstance(layers, Mapping) else layers)]
    for pair in pairs:
        if len(pair) != 2 or not all(0 <= place < count for place, count in zip(pair, counts, strict=True)):
            raise ValueError(
                f"layers must pair blocks from 0 to {counts[0] - 1} of the student with those from 0 to "
                f"{counts[1] - 1} of the teacher; got {pair}."
            )
    if not pairs:
        raise ValueError("layers is empty, and hidden compares states: name a pair, or take hidden=0.")
    return pairs
