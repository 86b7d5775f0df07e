"""SQuAD's scores of answers as text."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def squad_scores(predictions: Sequence[str], answers: Sequence[Any]) -> dict[str, float]:
    """Exact match and F1 of texts, of the best of several answers each, in lower case, without punctuation and articles.

    Args:
        predictions: Texts, "" for no answer.
        answers: As of `AnswerScores`.

    Returns:
        {"exact_match", "f1"}, from 0 to 100, as SQuAD 2's script gives them.

    Raises:
        ValueError: for numbers of rows that differ, and none.
    """
    texts = [answer_texts(answer, index) for index, answer in enumerate(answers)]
    check_rows(predictions=predictions, answers=texts)
    best = []
    for prediction, right in zip(predictions, texts, strict=True):
        golds = [words for words in map(_words, right) if words] or [[]]
        found = _words(prediction)
        best.append((max(found == gold for gold in golds), max(_overlap(found, gold) for gold in golds)))
    exact, f1 = (100.0 * sum(values) / len(best) for values in zip(*best, strict=True))
    return {"exact_match": exact, "f1": f1}


def _words(text: str) -> list[str]:
    """SQuAD's normalization."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _overlap(found: list[str], gold: list[str]) -> float:
    """F1 of the words that two answers have in common; with one empty, whether both are."""
    if not (found and gold):
        return float(found == gold)
    same = sum((Counter(found) & Counter(gold)).values())
    return 2.0 * same / (len(found) + len(gold))


def answer_texts(answer: Any, index: int) -> list[str]:
    """An answer as the texts that count as right."""
    if isinstance(answer, Mapping):
        answer = answer.get("text", answer)
    texts = [] if answer is None else [answer] if isinstance(answer, str) else list(answer)
    if not all(isinstance(text, str) for text in texts) or isinstance(answer, Mapping):
        raise ValueError(f"answers[{index}] must be strings, {{'text': ...}} or None; got {answer!r}.")
    return texts


def check_rows(**rows: Sequence[Any]) -> None:
    """Raise ValueError unless there are as many of each, and some."""
    counts = {name: len(values) for name, values in rows.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(f"There must be as many {' as '.join(counts)}, and at least one; got {counts}.")
