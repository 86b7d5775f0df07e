"""The data of `answer_questions.py`: questions on contexts, to train on and held out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from _stdlib_code import by_package
from _stdlib_questions import question_rows
from _text_data import HELD_OUT, SPLIT_SEED, by_group

MOST_ROWS = 2000  # of the library, so that a run takes minutes
ASKING = ("what", "who", "when", "where", "why", "which", "how")


@dataclass
class Questions:
    """Pairs of a question and a context, SQuAD's answers (None for none), and the kind of each question."""

    pairs: list[tuple[str, str]]
    answers: list[dict[str, list] | None]
    kinds: list[str]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, rows: Sequence[int]) -> Questions:
        """Some of the rows."""
        return Questions([self.pairs[i] for i in rows], [self.answers[i] for i in rows], [self.kinds[i] for i in rows])


@dataclass
class QuestionData:
    """Questions to train on and questions held out."""

    name: str
    train: Questions
    test: Questions


def load(path: str | None, validation_file: str | None) -> QuestionData:
    """Questions on the standard library's functions, or files in SQuAD's format.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing or not in that format, and data to learn nothing from.
    """
    if path is None:
        return check(stdlib())
    questions = read_squad(path)
    if validation_file is not None:
        return check(QuestionData(path, questions, read_squad(validation_file)))
    return check(QuestionData(path, *divided(questions, by_context(questions))))


def stdlib() -> QuestionData:
    """Questions on functions of Python's standard library; whole packages are held out."""
    rows = question_rows(SPLIT_SEED)[:MOST_ROWS]
    held_out = by_group([row.part for row in rows], by_package([row.module for row in rows]))
    pairs = [(row.question, row.context) for row in rows]
    questions = Questions(pairs, [row.answer for row in rows], [row.kind for row in rows])
    return QuestionData("functions of Python's standard library", *divided(questions, held_out))


def read_squad(path: str | Path) -> Questions:
    """A file of SQuAD's format, 1.1 (Rajpurkar et al. 2016) or 2.0 (Rajpurkar et al. 2018).

    Raises:
        FileNotFoundError: without the file.
        ValueError: for what is not such a file, and answers that are not where they are said to be.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; --data takes a file in SQuAD's JSON format")
    found = Questions([], [], [])
    try:
        for article in json.loads(path.read_text("utf-8-sig"))["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    found.pairs.append((asked["question"], paragraph["context"]))
                    given = [] if asked.get("is_impossible") else asked["answers"]
                    found.answers.append(answers_of(given, paragraph["context"], f"{path}, {asked['question']!r}"))
                    words = re.findall(r"\w+", asked["question"].lower())
                    found.kinds.append(next((word for word in words if word in ASKING), "other"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        what = "data[].paragraphs[].{context, qas[].{question, answers[].{text, answer_start}}}"
        raise ValueError(f"{path} is not in SQuAD's format, {what}: {type(error).__name__}, {error}") from error
    if not found.pairs:
        raise ValueError(f"{path} has no questions.")
    return found


def answers_of(given: list[Mapping[str, Any]], context: str, what: str) -> dict[str, list] | None:
    """SQuAD's answers as one dict; None without one."""
    for answer in given:
        text, start = answer["text"], answer["answer_start"]
        there = context[start : start + len(text)]
        if not text or there != text:
            raise ValueError(f"{what}: the answer {text!r} should be at character {start}, where {there!r} is.")
    if not given:
        return None
    return {name: [answer[name] for answer in given] for name in ("text", "answer_start")}


def by_context(questions: Questions) -> np.ndarray:
    """True for a quarter of the contexts, with all their questions."""
    contexts = sorted({context for _, context in questions.pairs})
    order = np.random.default_rng(SPLIT_SEED).permutation(len(contexts))
    chosen = {contexts[i] for i in order[: round(HELD_OUT * len(contexts))]}
    return np.array([context in chosen for _, context in questions.pairs], bool)


def divided(questions: Questions, held_out: np.ndarray) -> tuple[Questions, Questions]:
    """The rows where `held_out` is false, and those where it is true."""
    return questions[np.flatnonzero(~held_out)], questions[np.flatnonzero(held_out)]


def check(data: QuestionData) -> QuestionData:
    """The same data, if a model can learn to answer from them."""
    for side, questions in (("to train on", data.train), ("to hold out", data.test)):
        if not len(questions):
            raise ValueError(f"{data.name} leaves no questions {side}.")
        if not any(questions.answers):
            raise ValueError(f"{data.name}: no question of those {side} has an answer.")
    return data


def limited(data: QuestionData, limit: int | None, seed: int) -> QuestionData:
    """The data with no more than `limit` questions to train on, drawn at random."""
    if limit is None:
        return data
    rows = np.random.default_rng(seed).permutation(len(data.train))[:limit]
    return check(replace(data, train=data.train[rows]))


# Baselines --------------------------------------------------------------------------------------------------------------


def sentences(context: str) -> list[str]:
    """A context's lines, sentences and parts before and behind colons, without the stops at their ends."""
    return [part.strip(" .:") for part in re.split(r"(?<=[.!?:])\s+|\n", context) if part.strip(" .:")]


def most_common_words(pairs: list[tuple[str, str]]) -> list[str]:
    """The sentence that has most words in common with the question; the shortest of several."""

    def words(text: str) -> set[str]:
        return set(re.findall(r"\w+", text.lower()))

    return [
        max(sentences(context) or [""], key=lambda part: (len(words(part) & words(question)), -len(part)))
        for question, context in pairs
    ]


def behind_the_name(pairs: list[tuple[str, str]]) -> list[str]:
    """The sentence behind the first mention of the question's rarest word that the context has, which is the name."""
    counts = Counter(word for question, _ in pairs for word in set(names(question)))
    found = []
    for question, context in pairs:
        words = [word for word in names(question) if word in context]
        behind = context.partition(min(words, key=lambda word: (counts[word], -len(word))))[2] if words else context
        behind = re.sub(r"^\([^\n]*?\):", "", behind)  # a signature
        found.append((sentences(behind) or [""])[0])
    return found


def names(question: str) -> list[str]:
    """Words, dotted names whole."""
    return re.findall(r"[\w.]*\w", question)
