"""Text for language models: the running Python's standard library, or files; some of it held out."""

from __future__ import annotations

import lzma
import math
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _stdlib_docstrings import PARTS, docstrings, source_files

import keras_tfm as tfm

HELD_OUT = 0.05
SPLIT_SEED = 0  # the split stays the same whatever the seed of the training


class Text(NamedTuple):
    """Documents to train on and documents held out."""

    name: str
    train: list[str]
    held_out: list[str]


def load(data: Sequence[str]) -> Text:
    """The text "stdlib", "docstrings" (of it), or files, the end of each of which is held out.

    Raises:
        FileNotFoundError, ValueError: for files that are missing, are not UTF-8, or too short to hold anything out.
    """
    if list(data) == ["stdlib"]:
        return split("source of the standard library", sources())
    if list(data) == ["docstrings"]:
        return split("docstrings of the standard library", docstrings()[0])
    train, held_out = [], []
    for name in data:
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no file {name!r}; --data takes stdlib, docstrings, or text files")
        try:
            text = Path(name).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 text: {error}") from None
        cut = len(text) - math.ceil(HELD_OUT * len(text))
        train.append(text[:cut])
        held_out.append(text[cut:])
    if not all(train):
        raise ValueError(f"{data[train.index('')]} is too short to train on")
    return Text(", ".join(Path(name).name for name in data), train, held_out)


def sources() -> list[str]:
    """The files of the standard library, but for its tests."""
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for names in PARTS.values() for name in names.split() for path in source_files(library, name)]
    texts = [path.read_text("utf-8", errors="replace") for path in dict.fromkeys(paths)]
    if not texts:
        raise ValueError(f"{library} holds no sources of the standard library")
    return texts


def split(name: str, documents: Sequence[str]) -> Text:
    """Some of the documents, held out."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(documents))
    cut = math.ceil(HELD_OUT * len(documents))
    return Text(name, [documents[i] for i in sorted(order[cut:])], [documents[i] for i in sorted(order[:cut])])


def size(documents: Sequence[str]) -> int:
    """Bytes in UTF-8."""
    return sum(len(document.encode()) for document in documents)


def xz(text: Text) -> dict[str, float]:
    """Bits a byte of the held-out text by xz: by itself, and behind the text to train on."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 27}]
    alone, before, both = (
        len(lzma.compress("\n".join(documents).encode(), lzma.FORMAT_RAW, filters=filters))
        for documents in (text.held_out, text.train, [*text.train, *text.held_out])
    )
    scale = 8 / size(text.held_out)
    return {"xz by itself": scale * alone, "xz behind all that was read": scale * (both - before)}


def bits_a_byte(loss: float, tokens: int, bytes_: int) -> float:
    """What a mean loss of tokens comes to."""
    return loss * tokens / math.log(2) / bytes_


def characters(text: Text) -> tfm.data.Tokenizer:
    """A tokenizer with an id for each character of the text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(set("".join([*text.train, *text.held_out])))
    base = Tokenizer(models.WordLevel({character: index for index, character in enumerate(alphabet)}))
    base.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    base.decoder = decoders.Fuse()
    return tfm.data.as_tokenizer(base)
