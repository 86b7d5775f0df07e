"""Questions about functions of the standard library, asked of signatures and docstrings, with the place of the answer.

A context holds several functions of a module, so that the name in the question has to be found. To some questions its text
has no answer: the docstring does not say what is returned, the parameter has no default.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from _stdlib_code import Function, Source, is_property, parameters_of, sources

MOST_WORDS = 40  # of a docstring; what is behind is left out
FUNCTIONS = 3  # in a context
UNANSWERABLE = 0.25
EXCEPTIONS = ("ValueError", "TypeError", "KeyError", "OSError", "RuntimeError", "AttributeError")
# Up to the end of the sentence, which is not where a text was cut, nor after "e.g.".
CLAUSE = r"(?P<answer>%s(?:[^.;:…]|[.;:](?=\S)){6,100}?)(?<!\be\.g)(?<!\bi\.e)(?:[.;:](?=\s|$)|$)"
WHEN = CLAUSE % r"(?:if|when|unless)\s"
RAISES = (
    re.compile(rf"\b[Rr]aises? (?:an? )?(?P<name>\w+)(?: exception)? {WHEN}"),
    re.compile(rf"\b(?P<name>\w+) (?:exception )?(?:is|will be) raised {WHEN}"),
)
RETURNS = re.compile(rf"\bReturns?(?: value is)?:? {CLAUSE % ''}")


class Entry(NamedTuple):
    """A function: its name within the module, its parameters, and its signature and docstring as one line of text."""

    name: str
    node: Function
    text: str


class Question(NamedTuple):
    """A question and the part of a text that answers it, its first character and the one behind its last."""

    text: str
    answer: tuple[int, int] | None


class Row(NamedTuple):
    """A question on a context, as in SQuAD, and the module and the part of the library that it is from."""

    question: str
    context: str
    answer: dict[str, list] | None
    kind: str
    module: str
    part: str


def question_rows(seed: int = 0) -> list[Row]:
    """A question of each kind on each function that answers it, and a quarter of questions that are not answered.

    Args:
        seed: Of the choice among questions of a kind, and of the other functions in a context.

    Raises:
        ValueError: if this Python has no sources of its library.
    """
    random = np.random.default_rng(seed)
    answered: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    unanswered: dict[str, list[Row]] = {kind: [] for kind in KINDS}
    for file in sources():
        entries = list(_entries(file))
        if len(entries) < FUNCTIONS:
            continue
        for place, entry in enumerate(entries):
            for kind, find in KINDS.items():
                for rows, asked in ((answered, True), (unanswered, False)):
                    questions = [question for question in find(entry) if (question.answer is not None) == asked]
                    if questions:
                        question = questions[random.integers(len(questions))]
                        others = random.permutation([i for i in range(len(entries)) if i != place])[: FUNCTIONS - 1]
                        beside = [entries[i] for i in random.permutation([place, *others])]
                        context, answer = _joined(beside, entry, question)
                        rows[kind].append(Row(question.text, context, answer, kind, file.module, file.part))
    found = []
    for kind, rows in answered.items():
        missing = round(len(rows) * UNANSWERABLE / (1 - UNANSWERABLE))
        found += rows + [unanswered[kind][i] for i in random.permutation(len(unanswered[kind]))[:missing]]
    return [found[i] for i in random.permutation(len(found))]


def _joined(entries: list[Entry], asked: Entry, question: Question) -> tuple[str, dict[str, list] | None]:
    context = "\n".join(entry.text for entry in entries)
    if question.answer is None:
        return context, None
    before = sum(len(entry.text) + 1 for entry in entries[: entries.index(asked)])
    start, end = question.answer
    return context, {"text": [asked.text[start:end]], "answer_start": [before + start]}


def _entries(file: Source) -> Iterator[Entry]:
    """The file's functions that have docstrings, but for private ones."""
    owners = {id(part): node.name for node in file.definitions if isinstance(node, ast.ClassDef) for part in node.body}
    seen = set()
    for node in file.definitions:
        docstring = "" if isinstance(node, ast.ClassDef) else ast.get_docstring(node) or ""
        words = docstring.partition(">>>")[0].split()
        name = f"{owners[id(node)]}.{node.name}" if id(node) in owners else node.name
        if (
            isinstance(node, Function)
            and words
            and not (node.name.startswith("_") or is_property(node) or name in seen)
        ):
            seen.add(name)
            cut = " …" if len(words) > MOST_WORDS else ""
            yield Entry(name, node, f"{name}({_signature(node)}): {' '.join(words[:MOST_WORDS])}{cut}")


def _signature(node: Function) -> str:
    """Without annotations, and without the object itself."""
    for part in ast.walk(node.args):
        if isinstance(part, ast.arg):
            part.annotation = None
    return re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))


# Questions --------------------------------------------------------------------------------------------------------------


def _returned(entry: Entry) -> Iterator[Question]:
    text = f"What does {entry.name} return?"
    found = RETURNS.search(entry.text)
    if found:
        yield Question(text, _trimmed(found))
    elif not re.search("return|yield|->", entry.text, re.IGNORECASE):
        yield Question(text, None)


def _raised(entry: Entry) -> Iterator[Question]:
    for pattern in RAISES:
        for found in pattern.finditer(entry.text):
            if found["name"][0].isupper():
                yield Question(f"When does {entry.name} raise {found['name']}?", _trimmed(found))
    for name in EXCEPTIONS:
        if name not in entry.text:
            yield Question(f"When does {entry.name} raise {name}?", None)


def _default(entry: Entry) -> Iterator[Question]:
    given = entry.node.args
    positional = [*given.posonlyargs, *given.args]
    pairs = [
        *zip(positional[::-1], given.defaults[::-1], strict=False),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]
    defaults = {part.arg: value for part, value in pairs if value is not None}
    for part in [*positional, *given.kwonlyargs]:
        text = f"What is the default of {part.arg} in {entry.name}?"
        if part.arg in defaults:
            value = ast.unparse(defaults[part.arg])
            found = re.search(rf"[(, ]{part.arg}=(?P<answer>{re.escape(value)})[,)]", entry.text)
            if found:
                yield Question(text, found.span("answer"))
        elif part.arg not in ("self", "cls"):
            yield Question(text, None)


def _described(entry: Entry) -> Iterator[Question]:
    """Parameters that the docstring lists, as in "name -- what it is"."""
    docstring = ast.get_docstring(entry.node) or ""
    for part in parameters_of(entry.node):
        text = f"What is {part.arg} of {entry.name}?"
        found = re.search(rf"^\W*{re.escape(part.arg)}\W*(?:--|:|-|=)\s+(\w[^.;\n]{{5,100}})", docstring, re.MULTILINE)
        start = entry.text.find(" ".join(found[1].split())) if found else -1
        if found and start >= 0:
            yield Question(text, (start, start + len(" ".join(found[1].split()))))
        elif not re.search(rf"\b{re.escape(part.arg)}\b", entry.text.partition("): ")[2]):
            yield Question(text, None)


def _trimmed(found: re.Match) -> tuple[int, int]:
    return found.start("answer"), found.start("answer") + len(found["answer"].rstrip())


KINDS = {"returned": _returned, "raised": _raised, "default": _default, "parameter": _described}
