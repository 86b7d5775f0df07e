"""Products of rows with the matrix of the group that each belongs to."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops import grouped_loops
from keras_tfm.ops.backend import NAME, Tensor, device, is_recording, is_xla


def grouped_product(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """x[row] @ kernel[group of row], rows being sorted by group: no row is dropped, none computed twice.

    Args:
        x: (rows, in) float; the first group_sizes[0] rows belong to group 0, and so on.
        kernel: (groups, in, out) float.
        group_sizes: (groups,) int, adding up to rows; to fewer on JAX, where rows beyond belong to none.

    Returns:
        (rows, out), undefined for rows of no group, as their gradients are. A product per group; where shapes may not
        depend on values, JAX's `ragged_dot` on GPUs and TPUs, of few rows a product of each with a matrix of its own, else
        loops over tiles of rows (`grouped_loops`), and on torch products of all rows with each group's matrix.
    """
    if NAME == "jax" and device() != "cpu":
        import jax

        return jax.lax.ragged_dot(x, kernel, ops.cast(group_sizes, "int32"))
    if is_recording() or is_xla():
        rows = x.shape[0]
        if rows is not None and 2 * rows <= kernel.shape[0]:
            return ops.matmul(x[:, None], ops.take(kernel, _groups(x, group_sizes), axis=0))[:, 0]
        return (
            _of_all_rows(x, kernel, group_sizes) if NAME == "torch" else grouped_loops.product(x, kernel, group_sizes)
        )
    if NAME == "torch":
        import torch

        parts = zip(torch.split(x, group_sizes.tolist()), kernel.unbind(0), strict=True)
        return torch.cat([rows @ matrix for rows, matrix in parts if len(rows)] or [x @ kernel[0]])
    import tensorflow as tf

    matrices = tf.unstack(tf.convert_to_tensor(kernel))
    parts = zip(tf.split(x, group_sizes, num=len(matrices)), matrices, strict=True)
    return tf.concat([rows @ matrix for rows, matrix in parts], axis=0)


def _groups(x: Tensor, group_sizes: Tensor) -> Tensor:
    """(rows,): each row's group; the last one for rows of none, so that all they come to is finite."""
    ends = ops.cumsum(ops.cast(group_sizes, "int32"))
    places = ops.arange(ops.shape(x)[0], dtype="int32")
    return ops.sum(ops.cast(ends[None, :-1] <= places[:, None], "int32"), axis=1)


def _of_all_rows(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    group = _groups(x, group_sizes)
    kernel = ops.convert_to_tensor(kernel)
    result = 0.0
    for index in range(kernel.shape[0]):
        inside = ops.cast(group == index, x.dtype)[:, None]
        result = result + ops.matmul(x * inside, kernel[index])
    return result
