"""Strings to token ids, by Hugging Face's `tokenizers`; and what every tokenizer here can do."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

AROUND = ("max_length", "padding_side", "settings")  # no part of what a text's tokens are
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


class BaseTokenizer(ABC):
    """Strings to padded NumPy batches, whichever library does the tokenizing.

    Args:
        max_length: Longest row, in tokens; longer texts are cut there and counted in `truncated`.
        padding_side: "right" or "left".

    Attributes:
        truncated: How many texts have been cut so far.
    """

    def __init__(self, max_length: int | None = None, padding_side: str = "right"):
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side must be 'left' or 'right'; got {padding_side!r}.")
        self.max_length = max_length
        self.padding_side = padding_side
        self.truncated = 0

    @abstractmethod
    def special_id(self, role: str) -> int | None:
        """The id of the "pad", "cls", "sep", "mask", "unk", "bos" or "eos" token; None where there is none."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """How many ids there are, special and added tokens included."""

    @abstractmethod
    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None) -> list[Any]:
        """Encodings of texts, or of pairs, with special tokens, cut to `max_length` and not padded.

        Each has `ids` and `type_ids`, lists of int of one length.
        """

    @abstractmethod
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids back to text."""

    @abstractmethod
    def save(self, directory: str | Path) -> None:
        """Write the files that `transformers` reads, in a directory that is made if need be."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Everything as plain data, for a model's config."""

    def digest(self) -> str:
        """12 hexadecimal digits of vocabulary and rules: the same for a tokenizer that was saved and read again."""
        return _digest({name: value for name, value in self.to_json().items() if name not in AROUND})

    def __call__(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None, pad_to: int | None = None
    ) -> dict[str, np.ndarray]:
        """Texts, or pairs of texts, as one padded batch.

        Args:
            texts: Strings, or (first, second) pairs of them.
            max_length: Overrides the tokenizer's.
            pad_to: Length to pad to. Default: the longest row's.

        Returns:
            {"token_ids" int32, "padding_mask" bool, "token_type_ids" int32}, each (batch, length).
        """
        return self.pad(self.encode(texts, max_length), pad_to)

    def pad(self, encodings: Sequence[Any], pad_to: int | None = None) -> dict[str, np.ndarray]:
        """Encodings as one padded batch: see `__call__`."""
        lengths = [len(encoding.ids) for encoding in encodings]
        width = max(pad_to or 0, max(lengths, default=0), 1)
        shape = (len(encodings), width)
        token_ids = np.full(shape, self.special_id("pad") or 0, np.int32)
        padding_mask, token_type_ids = np.zeros(shape, bool), np.zeros(shape, np.int32)
        for row, (encoding, length) in enumerate(zip(encodings, lengths, strict=True)):
            where = slice(0, length) if self.padding_side == "right" else slice(width - length, width)
            token_ids[row, where], padding_mask[row, where], token_type_ids[row, where] = (
                encoding.ids,
                True,
                encoding.type_ids,
            )
        return {"token_ids": token_ids, "padding_mask": padding_mask, "token_type_ids": token_type_ids}


class Tokenizer(BaseTokenizer):
    """A `tokenizers.Tokenizer` that gives NumPy batches with masks.

    Args:
        tokenizer: A `tokenizers.Tokenizer`; what it says of padding and truncation is set aside.
        max_length: Longest row, in tokens; longer texts are cut there and counted in `truncated`.
        padding_side: "right" or "left".
        settings: Contents of tokenizer_config.json, kept so that `save` can write it back.

    Attributes:
        truncated: How many texts have been cut so far.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        padding_side: str = "right",
        settings: dict[str, Any] | None = None,
    ):
        super().__init__(max_length, padding_side)
        self._json = tokenizer.to_str()  # as it came, for `save`
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.settings = settings or {}

    @classmethod
    def from_directory(cls, directory: str | Path, max_length: int | None = None) -> Tokenizer:
        """Read tokenizer.json, and tokenizer_config.json where there is one.

        Raises:
            FileNotFoundError: without a tokenizer.json.
            ValueError: for one that cannot be read.
        """
        from tokenizers import Tokenizer as Base

        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing; without it the model has no tokenizer and takes token ids only."
            )
        try:
            base = Base.from_file(str(path))
        except Exception as error:
            raise ValueError(f"{path} is not a readable tokenizer: {error}") from error
        settings_path = Path(directory) / "tokenizer_config.json"
        try:
            settings = json.loads(settings_path.read_text("utf-8")) if settings_path.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{settings_path} is not readable JSON: {error}") from error
        template = Path(directory) / "chat_template.jinja"
        if template.is_file() and not settings.get("chat_template"):
            settings = {**settings, "chat_template": template.read_text("utf-8")}
        limit = settings.get("model_max_length")
        if max_length is None and isinstance(limit, (int, float)) and limit < 1e9:  # larger ones mean "not said"
            max_length = int(limit)
        return cls(base, max_length, settings.get("padding_side", "right"), settings)

    def special_id(self, role: str) -> int | None:
        """The id of the "pad", "cls", "sep", "mask", "unk", "bos" or "eos" token; None where there is none."""
        named = self.settings.get(f"{role}_token")
        if isinstance(named, dict):
            named = named.get("content")
        usual = {
            "pad": ("[PAD]", "<pad>", "<|endoftext|>"),
            "cls": ("[CLS]", "<s>"),
            "sep": ("[SEP]", "</s>"),
            "mask": ("[MASK]", "<mask>"),
        }
        for text in filter(None, (named, *usual.get(role, ()))):
            found = self.tokenizer.token_to_id(text)
            if found is not None:
                return found
        return None

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, special and added tokens included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None) -> list[Any]:
        """Encodings of texts, or of pairs, with special tokens, cut to `max_length` and not padded."""
        limit = max_length or self.max_length
        if limit is not None:
            self.tokenizer.enable_truncation(limit)
        try:
            encodings = self.tokenizer.encode_batch(list(texts))
        finally:
            self.tokenizer.no_truncation()
        self.truncated += sum(bool(encoding.overflowing) for encoding in encodings)
        return encodings

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids back to text."""
        return self.tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=skip_special_tokens)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json, as it was read, and tokenizer_config.json."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(self._json, "utf-8")
        settings = {**self.settings, "padding_side": self.padding_side}
        if self.max_length is not None:
            settings["model_max_length"] = self.max_length
        if settings:
            (directory / "tokenizer_config.json").write_text(
                json.dumps(settings, indent=2, ensure_ascii=False), "utf-8"
            )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data, for a model's config."""
        return {
            "tokenizer": self._json,
            "max_length": self.max_length,
            "padding_side": self.padding_side,
            "settings": self.settings,
        }

    def digest(self) -> str:
        """See `BaseTokenizer.digest`."""
        # Numbers of unigram models come back from a file with another last digit.
        return _digest(json.loads(self._json, parse_float=lambda number: f"{float(number):.9g}"))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Tokenizer:
        """The inverse of `to_json`."""
        from tokenizers import Tokenizer as Base

        return cls(Base.from_str(data["tokenizer"]), data["max_length"], data["padding_side"], dict(data["settings"]))
