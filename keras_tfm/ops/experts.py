"""Products of rows with the matrix of the group that each belongs to."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops.backend import NAME, Tensor, device, is_recording


def grouped_product(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """x[row] @ kernel[group of row], rows being sorted by group: no row is dropped, none computed twice.

    Args:
        x: (rows, in) float; the first group_sizes[0] rows belong to group 0, and so on.
        kernel: (groups, in, out) float.
        group_sizes: (groups,) int, adding up to rows.

    Returns:
        (rows, out). JAX's `ragged_dot`; elsewhere a product per group. Where shapes may not depend on values, as under XLA,
        a product of each row with a matrix of its own if the rows are few, else of all rows with each group's matrix.
    """
    if NAME == "jax":
        import jax

        return jax.lax.ragged_dot(x, kernel, ops.cast(group_sizes, "int32"))
    if is_recording() or (NAME == "tensorflow" and device(x) != "cpu"):
        return _of_fixed_shape(x, kernel, group_sizes)
    groups = kernel.shape[0]
    if NAME == "torch":
        import torch

        parts = zip(torch.split(x, group_sizes.tolist()), kernel.unbind(0), strict=True)
        return torch.cat([rows @ matrix for rows, matrix in parts])
    import tensorflow as tf

    kernel = tf.convert_to_tensor(kernel)
    parts = tf.split(x, group_sizes, num=groups)
    return tf.concat([rows @ kernel[group] for group, rows in enumerate(parts)], axis=0)


def _of_fixed_shape(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    rows, groups = x.shape[0], kernel.shape[0]
    kernel = ops.convert_to_tensor(kernel)
    ends = ops.cumsum(ops.cast(group_sizes, "int32"))
    places = ops.arange(ops.shape(x)[0], dtype="int32")
    group = ops.sum(ops.cast(ends[None, :] <= places[:, None], "int32"), axis=1)  # (rows,)
    if rows is not None and 2 * rows <= groups:
        return ops.matmul(x[:, None], ops.take(kernel, group, axis=0))[:, 0]
    result = 0.0
    for index in range(groups):
        inside = ops.cast(group == index, x.dtype)[:, None]
        result = result + ops.matmul(x * inside, kernel[index])
    return result
