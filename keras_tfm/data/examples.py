"""Texts as examples for language models: one stream or one text each, and sources with targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import Any

import numpy as np

from keras_tfm.data.accepted import as_tokenizer

IGNORED = -100
CHUNK = 1000  # texts tokenized at a time, so that their encodings are not all in memory
UNCUT = 1 << 30


class Examples(list[dict[str, Any]]):
    """A list of examples, dicts of arrays without padding, that says what of the texts is not in them.

    Attributes:
        cut_rows: How many texts were cut.
        cut_tokens: How many of their tokens are in no example.
        cut_labels: How many words' tags, or questions' answers, are in no example.
        empty: How many texts had no tokens, and no example for that.
        labels: Names of the tags, by number; empty where tags are numbers or there are none.
    """

    def __init__(self, examples: Iterable[dict[str, Any]] = (), labels: Sequence[str] = ()):
        super().__init__(examples)
        self.cut_rows = 0
        self.cut_tokens = 0
        self.cut_labels = 0
        self.empty = 0
        self.labels = tuple(labels)

    def __getitem__(self, index: Any) -> Any:
        """An example, or, of a slice, `Examples` of the same labels; the counts stay with the whole."""
        found = super().__getitem__(index)
        return Examples(found, self.labels) if isinstance(index, slice) else found

    def cut_encodings(self, tokenizer: Any, texts: Sequence[str], max_length: int | None) -> list[Any]:
        """Encodings of texts cut to `max_length`, default the tokenizer's, with what is lost counted."""
        encodings = tokenizer.encode(texts, max_length)
        limit = max_length or tokenizer.max_length
        full = [i for i, encoding in enumerate(encodings) if len(encoding.ids) == limit]
        for i, whole in zip(full, tokenizer.encode([texts[i] for i in full], UNCUT), strict=True):
            lost = len(whole.ids) - len(encodings[i].ids)
            self.cut_rows += lost > 0
            self.cut_tokens += lost
        return encodings


