"""What a tokenizer's ids are: special or ordinary, the start of a word or its continuation."""

from __future__ import annotations

from typing import Any

import numpy as np

ROLES = ("pad", "cls", "sep", "mask", "unk", "bos", "eos")
BYTE_SPACES = ("Ġ", "Ċ", "ĉ", "č")  # space, line feed, tab and carriage return, as byte-level tokenizers write them


def special_ids(tokenizer: Any) -> np.ndarray:
    """All special tokens, sorted: those with a role, the unknown one too, and those added as special."""
    found = {tokenizer.special_id(role) for role in ROLES} - {None}
    base = tokenizer.tokenizer
    if hasattr(base, "get_added_tokens_decoder"):
        found |= {i for i, token in base.get_added_tokens_decoder().items() if token.special}
    else:
        found |= set(getattr(base, "special_token_ids", ()))
    return np.array(sorted(i for i in found if i is not None), np.int64)


def is_special(tokenizer: Any) -> np.ndarray:
    """(vocabulary_size,) bool, by id."""
    special = special_ids(tokenizer)
    table = np.zeros(max(tokenizer.vocabulary_size, int(special.max(initial=-1)) + 1), bool)
    table[special] = True
    return table


def word_starts(tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """By id: whether a piece starts a word, and whether the next piece starts one whatever it is.

    By the mark that most of the vocabulary's pieces have: "##" on continuations, or "▁" or "Ġ" on starts.

    Returns:
        Two (vocabulary_size,) bool arrays.

    Raises:
        ValueError: where no piece has a mark.
    """
    base = tokenizer.tokenizer
    pieces = [base.id_to_token(i) or "" for i in range(tokenizer.vocabulary_size)]
    counts = {mark: sum(piece.startswith(mark) for piece in pieces) for mark in ("##", "▁", "Ġ")}
    mark = max(counts, key=lambda mark: counts[mark])
    if not counts[mark]:
        raise ValueError(
            "The tokenizer does not mark words: no piece begins with '##', '▁' or 'Ġ'. Give the batch 'word_ids'."
        )
    if mark == "##":
        return np.array([not piece.startswith(mark) for piece in pieces]), np.zeros(len(pieces), bool)
    marks = BYTE_SPACES if mark == "Ġ" else (mark,)
    starts = np.array([piece.startswith(marks) for piece in pieces])
    ends = np.array([mark == "Ġ" and piece.endswith(BYTE_SPACES[1:]) for piece in pieces])
    return starts, ends
