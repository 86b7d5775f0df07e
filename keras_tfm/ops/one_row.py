"""One row times a weight, which is what a step of decoding consists of: all that it costs is to read the weight.

XLA on a CPU multiplies one row by a matrix on one core, which reads slower than several do. A batch of such products goes
to Eigen, which takes as many threads as it pays for. A matrix's rows in a few parts are such a batch, as they lie; what is
left is to add up the parts' results.
"""

from __future__ import annotations

from math import prod

import keras
from keras import ops

from keras_tfm.ops.backend import NAME, Tensor, device, is_recording, reshaped

PARTS = 4
_LARGE = 1 << 18  # elements; a smaller matrix is read sooner than a second thread wakes


def in_parts(x: Tensor, columns: int) -> bool:
    """Whether `product` is what x, (rows, width), should be multiplied with a matrix of so many columns by."""
    rows, width = x.shape
    return (
        rows == 1
        and NAME != "torch"
        and is_recording()
        and keras.backend.standardize_dtype(x.dtype) == "float32"
        and _splits(width, columns)
        and device() == "cpu"
    )


def product(x: Tensor, variable: Tensor, columns: int) -> Tensor:
    """x, (1, width) float32, times a weight whose first axes make up the width: (1, columns)."""
    width = x.shape[1]
    parts = reshaped(variable, (PARTS, width // PARTS, columns), "float32")
    return ops.sum(ops.matmul(ops.reshape(x, (PARTS, 1, width // PARTS)), parts), axis=0)


def shapes(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The shapes in which a weight of this shape may be multiplied."""
    found: set[tuple[int, ...]] = set()
    for axes in range(1, len(shape)):
        width, columns = prod(shape[:axes]), prod(shape[axes:])
        found.add((width, columns))
        if _splits(width, columns):
            found.add((PARTS, width // PARTS, columns))
    return found - {shape}


def _splits(width: int, columns: int) -> bool:
    return width % PARTS == 0 and width * columns >= _LARGE
