"""The data of `tag_entities.py`: rows of words with a tag each, to train on and held out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from _stdlib_code import by_package
from _stdlib_entities import entity_rows
from _text_data import HELD_OUT, SPLIT_SEED, by_group

Rows = tuple[list[list[str]], list[list[str]]]  # words, and their tags
WITHOUT_ENTITIES = 4  # of the library's paragraphs that name nothing, one in so many is taken
MOST_ROWS = 5000  # of the library, so that a run takes minutes


@dataclass
class TaggedText:
    """Rows to train on and rows held out; `untagged` are sentences of the kind of the former."""

    name: str
    train: Rows
    test: Rows
    untagged: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[str]:
        """The tags: "O", and the beginning and the inside of each type of entity, whether both occur or not."""
        types = sorted({tag[2:] for tags in self.train[1] for tag in tags if tag != "O"})
        return ["O", *(f"{place}-{kind}" for kind in types for place in "BI")]


def load(path: str | None, validation_file: str | None) -> TaggedText:
    """The standard library's docstrings, or files in CoNLL-2003's format.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing or not in that format, and data to learn nothing from.
    """
    if path is None:
        return check(stdlib())
    rows = read_conll(path)
    if validation_file is not None:
        return check(TaggedText(path, rows, read_conll(validation_file)))
    held_out = np.random.default_rng(SPLIT_SEED).permutation(len(rows[0])) < round(HELD_OUT * len(rows[0]))
    return check(TaggedText(path, *divided(*rows, held_out)))


def stdlib() -> TaggedText:
    """Docstrings of Python's standard library, whose code says what their words name; whole packages are held out."""
    found = entity_rows()
    random = np.random.default_rng(SPLIT_SEED)
    places = [
        place
        for number, place in enumerate(random.permutation(len(found)).tolist())
        if number % WITHOUT_ENTITIES == 0 or set(found[place].tags) != {"O"}
    ]
    rows = [found[place] for place in sorted(places[:MOST_ROWS])]
    packages = by_package([row.module for row in rows])
    held_out = by_group([row.part for row in rows], packages)
    kept_apart = {package for package, is_held_out in zip(packages, held_out, strict=True) if is_held_out}
    every = zip(found, by_package([row.module for row in found]), strict=True)
    untagged = [" ".join(row.words) for row, package in every if package not in kept_apart]
    name = "docstrings of Python's standard library"
    return TaggedText(name, *divided([row.words for row in rows], [row.tags for row in rows], held_out), untagged)


def read_conll(path: str | Path) -> Rows:
    """A file of CoNLL-2003's format: a word a line, its tag in the last column, an empty line behind each sentence.

    The tags are "O", "B-..." and "I-..." as in IOB2, or in IOB1, where "I-..." begins an entity too.

    Raises:
        FileNotFoundError: without the file.
        ValueError: for a line of one column, another tag, and a file without words.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; --data takes a file in CoNLL-2003's format")
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        columns = line.split()
        if not columns or columns[0] == "-DOCSTART-":
            words.append([])
            tags.append([])
            continue
        tag = columns[-1]
        if len(columns) < 2 or not (tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:])):
            raise ValueError(
                f"{path}, line {number}: a word and its tag (O, B-... or I-...) are expected; got {line!r}."
            )
        words[-1].append(columns[0])
        tags[-1].append(tag)
    words, tags = [row for row in words if row], [row for row in tags if row]
    if not words:
        raise ValueError(f"{path} has no words.")
    return words, tags


def divided(words: Sequence[list[str]], tags: Sequence[list[str]], held_out: np.ndarray) -> tuple[Rows, Rows]:
    """The rows where `held_out` is false, and those where it is true."""

    def rows(chosen: np.ndarray) -> Rows:
        where = np.flatnonzero(chosen)
        return [words[i] for i in where], [tags[i] for i in where]

    return rows(~held_out), rows(held_out)


def check(data: TaggedText) -> TaggedText:
    """The same data, if a tagger can be made from them."""
    for side, (words, tags) in (("to train on", data.train), ("to hold out", data.test)):
        if not words:
            raise ValueError(f"{data.name} leaves no rows {side}.")
        if all(tag == "O" for row in tags for tag in row):
            raise ValueError(f"{data.name}: no word of the rows {side} has a tag other than O.")
    unknown = sorted({tag for row in data.test[1] for tag in row} - set(data.labels))
    if unknown:
        raise ValueError(f"{data.name}: the tags {unknown[:5]} are held out, but not among those to learn from.")
    return data


def limited(data: TaggedText, limit: int | None, seed: int) -> TaggedText:
    """The data with no more than `limit` rows to train on, drawn at random."""
    if limit is None:
        return data
    words, tags = data.train
    rows = np.random.default_rng(seed).permutation(len(words))[:limit]
    return check(replace(data, train=([words[i] for i in rows], [tags[i] for i in rows])))


# Baselines and scores ---------------------------------------------------------------------------------------------------


def lookup_table(data: TaggedText) -> list[list[str]]:
    """For each held-out word the tag that it most often had in training; "O" for a word that is new."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in zip(*data.train, strict=True):
        for word, tag in zip(words, tags, strict=True):
            counts[word][tag] += 1
    table = {word: found.most_common(1)[0][0] for word, found in counts.items()}
    return [[table.get(word, "O") for word in words] for words in data.test[0]]


def majority(data: TaggedText) -> list[list[str]]:
    """The commonest tag for every held-out word."""
    counts = Counter(tag for tags in data.train[1] for tag in tags)
    return [[counts.most_common(1)[0][0]] * len(words) for words in data.test[0]]


def new_names(data: TaggedText) -> set[tuple[str, int, int, int]]:
    """Held-out entities, as (type, row, first word, last word), whose words were no entity in training."""
    seen = {text for *_, text in entities(*data.train)}
    return {found[:4] for found in entities(*data.test) if found[4] not in seen}


def entities(words: list[list[str]], tags: list[list[str]]) -> list[tuple[str, int, int, int, str]]:
    """All entities as seqeval reads them: type, row, first and last word, and the words."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [
        (kind, row, start, end, " ".join(words[row][start : end + 1]))
        for row in range(len(words))
        for kind, start, end in get_entities(tags[row])
    ]
