"""Several examples in a row, so that little padding is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

IGNORED = -100
FILLS = {"labels": IGNORED, "word_ids": -1, "offsets": -1}
MADE = ("padding_mask", "segment_ids", "positions", "starts", "examples")


def first_fit_decreasing(lengths: Any, capacity: int) -> np.ndarray:
    """The bin of each row, longest rows first, each in the first bin with room (Johnson et al. 1974).

    At most 11/9 of the fewest bins, and 6/9 of one, are used (Dósa 2007). Rows of one length are placed at once, so
    that the cost is that of as many passes over the bins as there are different lengths.

    Args:
        lengths: (rows,) int, each from 1 to `capacity`.
        capacity: What a bin holds.

    Returns:
        (rows,) int64: bins in the order in which they were opened, from 0.

    Raises:
        ValueError: for lengths that are not integers, or not from 1 to `capacity`.
    """
    given = np.asarray(lengths)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise ValueError(f"lengths must be (rows,) integers; got shape {given.shape}, {given.dtype}.")
    wrong = np.flatnonzero((given < 1) | (given > capacity))
    if wrong.size:
        raise ValueError(f"lengths must be from 1 to capacity={capacity}; lengths[{wrong[0]}] is {given[wrong[0]]}.")
    bins = np.empty(given.size, np.int64)
    room = np.empty(given.size, np.int64)  # of each open bin
    opened = 0
    order = np.argsort(-given.astype(np.int64), kind="stable")
    ends = np.flatnonzero(np.diff(given[order], append=0)) + 1  # of the runs of one length
    start = 0
    for end in ends.tolist():
        length, left = int(given[order[start]]), end - start
        places = np.flatnonzero(room[:opened] >= length)
        taken = room[places] // length
        before = np.cumsum(taken)
        if before.size and before[-1] >= left:
            last = int(np.searchsorted(before, left))
            places, taken = places[: last + 1], taken[: last + 1]
            taken[-1] -= before[last] - left
        elif (left := left - int(taken.sum())) > 0:
            most = capacity // length
            new = np.arange(opened, opened - (-left // most))
            more = np.full(new.size, most)
            more[-1] = left - most * (new.size - 1)
            room[new] = capacity
            opened += new.size
            places, taken = np.concatenate([places, new]), np.concatenate([taken, more])
        bins[order[start:end]] = np.repeat(places, taken)
        room[places] -= taken * length
        start = end
    return bins


def pack(
    examples: Sequence[Mapping[str, Any]], length: int, *, pad_id: int = 0, fills: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Examples packed into rows of one length, as segments that do not see each other.

    The rows are those of `first_fit_decreasing`, in its order; within a row, examples keep their order. A model with
    "segment_ids" and "positions" gives each token what it gives without packing (Krell et al. 2021).

    Args:
        examples: Dicts of one set of names. "token_ids", (tokens,) int, is required. Other arrays of the same length are
            packed along. One scalar is allowed: "label", an int.
        length: Of a row, in tokens.
        pad_id: What fills "token_ids" behind the last segment.
        fills: What fills other fields there, by name. Default: -100 for "labels", -1 for "word_ids" and "offsets", else
            0.

    Returns:
        A dict of arrays, (rows, length) unless said otherwise:
            - "token_ids" int32, and each other field of the examples in its own dtype
            - "padding_mask" bool, true = a token
            - "segment_ids" int32, 1, 2, ... in a row, 0 for padding
            - "positions" int32, from 0 in each segment, 0 for padding
            - "examples" (rows, most segments) int32, which example a segment is; -1 where there is none
            - with "label" in the examples: "label" (rows, most segments) int32, -100 where there is no segment, and
              "starts" (rows, most segments) int32, the place of each segment's first token, 0 where there is none

        A model takes the first four; "label", "starts" and "examples" are for the loss and for putting results in order.

    Raises:
        ValueError: for no examples, empty or too long ones, fields that differ between examples or in length, scalars
            other than "label", and fields that packing makes itself.
    """
    examples = list(examples)
    if not examples:
        raise ValueError("There are no examples: the list is empty.")
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}.")
    names, has_label = _fields(examples[0])
    unknown = sorted(set(fills or ()) - set(names))
    if unknown:
        raise ValueError(f"fills names {unknown}, which the examples do not have; they have {names}.")
    lengths = _lengths(examples, names, length)
    order = np.argsort(bins := first_fit_decreasing(lengths, length), kind="stable")
    segments = np.bincount(bins)
    rows = len(segments)
    row = bins[order]  # of each segment
    number = np.arange(len(order)) - np.repeat(np.cumsum(segments) - segments, segments)  # within its row
    sizes = lengths[order]
    before = np.cumsum(sizes) - sizes  # tokens of all segments before
    first = np.cumsum(segments) - segments  # each row's first segment
    start = before - before[first][row]
    within = np.arange(sizes.sum()) - np.repeat(before, sizes)
    where = np.repeat(row * length + start, sizes) + within

    def placed(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full((rows * length, *values.shape[1:]), fill, values.dtype)
        out[where] = values
        return out.reshape(rows, length, *values.shape[1:])

    def by_segment(values: np.ndarray, fill: int) -> np.ndarray:
        out = np.full((rows, int(segments.max())), fill, np.int32)
        out[row, number] = values
        return out

    used = {**FILLS, "token_ids": pad_id, **(fills or {})}
    packed: dict[str, np.ndarray] = {}
    for name in names:
        values = _joined([examples[i][name] for i in order], name)
        packed[name] = placed(values, used.get(name, 0))
    packed["padding_mask"] = placed(np.ones(len(where), bool), False)
    packed["segment_ids"] = placed(np.repeat(number + 1, sizes).astype(np.int32), 0)
    packed["positions"] = placed(within.astype(np.int32), 0)
    packed["examples"] = by_segment(order, -1)
    if has_label:
        packed["label"] = by_segment(np.array([int(examples[i]["label"]) for i in order]), IGNORED)
        packed["starts"] = by_segment(start, 0)
    return packed


def _fields(example: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Names of the fields of tokens, and whether there is a label a row."""
    if "token_ids" not in example:
        raise ValueError(f"An example must have 'token_ids'; examples[0] has {sorted(example)}.")
    for name in MADE:
        if name in example:
            raise ValueError(f"Packing makes {name!r} itself; leave it out of the examples, which are not padded.")
    scalars = [name for name, value in example.items() if np.ndim(value) == 0]
    for name in scalars:
        if name != "label":
            raise ValueError(
                f"{name!r} is a scalar, of which only 'label' can be packed; leave it out. examples[0][{name!r}] is "
                f"{example[name]!r}."
            )
    if scalars and not isinstance(example["label"], (int, np.integer)):
        raise ValueError(f"'label' must be an int; examples[0]['label'] is {example['label']!r}.")
    return [name for name in example if name not in scalars], bool(scalars)


def _lengths(examples: list[Mapping[str, Any]], names: list[str], length: int) -> np.ndarray:
    keys = examples[0].keys()
    others = [name for name in names if name != "token_ids"]
    lengths = []
    for index, example in enumerate(examples):
        if example.keys() != keys:
            raise ValueError(f"examples[{index}] has {sorted(example)}, where examples[0] has {sorted(keys)}.")
        size = len(example["token_ids"])
        if not 1 <= size <= length:
            remedy = "cut it, or raise length" if size else "leave it out"
            raise ValueError(f"examples[{index}] has {size} tokens, where a row has length={length}; {remedy}.")
        for name in others:
            if (shape := np.shape(example[name]))[:1] != (size,):
                raise ValueError(f"examples[{index}][{name!r}] has shape {shape}, its token_ids ({size},).")
        if "label" not in names and "label" in keys and not isinstance(example["label"], (int, np.integer)):
            raise ValueError(f"'label' must be an int; examples[{index}]['label'] is {example['label']!r}.")
        lengths.append(size)
    return np.array(lengths)


def _joined(arrays: list[Any], name: str) -> np.ndarray:
    values = np.concatenate(arrays)
    if name != "token_ids":
        return values
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise ValueError(f"token_ids must be (tokens,) integers; got {values.dtype} of {values.ndim} dimensions.")
    return values.astype(np.int32)