def causal_examples(
    documents: Iterable[str],
    tokenizer: Any,
    length: int,
    *,
    blocks: bool = True,
    stride: int | None = None,
    end_token: bool = True,
) -> Examples:
    """Examples for a language model from documents: blocks of one stream, or each document by itself.

    Args:
        documents: Strings, read once. Those without tokens are left out and counted in `empty`.
        tokenizer: What `as_tokenizer` takes. Documents get the special tokens that it adds, and are not cut by its
            `max_length`.
        length: Of a block; of a document's longest example; in tokens.
        blocks: Join all documents and cut the stream into examples of exactly `length` tokens; what is left at its end,
            fewer than `stride` tokens, is counted in `cut_tokens`. Otherwise each document is cut into examples of at
            most `length`, of which none is lost.
        stride: Tokens from the start of one example to the next one's, at most `length`. If it is less, examples have
            "labels" too, the next tokens, so that each is asked for once: -100 where an earlier example of the stream,
            or of the document, has it. Default: `length`.
        end_token: Put the end token behind each document that does not end with it.

    Returns:
        `Examples` of {"token_ids" (tokens,) int32} and, for overlapping ones, "labels" (tokens,) int32.

    Raises:
        ValueError: for what is no string, lengths out of range, a tokenizer without an end token, no documents, and a
            stream shorter than a block.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}.")
    if stride is not None and not 1 <= stride <= length:
        raise ValueError(f"stride must be from 1 to length={length}; got {stride}.")
    tokenizer = as_tokenizer(tokenizer)
    end_id = tokenizer.special_id("eos") if end_token else None
    if end_token and end_id is None:
        raise ValueError(
            "end_token=True, but the tokenizer has no end token: name it in its settings, such as {'eos_token': '</s>'}, "
            "or pass end_token=False."
        )
    found = Examples()
    streams: list[np.ndarray] = []
    for encoding in _encodings(tokenizer, strings("documents", documents)):
        if not encoding.ids:
            found.empty += 1
            continue
        ids = [*encoding.ids, end_id] if end_id is not None and encoding.ids[-1] != end_id else encoding.ids
        streams.append(np.array(ids, np.int32))
    if not streams and not found.empty:
        raise ValueError("There are no documents.")
    if blocks:
        stream = np.concatenate([np.empty(0, np.int32), *streams])
        if len(stream) < length:
            raise ValueError(
                f"The documents have {len(stream)} tokens together, where a block has length={length}; take a shorter "
                "one, or blocks=False."
            )
        streams = [stream]
    step = stride or length
    for stream in streams:
        whole = max(len(stream) - length, 0)
        count = (whole // step if blocks else -(-whole // step)) + 1
        found += (_window(stream, i * step, length, step) for i in range(count))
        found.cut_tokens += max(whole - (count - 1) * step, 0)
    return found


def _window(stream: np.ndarray, start: int, length: int, step: int) -> dict[str, np.ndarray]:
    window = {"token_ids": stream[start : start + length].copy()}
    if step < length:
        labels = np.append(window["token_ids"][1:], IGNORED).astype(np.int32)
        if start:
            labels[: length - step - 1] = IGNORED
        window["labels"] = labels
    return window


def seq2seq_examples(
    sources: Iterable[str],
    targets: Iterable[str],
    tokenizer: Any,
    *,
    start_id: int,
    max_length: int | None = None,
    max_target_length: int | None = None,
) -> Examples:
    """Examples for an encoder-decoder from sources and their targets.

    Args:
        sources: Strings.
        targets: Strings, one for each source.
        tokenizer: What `as_tokenizer` takes, of both sides. Its special tokens are all that is added: a target ends as
            it ends a text (T5's, BART's and Marian's with the end token).
        start_id: First token of the decoder (`decoder_start_token_id`).
        max_length: Longest source, in tokens; longer ones are cut and counted. Default: the tokenizer's.
        max_target_length: Longest target. Default: the tokenizer's.

    Returns:
        `Examples` of {"token_ids" (source,), "decoder_token_ids" (target,), "labels" (target,)}, all int32, where the
        decoder's tokens are the labels moved right behind `start_id`. `cut_rows` and `cut_tokens` count both sides.

    Raises:
        ValueError: for what is no string, numbers of sources and targets that differ, none, and targets without a token,
            special ones included.
    """
    tokenizer = as_tokenizer(tokenizer)
    found = Examples()
    for pairs in chunks(_pairs(strings("sources", sources), strings("targets", targets))):
        inputs = found.cut_encodings(tokenizer, [source for source, _ in pairs], max_length)
        outputs = found.cut_encodings(tokenizer, [target for _, target in pairs], max_target_length)
        for pair, source, target in zip(pairs, inputs, outputs, strict=True):
            if not (source.ids and target.ids):
                raise ValueError(f"Row {len(found)} has a side without tokens: {pair!r}.")
            labels = np.array(target.ids, np.int32)
            found.append(
                {
                    "token_ids": np.array(source.ids, np.int32),
                    "decoder_token_ids": np.append(start_id, labels[:-1]).astype(np.int32),
                    "labels": labels,
                }
            )
    if not found:
        raise ValueError("There are no sources.")
    return found


def strings(name: str, texts: Iterable[Any]) -> Iterator[str]:
    """The texts, each seen to be a string."""
    if isinstance(texts, (str, bytes)):
        raise ValueError(f"{name} must be an iterable of strings; got one string. Put it into a list.")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{index}] must be a string; got {text!r}.")
        yield text


def chunks(items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of at most `CHUNK`."""
    items = iter(items)
    while chunk := list(islice(items, CHUNK)):
        yield chunk


def _pairs(sources: Iterator[str], targets: Iterator[str]) -> Iterator[tuple[str, str]]:
    for index, (source, target) in enumerate(zip_longest(sources, targets)):
        if source is None or target is None:
            raise ValueError(f"There must be a target for each source; one of them ends at row {index}.")
        yield source, target


def _encodings(tokenizer: Any, texts: Iterable[str]) -> Iterator[Any]:
    """Uncut encodings, in the order of the texts."""
    for chunk in chunks(texts):
        yield from tokenizer.encode(chunk, UNCUT)
