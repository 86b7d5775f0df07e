"""Products of rows with their group's matrix, in loops over groups and tiles of their rows; the gradient is written here.

A program of fixed shapes that computes no more than it must, up to a tile a group. XLA's own, on a CPU, multiplies all rows
with each group's matrix (`benchmarks.experts` times both). The tiling is that of MegaBlocks (Gale et al. 2022, 5.1),
but that tiles begin where their group does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_tfm.ops import loops
from keras_tfm.ops.backend import NAME, Tensor, static_shape

# Rows of a tile: half of a group's, as far as products are quick and their sums do not take longer than they do.
LEAST, MOST = 32, 256


def product(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """As `ops.experts.grouped_product`; on JAX and TensorFlow."""
    return {"jax": _jax, "tensorflow": _tensorflow}[NAME](x, kernel, ops.cast(group_sizes, "int32"))


def _tile(x: Tensor, groups: int) -> Any:
    """Rows of a tile: a number, or an int32 where the rows of x are not known before running."""
    rows = static_shape(x)[0]
    if rows is None:
        return ops.maximum(ops.minimum(ops.shape(x)[0], MOST // 2), 1)
    return max(1, min(rows, MOST, max(LEAST, 1 << round(math.log2(max(1.0, rows / groups / 2))))))


def _room(shape: tuple, dtype: Any, after: Tensor) -> Tensor:
    """Zeros for a loop to write to, made once a matrix is there.

    XLA is not to know that they are zeros: those that it knows it makes once for all loops, holds all the time, and copies.
    """
    zero = ops.minimum(ops.cast(ops.isfinite(ops.sum(after[:1, :1])), "int32"), 0)
    return ops.broadcast_to(ops.cast(zero, dtype), shape)


def _each_tile(
    tile: Any, rows: Any, group_sizes: Tensor, begin: Callable, step: Callable, end: Callable, carry: tuple
) -> tuple:
    """Goes through the groups, and through the tiles of each.

    Args:
        tile, rows: How many a tile has, and how many there are.
        begin: Of a group, gives what its tiles read, and what they carry beside `carry`.
        step: Of what they read, a tile's first row, a (tile, 1) mask of the rows that are its group's, and all that is
            carried, gives the latter.
        end: Of a group and all that is carried, gives the new `carry`.
    """
    ends = ops.cumsum(group_sizes)

    def of_group(group, carry):
        last, size = loops.block(ends, group), loops.block(group_sizes, group)
        first = last - size
        read, more = begin(group)

        def of_tile(index, carried):
            wanted = first + index * tile
            at = ops.minimum(wanted, rows - tile)  # the last tile may begin in rows that are done, or another group's
            places = at + ops.arange(tile, dtype="int32")
            mine = ops.logical_and(places >= wanted, places < last)
            return step(read, at, mine[:, None], carried)

        return end(group, loops.loop((size + tile - 1) // tile, of_tile, (*carry, *more)))

    return loops.loop(group_sizes.shape[0], of_group, carry)


def forward(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """(rows, out)."""
    tile, rows = _tile(x, kernel.shape[0]), ops.shape(x)[0]

    def step(matrix, at, mine, carried):
        (found,) = carried
        new = ops.where(mine, ops.matmul(loops.rows(x, at, tile), matrix), loops.rows(found, at, tile))
        return (ops.slice_update(found, (at, 0), new),)

    def begin(group):
        return loops.block(kernel, group), ()

    carry = (_room((rows, kernel.shape[2]), x.dtype, x),)
    return _each_tile(tile, rows, group_sizes, begin, step, lambda _, carried: carried, carry)[0]


def backward(x: Tensor, kernel: Tensor, group_sizes: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and by kernel, which are added up in float32 at least."""
    tile, rows = _tile(x, kernel.shape[0]), ops.shape(x)[0]
    wide = "float64" if str(x.dtype).endswith("float64") else "float32"
    empty = ops.zeros(kernel.shape[1:], wide)

    def step(matrix, at, mine, carried):
        by_x, by_kernel, by_matrix = carried
        slope = ops.where(mine, loops.rows(by, at, tile), ops.zeros((), by.dtype))
        new = ops.where(mine, ops.matmul(slope, ops.transpose(matrix)), loops.rows(by_x, at, tile))
        by_matrix = by_matrix + ops.cast(ops.matmul(ops.transpose(loops.rows(x, at, tile)), slope), wide)
        return ops.slice_update(by_x, (at, 0), new), by_kernel, by_matrix

    def end(group, carried):
        by_x, by_kernel, by_matrix = carried
        return by_x, ops.slice_update(by_kernel, (group, 0, 0), ops.cast(by_matrix, kernel.dtype)[None])

    carry = _room((rows, x.shape[1]), x.dtype, by), _room(kernel.shape, kernel.dtype, by)
    return _each_tile(tile, rows, group_sizes, lambda g: (loops.block(kernel, g), (empty,)), step, end, carry)


def _jax(x, kernel, group_sizes):
    return _jax_rule()(x, kernel, group_sizes)


@functools.cache
def _jax_rule():
    import jax

    rule = jax.custom_vjp(forward)

    def keep(*arguments):
        return forward(*arguments), arguments

    def back(kept, by):
        x, kernel, group_sizes = kept
        return *backward(x, kernel, group_sizes, by), None

    rule.defvjp(keep, back)
    return rule


def _tensorflow(x, kernel, group_sizes):
    import tensorflow as tf

    shape = [static_shape(x)[0], kernel.shape[2]]  # which TensorFlow's loops forget

    @tf.custom_gradient
    def rule(x, kernel):
        def back(by):
            return backward(x, kernel, group_sizes, tf.ensure_shape(by, shape))

        return tf.ensure_shape(forward(x, kernel, group_sizes), shape), back

    return rule(tf.convert_to_tensor(x), tf.convert_to_tensor(kernel))
