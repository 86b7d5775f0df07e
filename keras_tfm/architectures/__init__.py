"""Published families as data: sizes, options and weight names, each in a short file."""

from __future__ import annotations

import difflib

from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.architectures.bert import BERT
from keras_tfm.architectures.gpt2 import GPT2
from keras_tfm.architectures.llama import LLAMA

FAMILIES: dict[str, Architecture] = {architecture.model_type: architecture for architecture in (BERT, GPT2, LLAMA)}


def find(model_type: str | None) -> Architecture:
    """The family of a config.json's "model_type".

    Raises:
        ValueError: for an unknown one; the nearest known are named.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"config.json has model_type={model_type!r}; known families are {sorted(FAMILIES)}.{hint}")


__all__ = ["BERT", "FAMILIES", "Architecture", "Head", "find"]
