"""Tokenizers trained on texts, one kind for each family of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from keras_tfm.data.examples import strings
from keras_tfm.data.reading import read_rows
from keras_tfm.data.tokenizer import Tokenizer


class _Kind(NamedTuple):
    """Special tokens in the order of their ids, their roles, and where they go in a text and in a pair."""

    tokens: tuple[str, ...]
    roles: dict[str, str]
    single: str | None
    pair: str | None
    least: int  # ids that every vocabulary has, special ones left out


KINDS = {
    "wordpiece": _Kind(
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
        "[CLS] $A [SEP]",
        "[CLS] $A [SEP] $B:1 [SEP]:1",
        1,
    ),
    "bpe": _Kind(
        ("<pad>", "<unk>", "<s>", "</s>"),
        {"pad": "<pad>", "unk": "<unk>", "bos": "<s>", "eos": "</s>"},
        "<s> $A",
        "<s> $A $B",
        1,
    ),
    "byte_bpe": _Kind(
        ("<|endoftext|>",),
        {"pad": "<|endoftext|>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
        None,
        None,
        256,
    ),
    "unigram": _Kind(
        ("<pad>", "</s>", "<unk>"),
        {"pad": "<pad>", "unk": "<unk>", "eos": "</s>"},
        "$A </s>",
        "$A </s> $B </s>",
        1,
    ),
}


def train_tokenizer(
    files_or_texts: str | Path | Iterable[str] | Iterable[Path],
    vocabulary_size: int,
    kind: str = "wordpiece",
    *,
    lowercase: bool = False,
    max_length: int | None = None,
    special_tokens: Sequence[str] | None = None,
) -> Tokenizer:
    """A tokenizer trained on texts, by `tokenizers`.

    Pieces that are equally good may be numbered otherwise by another run: train once, and `save`.

    Args:
        files_or_texts: An iterable of strings, the texts; or files, as one path or `Path`s in a list: what `read_rows`
            reads, with texts under "text".
        vocabulary_size: Ids at most, special tokens included. Few texts may give fewer; see the tokenizer's own
            `vocabulary_size`.
        kind: Which pieces, and which special tokens:
            - "wordpiece", as BERT: [CLS] a [SEP] b [SEP], and [PAD], [UNK], [MASK] (Schuster and Nakajima 2012)
            - "bpe", as Llama: <s> a, and <pad>, <unk>, </s>; byte pair encoding of characters with "▁" for spaces
              (Sennrich et al. 2016). Characters that the texts do not have are unknown
            - "byte_bpe", as GPT-2: <|endoftext|>, which is added to nothing; byte pair encoding of bytes, which knows
              every text (Radford et al. 2019)
            - "unigram", as T5: a </s> b </s>, and <pad>, <unk> (Kudo 2018)
        lowercase: Read texts in lower case; "wordpiece" strips accents then, as BERT's uncased models.
        max_length: The tokenizer's longest row, in tokens.
        special_tokens: More of them, behind the kind's own: sentinels ("<extra_id_0>", ...), roles in a chat.

    Returns:
        A `Tokenizer`, whose `special_id` finds the roles and whose `save` writes what `transformers` reads.

    Raises:
        FileNotFoundError: without a file.
        ValueError: for unknown kinds, no texts, paths given as strings in a list, files without "text", doubled special
            tokens, and a vocabulary too small for the special tokens and the characters.
    """
    from tokenizers import AddedToken, processors

    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}; got {kind!r}.")
    family = KINDS[kind]
    if isinstance(special_tokens, str):
        raise ValueError(f"special_tokens must be a list of strings; got {special_tokens!r}.")
    tokens = [*family.tokens, *(special_tokens or ())]
    if len(set(tokens)) < len(tokens) or not all(tokens):
        raise ValueError(
            f"special_tokens must be new and not empty, beside {list(family.tokens)}; got {special_tokens}."
        )
    least = len(tokens) + family.least
    if vocabulary_size < least:
        raise ValueError(f"vocabulary_size must be at least {least} for kind={kind!r}; got {vocabulary_size}.")
    texts = _texts(files_or_texts)
    first = next((text for text in texts if text.strip()), None)
    if first is None:
        raise ValueError("There are no texts to train on.")
    base, trainer = BUILD[kind](
        vocabulary_size, [AddedToken(token, special=True, normalized=False) for token in tokens]
    )
    if lowercase:
        _lowercase(base)
    try:
        base.train_from_iterator(chain([first], texts), trainer)
    except Exception as error:
        if type(error) is not Exception:  # what reading the texts raises has a type of its own
            raise
        raise ValueError(f"vocabulary_size={vocabulary_size} does not do for these texts: {error}") from error
    if (size := base.get_vocab_size(with_added_tokens=True)) > vocabulary_size:
        raise ValueError(
            f"vocabulary_size={vocabulary_size} is too small for the {size} special tokens and characters of the texts."
        )
    if family.single is not None:
        used = {token: base.token_to_id(token) for token in family.tokens}
        base.post_processor = processors.TemplateProcessing(
            single=family.single, pair=family.pair, special_tokens=list(used.items())
        )
    settings: dict[str, Any] = {f"{role}_token": token for role, token in family.roles.items()}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # as it is, not as a family's usual one
    if kind == "wordpiece":
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return Tokenizer(base, max_length, settings=settings)


def _texts(given: Any) -> Iterator[str]:
    if isinstance(given, (str, Path)):
        given = [Path(given)]
    items = iter(given)
    first = next(items, None)
    items = chain([] if first is None else [first], items)
    if isinstance(first, Path):
        return _file_texts(items)
    if isinstance(first, str) and len(first) < 1000 and "\0" not in first and Path(first).is_file():
        raise ValueError(f"{first!r} is a file, but strings in a list are texts; give pathlib.Path({first!r}).")
    return strings("files_or_texts", items)


def _file_texts(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        for row in read_rows(path):
            if not isinstance(row.get("text"), str):
                raise ValueError(f"{path} has a row without a 'text'; it has {list(row)}. Give the texts themselves.")
            yield row["text"]


def _lowercase(base: Any) -> None:
    from tokenizers import normalizers

    if isinstance(base.normalizer, normalizers.BertNormalizer):
        base.normalizer = normalizers.BertNormalizer(lowercase=True)
    else:
        before = [] if base.normalizer is None else [base.normalizer]
        base.normalizer = normalizers.Sequence([*before, normalizers.Lowercase()])


def _wordpiece(size: int, tokens: list[Any]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    base = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    base.normalizer = normalizers.BertNormalizer(lowercase=False)
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    base.decoder = decoders.WordPiece()
    return base, trainers.WordPieceTrainer(vocab_size=size, special_tokens=tokens, show_progress=False)


def _bpe(size: int, tokens: list[Any]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    base = Tokenizer(models.BPE(unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Metaspace()
    return base, trainers.BpeTrainer(vocab_size=size, special_tokens=tokens, show_progress=False)


def _byte_bpe(size: int, tokens: list[Any]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.post_processor = processors.ByteLevel(trim_offsets=False)
    base.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False
    )
    return base, trainer


def _unigram(size: int, tokens: list[Any]) -> tuple[Any, Any]:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    base = Tokenizer(models.Unigram())
    base.normalizer = normalizers.NFKC()
    base.pre_tokenizer = pre_tokenizers.Metaspace()
    base.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=tokens, unk_token="<unk>", show_progress=False)
    return base, trainer


BUILD: dict[str, Callable[[int, list[Any]], tuple[Any, Any]]] = {
    "wordpiece": _wordpiece,
    "bpe": _bpe,
    "byte_bpe": _byte_bpe,
    "unigram": _unigram,
}
