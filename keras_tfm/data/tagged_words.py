"""Words with a tag each as examples for a token classifier."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_tfm.data.accepted import as_tokenizer
from keras_tfm.data.examples import IGNORED, Examples, chunks
from keras_tfm.data.tokenizer import Tokenizer


def token_examples(
    words: Iterable[Sequence[str]],
    tags: Iterable[Sequence[Any]],
    tokenizer: Any,
    *,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
    label_all_pieces: bool = False,
) -> Examples:
    """Examples for a token classifier, with the tag of each word on its first piece (Devlin et al. 2019, section 5.3).

    Words are joined by spaces, so that they become the pieces that the text would.

    Args:
        words: Lists of words.
        tags: Lists of tags, one for each word: names, or numbers; None or a negative number for no tag.
        tokenizer: What `as_tokenizer` takes, but for KerasHub's: it must say where in the text a piece lies.
        labels: Names of the tags in the order of their numbers. Default: for names, those that occur, sorted.
        max_length: Longest row, in tokens; longer ones are cut and counted. Default: the tokenizer's.
        label_all_pieces: Label a word's other pieces too; those of a "B-..." as "I-..." where `labels` has it.

    Returns:
        `Examples`, one for each list of words, of {"token_ids", "token_type_ids", "word_ids", "labels"}, each (tokens,)
        int32. "word_ids" has each token's word, -1 for special tokens; "labels" -100 where there is none. `cut_labels`
        counts tags in no example: of words that were cut, or of which the tokenizer leaves nothing. `labels` has the
        names.

    Raises:
        ValueError: for a tokenizer of KerasHub, rows of other lengths, unknown tags, and names beside numbers.
    """
    ours = with_offsets(tokenizer, "token_examples")
    word_rows, tag_rows = [list(row) for row in words], [list(row) for row in tags]
    if len(word_rows) != len(tag_rows) or not word_rows:
        raise ValueError(f"There must be a list of tags for each of words; got {len(tag_rows)} and {len(word_rows)}.")
    for index, (row, row_tags) in enumerate(zip(word_rows, tag_rows, strict=True)):
        if len(row) != len(row_tags):
            raise ValueError(f"words[{index}] has {len(row)} words, tags[{index}] has {len(row_tags)} tags.")
        if not all(isinstance(word, str) for word in row):
            raise ValueError(f"words[{index}] must hold strings; got {row!r}.")
    names, numbers = _numbered(tag_rows, labels)
    found = Examples(labels=names)
    places = {name: number for number, name in enumerate(names)}
    inside = {number: places.get(f"I-{name[2:]}", number) for name, number in places.items() if name.startswith("B-")}
    for rows in chunks(zip(word_rows, numbers, strict=True)):
        encodings = found.cut_encodings(ours, [" ".join(row) for row, _ in rows], max_length)
        for (row, row_numbers), encoding in zip(rows, encodings, strict=True):
            word_ids = _word_ids(row, encoding)
            tagged = np.array([*row_numbers, IGNORED], np.int32)  # -1, for no word, is the last
            kept, first = np.unique(word_ids, return_index=True)
            others = np.ones(len(word_ids), bool)
            others[first] = False
            row_labels = tagged[word_ids]
            row_labels[others] = (
                [inside.get(number, number) for number in row_labels[others].tolist()] if label_all_pieces else IGNORED
            )
            found.cut_labels += int((np.delete(tagged[:-1], kept[kept >= 0]) >= 0).sum())
            found.append(
                {
                    "token_ids": np.array(encoding.ids, np.int32),
                    "token_type_ids": np.array(encoding.type_ids, np.int32),
                    "word_ids": word_ids,
                    "labels": row_labels,
                }
            )
    return found


def with_offsets(tokenizer: Any, what: str) -> Tokenizer:
    """The tokenizer as one of ours whose encodings say where in the text their tokens lie."""
    ours = as_tokenizer(tokenizer)
    if not isinstance(ours, Tokenizer):
        raise ValueError(
            f"{what} must know where in a text each token lies, which a {type(ours).__name__} does not say. Of WordPiece "
            "and byte pairs, its save() writes a tokenizer.json; Tokenizer.from_directory reads that as one that does."
        )
    return ours


def _word_ids(words: list[str], encoding: Any) -> np.ndarray:
    """(tokens,) int32: the last word that a token has characters of; -1 for none."""
    sizes = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(sizes + 1) - 1  # a space behind each
    starts = ends - sizes
    token_starts, token_ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    word = np.searchsorted(starts, token_ends, side="left") - 1
    inside = (word >= 0) & (np.append(ends, 0)[word] > token_starts)
    inside &= np.array(encoding.special_tokens_mask, np.int64) == 0
    return np.where(inside, word, -1).astype(np.int32)


def _numbered(rows: list[list[Any]], labels: Sequence[str] | None) -> tuple[list[str], list[list[int]]]:
    """Names of the tags, and the tags as numbers."""
    kinds = {type(tag) for row in rows for tag in row} - {type(None)}
    if str not in kinds:
        most = None if labels is None else len(labels)
        return list(labels or ()), [[_number(tag, most, index) for tag in row] for index, row in enumerate(rows)]
    if kinds != {str}:
        raise ValueError(f"tags must be all names or all numbers; got {sorted(kind.__name__ for kind in kinds)}.")
    names = sorted({tag for row in rows for tag in row if tag is not None}) if labels is None else list(labels)
    places = {name: place for place, name in enumerate(names)}
    if len(places) < len(names):
        raise ValueError(f"labels must differ from each other; got {names}.")
    for index, row in enumerate(rows):
        for tag in row:
            if tag is not None and tag not in places:
                near = difflib.get_close_matches(tag, names, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"tags[{index}] has {tag!r}, which is not of labels={names}.{hint}")
    return names, [[IGNORED if tag is None else places[tag] for tag in row] for row in rows]


def _number(tag: Any, most: int | None, index: int) -> int:
    if tag is None:
        return IGNORED
    if isinstance(tag, bool) or not isinstance(tag, (int, np.integer)) or (most is not None and tag >= most):
        allowed = "numbers or names" if most is None else f"below {most}, the number of labels"
        raise ValueError(f"tags[{index}] must be {allowed}; got {tag!r}.")
    return int(tag) if tag >= 0 else IGNORED
