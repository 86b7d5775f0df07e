"""Safetensors files, opened without trust: one, or several with an index."""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

MAX_HEADER = 100 << 20
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": ml_dtypes.bfloat16,
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, dtype, shape, and first and last byte in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    def parts(self) -> list[Entry]:
        """Where it lies: itself, unless it is packed (`mxfp4`)."""
        return [self]

    def read(self, view: Callable[[Entry], np.ndarray]) -> np.ndarray:
        """Its values; `view` gives those of a part."""
        return view(self)


def directory_index(directory: Path) -> dict[str, Entry]:
    """The tensors of a checkpoint directory by name, from headers alone, everything checked.

    Raises:
        FileNotFoundError: without weights, or without a shard that the index names.
        ValueError: for pickles; for an index that is damaged, names files outside of the directory, or disagrees with
            its shards; for a tensor that lies in two shards; for damaged shards (see `index`).
    """
    single, several = directory / SINGLE, directory / INDEX
    if single.is_file():
        return index(single)
    if not several.is_file():
        pickles = sorted(path.name for path in directory.glob("pytorch_model*.bin"))
        if pickles:
            raise ValueError(
                f"{directory} has {pickles[0]} only, a pickle, which can run code when opened and is not read here. "
                'Convert it where you trust it: python -c "from transformers import AutoModel as M; '
                f"M.from_pretrained('{directory}').save_pretrained('{directory}')\""
            )
        raise FileNotFoundError(f"{single} is missing.")
    shards = _shards(several)
    entries: dict[str, Entry] = {}
    for name in sorted(set(shards.values())):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing, which {INDEX} names.")
        for tensor, entry in index(directory / name).items():
            if tensor in entries:
                raise ValueError(f"Tensor {tensor!r} lies in both {entries[tensor].path.name} and {name}.")
            entries[tensor] = entry
    lacking = sorted(set(shards) - set(entries))
    if lacking:
        raise ValueError(f"{several} promises tensors that no shard has: {lacking[:4]}, {len(lacking)} in all.")
    return entries


def _shards(path: Path) -> dict[str, str]:
    """Tensor to file name, of an index file."""
    try:
        weight_map = json.loads(path.read_text("utf-8"))["weight_map"]
        shards = {str(tensor): name for tensor, name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r}.") from error
    for name in shards.values():
        plain = isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name and "\\" not in name
        if not plain or "\0" in name:
            raise ValueError(f"{path} names {name!r}; a shard must be a .safetensors file in the same directory.")
    return shards


def index(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file by name, from its header alone, checked against the file's size.

    Raises:
        ValueError: for a file that is truncated or whose header is damaged; says what is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError(f"{path} is truncated: {size} bytes are no safetensors file.")
        (length,) = struct.unpack("<Q", start)
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"{path} is truncated or damaged: its header claims {length} bytes, the file has {size}.")
        try:
            header: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
            header.pop("__metadata__", None)
            entries = {name: _entry(path, name, record, 8 + length, size) for name, record in header.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} has a damaged header: {error!r}.") from error
    last = None
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if last is not None and entry.begin < entries[last].end and entry.size:
            raise ValueError(f"{path} has a damaged header: tensors {last!r} and {name!r} overlap.")
        last = name
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise KeyError(f"{twice!r} is there twice")
    return names


def _entry(path: Path, name: str, record: dict[str, Any], start: int, size: int) -> Entry:
    dtype, shape, (begin, end) = record["dtype"], tuple(record["shape"]), record["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r}, which is not read here.")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{path}: tensor {name!r} has a damaged record {record}.")
    expected = DTYPES[dtype].itemsize * math.prod(shape)
    if end - begin != expected:
        raise ValueError(
            f"{path}: tensor {name!r} of shape {shape} takes {expected} bytes; its record gives {end - begin}."
        )
    if start + end > size:
        raise ValueError(f"{path} is truncated: tensor {name!r} ends at byte {start + end} of {size}.")
    return Entry(path, dtype, shape, start + begin, start + end)


class Reader:
    """Tensors by name from files that `index` has checked, as views of the memory-mapped file: nothing is copied."""

    def __init__(self, entries: Mapping[str, Entry]):
        self.entries = entries
        self._maps: dict[Path, mmap.mmap] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.entries[name].read(self._view)

    def _view(self, entry: Entry) -> np.ndarray:
        if not entry.size:
            return np.zeros(entry.shape, DTYPES[entry.dtype])
        if entry.path not in self._maps:
            with entry.path.open("rb") as file:
                self._maps[entry.path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = np.frombuffer(self._maps[entry.path], np.uint8, entry.end - entry.begin, entry.begin)
        return data.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Let the system forget a tensor's pages: they would count as this process's memory until it ends."""
        for entry in self.entries[name].parts():
            if entry.path in self._maps and hasattr(mmap, "MADV_DONTNEED"):
                begin = -(-entry.begin // mmap.PAGESIZE) * mmap.PAGESIZE
                if entry.end > begin:
                    self._maps[entry.path].madvise(mmap.MADV_DONTNEED, begin, entry.end - begin)
