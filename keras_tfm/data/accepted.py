"""Tokenizers of other libraries, taken wherever one of ours is; and tokenizers out of JSON and directories."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from keras_tfm.data.keras_hub_tokenizer import KerasHubTokenizer
from keras_tfm.data.tokenizer import BaseTokenizer, Tokenizer


def as_tokenizer(given: Any) -> BaseTokenizer:
    """What is given, as a tokenizer of this library.

    Args:
        given: One of these, which is not changed by it:
            - a tokenizer of this library, returned as it is
            - a `tokenizers.Tokenizer`
            - a fast tokenizer of `transformers`; its limit, its padding side and its special tokens come along
            - a tokenizer of KerasHub, which becomes a `KerasHubTokenizer`

    Raises:
        TypeError: for anything else.

    Example:
        >>> keras_tfm.data.as_tokenizer(transformers.AutoTokenizer.from_pretrained("google-bert/bert-base-uncased"))
    """
    # By what they can do: neither transformers nor KerasHub need be there.
    if isinstance(given, BaseTokenizer):
        return given
    if not isinstance(given, type):
        if getattr(given, "backend_tokenizer", None) is not None:
            return _from_transformers(given)
        if hasattr(given, "to_str") and hasattr(given, "encode_batch"):
            from tokenizers import Tokenizer as Base

            return Tokenizer(Base.from_str(given.to_str()))
        if all(callable(getattr(given, name, None)) for name in ("tokenize", "detokenize", "vocabulary_size")):
            return KerasHubTokenizer(given)
    hint = " Tokenizer.from_directory reads one from a directory." if isinstance(given, (str, Path)) else ""
    raise TypeError(
        "tokenizer must be a keras_tfm.data.Tokenizer, a tokenizers.Tokenizer, a fast tokenizer of transformers (one "
        f"with a backend_tokenizer) or a tokenizer of KerasHub; got {given!r}.{hint}"
    )


def _from_transformers(given: Any) -> Tokenizer:
    """By way of its own files, which say everything, as `transformers` would read it again."""
    with tempfile.TemporaryDirectory() as directory:
        given.save_pretrained(directory)
        tokenizer = Tokenizer.from_directory(directory)
    tokenizer.padding_side = given.padding_side  # written only where it was an argument
    template = getattr(given, "chat_template", None)  # in a file of its own
    if isinstance(template, str):
        tokenizer.settings["chat_template"] = template
    return tokenizer


def from_json(data: dict[str, Any]) -> BaseTokenizer:
    """The inverse of any tokenizer's `to_json`.

    Raises:
        ImportError: for one of KerasHub's without KerasHub; names the extra.
    """
    return (KerasHubTokenizer if "keras_hub" in data else Tokenizer).from_json(data)


def from_directory(directory: str | Path, max_length: int | None = None) -> BaseTokenizer | None:
    """The tokenizer of a checkpoint directory; None where it has none that can be read.

    Raises:
        ImportError: for one of KerasHub's without KerasHub; names the extra.
        ValueError: for files that cannot be read.
    """
    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        return Tokenizer.from_directory(directory, max_length)
    settings = directory / "tokenizer_config.json"
    if settings.is_file() and '"keras_hub"' in settings.read_text("utf-8"):
        return KerasHubTokenizer.from_directory(directory, max_length)
    return None
