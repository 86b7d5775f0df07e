"""Loops and stacks of blocks, as each backend writes them; gradients do not flow through them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_tfm.ops.backend import NAME, Tensor


def loop(count: int | Tensor, body: Callable[[Any, Any], Any], carry: tuple[Any, ...]) -> tuple[Any, ...]:
    """carry = body(i, carry) for i below count, a number or a scalar int32."""
    if NAME == "jax":
        import jax

        return jax.lax.fori_loop(0, count, body, carry)
    if NAME == "tensorflow":
        import tensorflow as tf

        _, carry = tf.while_loop(
            lambda i, _: i < count,
            lambda i, carry: (i + 1, body(i, carry)),
            (tf.constant(0), carry),
            parallel_iterations=1,
        )
        return carry
    for i in range(int(count)):
        carry = body(i, carry)
    return carry


def stack(count: int | Tensor, like: Tensor, dtype: Any, filled: bool = False) -> Any:
    """Room for so many blocks.

    Args:
        count: How many.
        like: One of them, whose shape all have.
        dtype: Theirs.
        filled: With zeros, to be added to (`add`); otherwise each block is `put` once.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    if NAME != "tensorflow":
        return ops.zeros((count, *like.shape), dtype)
    import tensorflow as tf

    room = tf.TensorArray(dtype, count, element_shape=like.shape, clear_after_read=False)
    return room.unstack(tf.zeros(tf.concat([[count], tf.shape(like)], 0), dtype)) if filled else room


def block(blocks: Tensor, i: int | Tensor) -> Tensor:
    """Block i of (blocks, ...); i may be any number that comes out of a computation.

    TensorFlow's own indexing and slicing have XLA compile once for each value of such a number.
    """
    if NAME != "tensorflow":
        return blocks[i]
    import tensorflow as tf

    return tf.gather(blocks, i)


def rows(x: Tensor, first: Tensor, count: int | Tensor) -> Tensor:
    """So many rows of (rows, width), from a computed one on, as `block`."""
    if NAME != "tensorflow":
        return ops.slice(x, (first, 0), (count, x.shape[1]))
    from tensorflow.compiler.tf2xla.python import xla

    return xla.dynamic_slice(x, (first, 0), (count, x.shape[1]))


def put(blocks: Any, i: int | Tensor, value: Tensor) -> Any:
    """Block i becomes a value."""
    if NAME == "jax":
        import jax

        return jax.lax.dynamic_update_index_in_dim(blocks, value.astype(blocks.dtype), i, 0)
    if NAME == "tensorflow":
        return blocks.write(i, ops.cast(value, blocks.dtype))
    blocks[i] = value
    return blocks


def add(blocks: Any, i: int | Tensor, value: Tensor) -> Any:
    """A value is added to block i."""
    if NAME == "jax":
        return put(blocks, i, blocks[i] + value.astype(blocks.dtype))
    if NAME == "tensorflow":
        return blocks.write(i, blocks.read(i) + ops.cast(value, blocks.dtype))
    blocks[i] += value
    return blocks


def stacked(blocks: Any) -> Tensor:
    """(blocks, ...)."""
    return blocks.stack() if NAME == "tensorflow" else blocks
