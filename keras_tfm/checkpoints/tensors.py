"""Safetensors files, opened without trust."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAX_HEADER = 100 << 20
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, dtype and shape."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def index(path: Path) -> dict[str, Entry]:
    """The tensors of a safetensors file by name, from its header alone, checked against the file's size.

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
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = {name: _entry(path, name, record, size - 8 - length) for name, record in header.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} has a damaged header: {error!r}.") from error
    return entries


def _entry(path: Path, name: str, record: dict[str, Any], room: int) -> Entry:
    dtype, shape, (begin, end) = record["dtype"], tuple(record["shape"]), record["data_offsets"]
    if dtype not in SIZES:
        raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r}, which is not read here.")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{path}: tensor {name!r} has a damaged record {record}.")
    expected = SIZES[dtype]
    for dimension in shape:
        expected *= dimension
    if end - begin != expected:
        raise ValueError(
            f"{path}: tensor {name!r} of shape {shape} takes {expected} bytes; its record gives {end - begin}."
        )
    if end > room:
        raise ValueError(f"{path} is truncated: tensor {name!r} ends at byte {end} of {room}.")
    return Entry(path, dtype, shape)


class Reader:
    """Reads tensors one at a time from files that `index` has checked."""

    def __init__(self, entries: dict[str, Entry]):
        self.entries = entries
        self._open: dict[Path, Any] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        entry = self.entries[name]
        if entry.path not in self._open:
            self._open[entry.path] = safe_open(str(entry.path), framework="numpy")
        if entry.dtype == "BF16":
            return self._bfloat16(name)
        return self._open[entry.path].get_tensor(name)

    def _bfloat16(self, name: str) -> np.ndarray:
        """bfloat16 is the upper half of float32; NumPy has no name for it."""
        entry = self.entries[name]
        with entry.path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            begin, end = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(8 + length + begin)
            halves = np.frombuffer(file.read(end - begin), "<u2")
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
