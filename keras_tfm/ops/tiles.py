"""Keys and values of a cache in tiles, each of which a product reads from its first byte to its last.

One query times the keys of a head is a product of a vector and a matrix. Eigen, which does it for XLA on a CPU, takes a
block of the result at a time and goes through all rows of the matrix for it, in steps as long as a row: where the matrix
does not lie in the processor's nearest caches, it waits for memory. Of a matrix that is 32 columns wide it takes all
columns at once. (It multiplies each head's small matrix on one core in either case; large ones it divides among several,
so that tiles stop paying.)

    keys      (slots / 32, batch, kv_heads, head_dim, 32), a tile for 32 slots
    values    (batch, kv_heads, head_dim / 32, slots, 32), a tile for 32 places of a vector

A token is one slice of either with all axes but the last two as one (`flat`). A loop carries them so: XLA writes into what
is carried in the form that a product takes, and copies it first in any other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from keras import ops

from keras_tfm.ops.backend import Tensor

WIDTH = 32
MOST = 512  # slots up to which Eigen multiplies a head's matrix on one core
LEAST = 1 << 17  # elements; less lies in the nearest caches
RANK = 5

# Where each axis of an array in tiles, (…, rows, 32), comes from in (batch, kv_heads, rows, tiles, 32).
_ORDER = {"key": (3, 0, 1, 2, 4), "value": (0, 1, 3, 2, 4)}
_INVERSE = {"key": (1, 2, 3, 0, 4), "value": (0, 1, 3, 2, 4)}


def is_tiled(array: Tensor) -> bool:
    """Whether a cache's array is in tiles."""
    return len(array.shape) == RANK


def tiled(name: str, array: Tensor) -> Tensor:
    """(batch, kv_heads, rows, columns), as `kv_cache` lays out what XLA multiplies by, in tiles of 32 columns."""
    batch, heads, rows, columns = array.shape
    return ops.transpose(ops.reshape(array, (batch, heads, rows, columns // WIDTH, WIDTH)), _ORDER[name])


def untiled(name: str, array: Tensor) -> Tensor:
    """The inverse of `tiled`."""
    array = ops.transpose(array, _INVERSE[name])
    return ops.reshape(array, (*array.shape[:3], -1))


def flat(array: Tensor) -> Tensor:
    """(tiles of all heads, rows, 32)."""
    return ops.reshape(array, (math.prod(array.shape[:3]), *array.shape[3:]))


def write(name: str, into: Tensor, new: Tensor, slot: Tensor) -> Tensor:
    """An array in tiles with one token in a slot. `new`: (batch, kv_heads, head_dim, 1) for a key, (…, 1, head_dim)."""
    tiles, rows = flat(into), into.shape[3]
    if name == "key":
        heads = into.shape[1] * into.shape[2]
        new, places = ops.reshape(new, (heads, rows, 1)), (slot // WIDTH * heads, 0, slot % WIDTH)
    else:
        new, places = ops.reshape(new, (tiles.shape[0], 1, WIDTH)), (0, slot, 0)
    return ops.reshape(ops.slice_update(tiles, places, new), into.shape)


def lengthened_by(name: str, more: int) -> tuple[int, int]:
    """The axis that grows with the slots, and by how much for so many slots."""
    return (0, more // WIDTH) if name == "key" else (3, more)


def rows_axis(name: str) -> int:
    """Of an array in tiles, the axis of the batch."""
    return _ORDER[name].index(0)


@dataclass(frozen=True)
class Tiles:
    """Keys or values as `ops.attention` is given them, which shows the shape of what lies in the tiles.

    Attributes:
        name: "key" or "value".
        array: In tiles.
    """

    name: str
    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, slots, kv_heads, head_dim)."""
        batch, heads, rows, tiles, width = (self.array.shape[axis] for axis in _INVERSE[self.name])
        columns = tiles * width
        return (batch, columns, heads, rows) if self.name == "key" else (batch, rows, heads, columns)

    @property
    def dtype(self) -> Any:
        """Of the array."""
        return self.array.dtype

    def whole(self) -> Tensor:
        """What lies in them, as a tensor of this shape."""
        return ops.transpose(untiled(self.name, self.array), (0, 3, 1, 2) if self.name == "key" else (0, 2, 1, 3))

    def times(self, x: Tensor) -> Tensor:
        """(batch, kv_heads, n, rows) times each head's matrix: (batch, kv_heads, n, columns)."""
        axis = 0 if self.name == "key" else 2  # of the tiles
        tiles, (n, rows) = self.array.shape[:3], x.shape[2:]
        each = ops.broadcast_to(ops.expand_dims(x, axis), (*tiles, n, rows))
        parts = ops.matmul(ops.reshape(each, (-1, n, rows)), flat(self.array))
        parts = ops.reshape(parts, (*tiles, n, WIDTH))
        return untiled(self.name, parts)


def whole(x: Any) -> Tensor:
    """A tensor as it is; what lies in tiles."""
    return x.whole() if isinstance(x, Tiles) else x


def cast(x: Any, dtype: Any) -> Any:
    """As `ops.cast`, of tiles, too."""
    return Tiles(x.name, ops.cast(x.array, dtype)) if isinstance(x, Tiles) else ops.cast(x, dtype)
