"""A tensor of a step by its shape, and what one device has of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from keras_tfm.planning.described import itemsize
from keras_tfm.planning.ways import Way

# What a tensor's dimensions are split over, beside what weights' are: rows are shared by "data".
_SPLIT = {"rows": "data", "heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model", "experts": "model"}


@dataclass(frozen=True)
class Tensor:
    """So many tensors of one sort.

    Attributes:
        name: What it is.
        sizes: Its dimensions' sizes by what they mean: "rows", "heads", "kv_heads", "mlp", "vocab" are split over the mesh
            where they divide, others never.
        dtype: Of its elements.
        count: How many there are.
    """

    name: str
    sizes: tuple[tuple[str, int], ...]
    dtype: str
    count: int = 1

    def bytes(self, way: Way | None = None) -> int:
        """On one device; without a way, of the whole."""
        sizes = [1 if way is None else way.data, 1 if way is None else way.model]
        by = dict(zip(("data", "model"), sizes, strict=True))
        total, used = self.count * itemsize(self.dtype), set()
        for axis, size in self.sizes:
            target = _SPLIT.get(axis)
            if target is not None and target not in used and size % by[target] == 0:
                used.add(target)
                size //= by[target]
            total *= size
        return total


def total(tensors: list[Tensor], way: Way | None = None) -> int:
    """Bytes of all of them, on one device."""
    return sum(tensor.bytes(way) for tensor in tensors)


def elements(tensor: Tensor) -> int:
    """Of one, whole."""
    return math.prod(size for _, size in tensor.sizes)
