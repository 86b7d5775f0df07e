"""A few rows times a weight, which is what a step of decoding consists of: most of what it costs is to read the weight.

XLA on a CPU multiplies one row by a matrix on one core, which reads slower than several do. A batch of such products goes
to Eigen, which takes as many threads as it pays for. A matrix's rows in a few parts are such a batch, as they lie; what is
left is to add up the parts' results.

Of several rows it takes the larger factor on the right, and copies it into the order in which it is multiplied. With the
weight as the left factor there is less to copy: the rows, and they must be transposed before, or Eigen reads them
across. A table of tokens is the left factor as it lies, and sooner multiplied as a batch of two halves.
"""

from __future__ import annotations

from math import prod

import keras
from keras import ops

from keras_tfm.ops.backend import NAME, Tensor, as_computed, device, is_recording, reshaped

PARTS, HALVES = 4, 2
MOST = 16  # rows
_LARGE = 1 << 18  # elements; a smaller matrix is read sooner than a second thread wakes


def product(x: Tensor, variable: Tensor, columns: int) -> Tensor | None:
    """x, (rows, width), times a weight whose first axes make up the width: (rows, columns). None where nothing is gained.

    It is where a program of XLA's for a CPU is recorded, of float32, up to 16 rows and a weight of 2^18 elements or more.
    """
    rows, width = x.shape
    if not _pays(x, width * columns):
        return None
    if rows > 1:
        matrix = reshaped(variable, (width, columns), "float32")
        return ops.transpose(ops.matmul(ops.transpose(matrix), as_computed(ops.transpose(x))))
    if width % PARTS:
        return None
    parts = reshaped(variable, (PARTS, width // PARTS, columns), "float32")
    return ops.sum(ops.matmul(ops.reshape(x, (PARTS, 1, width // PARTS)), parts), axis=0)


def by_table(x: Tensor, table: Tensor) -> Tensor | None:
    """x, (rows, width), times each row of a table, (entries, width): (rows, entries). None where nothing is gained."""
    rows, width = x.shape
    entries = table.shape[0]
    if rows == 1 or entries % HALVES or not _pays(x, width * entries):
        return None
    halves = ops.reshape(table, (HALVES, entries // HALVES, width))
    columns = ops.broadcast_to(ops.transpose(x)[None], (HALVES, width, rows))
    return as_computed(ops.transpose(ops.reshape(ops.matmul(halves, columns), (entries, rows))))  # else read across


def shapes(shape: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The shapes in which a weight of this shape may be multiplied."""
    found: set[tuple[int, ...]] = set()
    for axes in range(1, len(shape)):
        width, columns = prod(shape[:axes]), prod(shape[axes:])
        found.add((width, columns))
        if width % PARTS == 0 and width * columns >= _LARGE:
            found.add((PARTS, width // PARTS, columns))
    return found - {shape}


def _pays(x: Tensor, elements: int) -> bool:
    """Whether x is few rows, of a program for a CPU, for a weight of so many elements."""
    return (
        NAME != "torch"
        and is_recording()
        and x.shape[0] is not None
        and x.shape[0] <= MOST
        and elements >= _LARGE
        and keras.backend.standardize_dtype(x.dtype) == "float32"
        and device() == "cpu"
    )
