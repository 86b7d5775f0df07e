"""Weights in four bits with a scale for each 32 (MXFP4), in which gpt-oss is published: read as bfloat16.

OCP Microscaling Formats (MX) Specification 1.0, 2023: values are E2M1, scales E8M0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from keras_tfm.checkpoints.tensors import Entry

BLOCK = 16  # bytes, of two values each, that share a scale
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VALUES = np.array([*_POSITIVE, *(-value for value in _POSITIVE)], np.float32)


@dataclass(frozen=True)
class Packed(Entry):
    """A tensor (…, in, out) that the file has as blocks (…, out, in / 32, 16) and scales (…, out, in / 32)."""

    blocks: Entry
    scales: Entry

    def parts(self) -> list[Entry]:
        """Where it lies."""
        return [self.blocks, self.scales]

    def read(self, view: Callable[[Entry], np.ndarray]) -> np.ndarray:
        """Its values, bfloat16."""
        return decode(view(self.blocks), view(self.scales))


def decode(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Values of MXFP4 weights.

    Args:
        blocks: (groups, out, in / 32, 16) uint8; the lower four bits of a byte come first.
        scales: (groups, out, in / 32) uint8, exponents of two plus 127.

    Returns:
        (groups, in, out) bfloat16, which holds every value exactly.
    """
    groups, rows = blocks.shape[:2]
    result = np.empty((groups, math.prod(blocks.shape[2:]) * 2, rows), ml_dtypes.bfloat16)
    for group in range(groups):  # one at a time: what is between takes as much memory again
        codes = np.stack([blocks[group] & 15, blocks[group] >> 4], axis=-1)  # (out, in / 32, 16, 2)
        values = np.ldexp(VALUES[codes], scales[group].astype(np.int32)[..., None, None] - 127)
        result[group] = values.reshape(rows, -1).T
    return result


def merge(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors of a checkpoint, blocks and scales as the one tensor that they are.

    Raises:
        ValueError: for blocks without scales of their shape.
    """
    merged = dict(entries)
    for name in entries:
        base = name.removesuffix("_blocks")
        if base == name or entries[name].dtype != "U8":
            continue
        blocks, scales = merged.pop(name), merged.pop(f"{base}_scales", None)
        fits = len(blocks.shape) == 4 and blocks.shape[-1] == BLOCK and base not in entries
        if scales is None or scales.dtype != "U8" or scales.shape != blocks.shape[:-1] or not fits:
            raise ValueError(
                f"{blocks.path} has {name} of shape {blocks.shape}, which should be (groups, rows, blocks, {BLOCK}), "
                f"with scales of shape {blocks.shape[:-1]}; they are {None if scales is None else scales.shape}."
            )
        groups, rows, count, _ = blocks.shape
        shape = (groups, count * BLOCK * 2, rows)
        merged[base] = Packed(blocks.path, "BF16", shape, 0, blocks.end - blocks.begin, blocks, scales)
    return merged
