"""Tokenizers of KerasHub (keras-nlp), with the surface of our own."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keras_tfm.data import keras_hub_files
from keras_tfm.data.tokenizer import BaseTokenizer, Tokenizer

logger = logging.getLogger("keras_tfm")
ROLES = {
    "pad": ("pad_token",),
    "cls": ("cls_token",),
    "sep": ("sep_token",),
    "mask": ("mask_token",),
    "unk": ("unk_token", "oov_token"),
    "bos": ("start_token", "bos_token"),
    "eos": ("end_token", "eos_token"),
}


class Encoding(NamedTuple):
    """A text as ids; `type_ids` tell the two texts of a pair apart where the family does."""

    ids: list[int]
    type_ids: list[int]


class Frame(NamedTuple):
    """What a family puts around its texts: a start token, an end token, how many separators, types of segments."""

    start: bool
    end: bool
    separators: int
    types: bool


# As KerasHub's preprocessors of the family do. A decoder's end token is left out: a prompt has none.
BERT, ROBERTA = Frame(True, True, 1, True), Frame(True, True, 2, False)
T5, DECODER = Frame(False, True, 1, False), Frame(True, False, 0, False)
FRAMES = {"RobertaTokenizer": ROBERTA, "XLMRobertaTokenizer": ROBERTA, "BartTokenizer": ROBERTA, "T5Tokenizer": T5}


def _frame(tokenizer: Any) -> Frame:
    for cls in type(tokenizer).__mro__:
        if cls.__name__ in FRAMES:
            return FRAMES[cls.__name__]
    return BERT if hasattr(tokenizer, "cls_token") else DECODER


class KerasHubTokenizer(BaseTokenizer):
    """A tokenizer of KerasHub that gives NumPy batches with masks.

    Special tokens are those of KerasHub's preprocessors: [CLS] a [SEP] b [SEP] for BERT's relatives, two separators for
    RoBERTa's, a start token for decoders, an end token for T5. A text gives the token ids that they give.

    Args:
        tokenizer: A `keras_hub.tokenizers.Tokenizer` with a vocabulary, whose dtype is an integer. Its `sequence_length`
            is set aside.
        max_length: Longest row, in tokens, special ones included; longer texts are cut there and counted in `truncated`.
            Default: the tokenizer's `sequence_length`.
        padding_side: "right" or "left".
        add_start_token: Put the start token first. Default: as the family does.
        add_end_token: Put the end token last. Default: as the family does; decoders do not, for a prompt goes on. To
            train one to end, pass True.
        truncate: How a pair is cut, as in KerasHub: "round_robin", evenly, or "waterfall", the second text first.

    Raises:
        ValueError: for a tokenizer that gives strings or takes words, for a token to be added that it has not, and for
            other values of `padding_side` and `truncate`.

    Example:
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "soup"]
        >>> bert = keras_hub.tokenizers.BertTokenizer(vocabulary=words)
        >>> keras_tfm.data.KerasHubTokenizer(bert)(["the soup"])["token_ids"]
        array([[2, 5, 6, 3]], dtype=int32)
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None = None,
        padding_side: str = "right",
        *,
        add_start_token: bool | None = None,
        add_end_token: bool | None = None,
        truncate: str = "round_robin",
    ):
        length = getattr(tokenizer, "sequence_length", None)
        super().__init__(length if max_length is None else max_length, padding_side)
        if truncate not in ("round_robin", "waterfall"):
            raise ValueError(f"truncate must be 'round_robin' or 'waterfall'; got {truncate!r}.")
        kind = type(tokenizer).__name__
        if "int" not in str(tokenizer.compute_dtype):
            raise ValueError(f"The {kind} must give ids: make it with dtype='int32'; got {tokenizer.compute_dtype!r}.")
        if not getattr(tokenizer, "split", True):
            raise ValueError(
                f"The {kind} must take texts: make it with split=True; got split=False, which takes words."
            )
        self.tokenizer = tokenizer
        self.frame = _frame(tokenizer)
        self.truncate = truncate
        tokenizer.vocabulary_size()  # KerasHub says so where the vocabulary is missing
        self.add_start_token = self._added("bos", "add_start_token", add_start_token, self.frame.start, "add_bos")
        self.add_end_token = self._added("eos", "add_end_token", add_end_token, self.frame.end, "add_eos")

    def _added(self, role: str, argument: str, given: bool | None, usual: bool, own: str) -> bool:
        """Whether to add a token: as told, else as usual where there is one and the tokenizer does not itself."""
        exists = self.special_id(role) is not None
        if given and not exists:
            raise ValueError(f"{argument}=True, but the {type(self.tokenizer).__name__} has no such token.")
        return usual and exists and not getattr(self.tokenizer, own, False) if given is None else given

    @classmethod
    def from_preprocessor(cls, preprocessor: Any) -> KerasHubTokenizer:
        """The tokenizer of a KerasHub preprocessor, with its start token, its sequence length and its way of cutting.

        A language model's end token is left out, as in its `generate_preprocess`.
        """
        tokenizer = preprocessor.tokenizer
        length = getattr(preprocessor, "encoder_sequence_length", None) or preprocessor.sequence_length
        start = getattr(preprocessor, "add_start_token", None)
        if start and getattr(tokenizer, "start_token_id", None) is None:
            start = None  # Qwen: asked for, and there is none
        prompts = hasattr(preprocessor, "generate_preprocess")
        end = None if prompts else getattr(preprocessor, "add_end_token", None)
        truncate = getattr(preprocessor, "truncate", "round_robin")
        return cls(tokenizer, length, add_start_token=start, add_end_token=end, truncate=truncate)

    def special_token(self, role: str) -> str | None:
        """The "pad", "cls", "sep", "mask", "unk", "bos" or "eos" token; None where there is none."""
        names = ROLES.get(role, ())
        if self.frame is ROBERTA:  # whose start and end are these too
            names += {"cls": ("start_token",), "sep": ("end_token",)}.get(role, ())
        if role == "bos" and not self.frame.start:
            return None  # T5's is KerasHub's stand-in
        found = (getattr(self.tokenizer, name, None) for name in names)
        return next((token for token in found if isinstance(token, str)), None)

    def special_id(self, role: str) -> int | None:
        """The id of the "pad", "cls", "sep", "mask", "unk", "bos" or "eos" token; None where there is none."""
        token = self.special_token(role)
        return None if token is None else int(self.tokenizer.token_to_id(token))

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, special tokens included."""
        return int(self.tokenizer.vocabulary_size())

    def encode(self, texts: Sequence[str] | Sequence[tuple[str, str]], max_length: int | None = None) -> list[Encoding]:
        """Encodings of texts, or of pairs, with special tokens, cut to `max_length` and not padded.

        Raises:
            ValueError: for more than two texts in a row, and for a `max_length` that leaves no room for special tokens.
        """
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        for row in rows:
            if len(row) not in (1, 2):
                raise ValueError(f"A row of texts must be a string or a pair of strings; got {row!r}.")
        tokens = iter(self._tokenize([text for row in rows for text in row]))
        start = [self.special_id("bos")] if self.add_start_token else []
        end = [self.special_id("eos")] if self.add_end_token else []
        between = [self.special_id("eos")] * self.frame.separators
        return [
            self._joined([next(tokens) for _ in row], start, between, end, max_length or self.max_length)
            for row in rows
        ]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """All texts in one call, without special tokens."""
        if not texts:
            return []
        length = getattr(self.tokenizer, "sequence_length", None)
        if length is not None:  # it would pad, and padding looks like a token
            self.tokenizer.sequence_length = None
        try:
            tokens = self.tokenizer.tokenize(texts)
        finally:
            if length is not None:
                self.tokenizer.sequence_length = length
        return [list(row) for row in (tokens.tolist() if hasattr(tokens, "tolist") else tokens)]

    def _joined(self, parts: list[list[int]], start: list, between: list, end: list, limit: int | None) -> Encoding:
        if limit is not None:
            special = len(start) + len(between) * (len(parts) - 1) + len(end)
            if limit < special:
                raise ValueError(f"max_length must be at least {special}, the special tokens of a row; got {limit}.")
            whole = sum(map(len, parts))
            parts = self._cut(parts, limit - special)
            self.truncated += sum(map(len, parts)) < whole
        first, last = start + parts[0], end
        if len(parts) == 2:
            first, last = first + between, parts[1] + end
        kind = int(self.frame.types and len(parts) == 2)
        return Encoding(first + last, [0] * len(first) + [kind] * len(last))

    def _cut(self, parts: list[list[int]], room: int) -> list[list[int]]:
        if len(parts) == 1:
            return [parts[0][:room]]
        lengths = [len(part) for part in parts]
        first = min(lengths[0], room)
        if self.truncate == "round_robin":  # turn by turn, the first text beginning
            first = min(lengths[0], max((room + 1) // 2, room - lengths[1]))
        return [parts[0][:first], parts[1][: room - first]]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids back to text. Ids past the vocabulary, which a padded token table has, are left out."""
        left_out: set[int | None] = set()
        if skip_special_tokens:
            left_out = {*getattr(self.tokenizer, "special_token_ids", ()), self.special_id("mask")}
        size = self.vocabulary_size
        kept = [i for i in map(int, token_ids) if 0 <= i < size and i not in left_out]
        return str(self.tokenizer.detokenize([kept])[0]) if kept else ""

    # Files and JSON ---------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write what `transformers` reads: tokenizer.json of WordPiece and byte pairs, SentencePiece's own file.

        What has neither is written in tokenizer_config.json for this library alone, and a warning says so.
        """
        directory = Path(directory)
        settings: dict[str, Any] = {
            f"{role}_token": token for role in ROLES if (token := self.special_token(role)) is not None
        }
        converted = keras_hub_files.converted(self)
        if converted is not None:
            settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # as it is, not as the family's usual one
            Tokenizer(converted, self.max_length, self.padding_side, settings).save(directory)
            return
        directory.mkdir(parents=True, exist_ok=True)
        data = self.to_json()
        described = json.loads(data["keras_hub"])
        if "proto" in described:
            described["proto"], more = keras_hub_files.write_sentencepiece(self.tokenizer, directory)
            settings |= more
        else:
            logger.warning(
                "%s: there is no such tokenizer in Hugging Face's format; %s keeps it for keras_tfm alone.",
                type(self.tokenizer).__name__,
                directory / keras_hub_files.SETTINGS,
            )
        settings |= {"padding_side": self.padding_side, "keras_hub": {**data, "keras_hub": described}}
        if self.frame is DECODER:
            settings |= {"add_bos_token": self.add_start_token, "add_eos_token": self.add_end_token}
        if self.max_length is not None:
            settings["model_max_length"] = self.max_length
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        (directory / keras_hub_files.SETTINGS).write_text(text, "utf-8")

    @classmethod
    def from_directory(cls, directory: str | Path, max_length: int | None = None) -> KerasHubTokenizer:
        """Read what `save` wrote where it could not write a tokenizer.json.

        Raises:
            FileNotFoundError: without the files.
            ImportError: without KerasHub; names the extra.
            ValueError: for a tokenizer that is not KerasHub's.
        """
        directory = Path(directory)
        data = json.loads((directory / keras_hub_files.SETTINGS).read_text("utf-8")).get("keras_hub")
        if data is None:
            raise ValueError(f"{directory / keras_hub_files.SETTINGS} does not describe a KerasHub tokenizer.")
        described = data["keras_hub"]
        if "proto" in described:
            proto = (directory / Path(described["proto"]).name).read_bytes()
            described = {**described, "proto": base64.b64encode(proto).decode("ascii")}
        given = {} if max_length is None else {"max_length": max_length}
        return cls.from_json({**data, **given, "keras_hub": json.dumps(described)})

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data, for a model's config.

        Raises:
            ValueError: for a class that `keras_hub.tokenizers` does not have, which could not be made again.
        """
        # The vocabulary goes in as one string: Keras would look into a dict of 50,000 tokens, each a possible keyword.
        return {
            "keras_hub": json.dumps(keras_hub_files.described(self.tokenizer)),
            "max_length": self.max_length,
            "padding_side": self.padding_side,
            "add_start_token": self.add_start_token,
            "add_end_token": self.add_end_token,
            "truncate": self.truncate,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> KerasHubTokenizer:
        """The inverse of `to_json`.

        Raises:
            ImportError: without KerasHub; names the extra.
        """
        options = dict(data)
        return cls(keras_hub_files.rebuilt(json.loads(options.pop("keras_hub"))), **options)
