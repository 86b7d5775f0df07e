"""Products of rows with the matrix of the group that each belongs to."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops.backend import NAME, Tensor, device


def grouped_product(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """x[row] @ kernel[group of row], rows being sorted by group: no row is dropped, none computed twice.

    Args:
        x: (rows, in) float; the first group_sizes[0] rows belong to group 0, and so on.
        kernel: (groups, in, out) float.
        group_sizes: (groups,) int, adding up to rows.

    Returns:
        (rows, out). JAX's `ragged_dot`; elsewhere a product per group, on TensorFlow's accelerators, where XLA needs
        fixed shapes, of all rows with each group's matrix, as where torch records a step.
    """
    if NAME == "jax":
        import jax

        return jax.lax.ragged_dot(x, kernel, ops.cast(group_sizes, "int32"))
    groups = kernel.shape[0]
    if NAME == "torch":
        import torch
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        if get_proxy_mode() is not None:
            return _traceable(x, kernel, group_sizes)
        parts = zip(torch.split(x, group_sizes.tolist()), kernel.unbind(0), strict=True)
        return torch.cat([rows @ matrix for rows, matrix in parts])
    import tensorflow as tf

    kernel = tf.convert_to_tensor(kernel)
    if device(x) == "cpu":
        parts = tf.split(x, group_sizes, num=groups)
        return tf.concat([rows @ kernel[group] for group, rows in enumerate(parts)], axis=0)
    ends = tf.cumsum(group_sizes)[:, None]
    steps = tf.range(tf.shape(x)[0])[None, :]
    inside = tf.cast((steps >= ends - group_sizes[:, None]) & (steps < ends), x.dtype)  # (groups, rows)
    return tf.add_n([(x * inside[group][:, None]) @ kernel[group] for group in range(groups)])


def _traceable(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """torch, where operations are recorded, and so must not depend on values: for the few rows of a decode step."""
    import torch

    rows, groups = torch.arange(x.shape[0], device=x.device), kernel.shape[0]
    group = torch.searchsorted(torch.cumsum(group_sizes, 0), rows, right=True)
    if 2 * len(rows) <= groups:  # the matrices that are needed, one for each row
        return torch.bmm(x[:, None], kernel[group])[:, 0]
    return torch.matmul(x, kernel)[group, rows]  # every matrix is read anyway
