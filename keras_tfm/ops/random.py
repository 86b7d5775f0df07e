"""Dropout, the random part of every layer here, drawn as cheaply as each backend allows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_tfm.ops import replicas
from keras_tfm.ops.backend import NAME, Tensor

# TensorFlow and torch on the CPU cut random words into 16-bit lanes, each a draw, exact to 1/65536. The scale uses the
# rounded rate, so the expectation is exact.
_LANES = 1 << 16
_APART = 0x1E3779B1  # odd: between the first words of two replicas' states
_PARTS_APART = 0x3C6EF373  # odd: between the second words of two parts of one draw


def _threshold(rate: float) -> int:
    """The lowest lane that keeps its element."""
    return min(round(rate * _LANES), _LANES - 1)


def _dropout_tensorflow(x: Tensor, rate: float, state: Tensor) -> Tensor:
    import tensorflow as tf

    threshold = _threshold(rate)
    count = tf.size(x)
    words = tf.random.stateless_uniform(((count + 1) // 2,), seed=state, minval=None, maxval=None, dtype=tf.uint32)
    lanes = tf.reshape(tf.bitcast(words, tf.uint16), (-1,))  # (words, 2) -> (2 * words,)
    keep = tf.reshape(lanes[:count], tf.shape(x)) >= tf.constant(threshold, tf.uint16)
    return x * tf.cast(keep, x.dtype) * tf.cast(1.0 / (1.0 - threshold / _LANES), x.dtype)


def _mix(word: Tensor) -> Tensor:
    """A bijection of 32-bit words that avalanches: Wellons 2018, "lowbias32"."""
    import jax.numpy as jnp

    word = word ^ (word >> 16)
    word = word * jnp.uint32(0x7FEB352D)
    word = word ^ (word >> 15)
    word = word * jnp.uint32(0x846CA68B)
    return word ^ (word >> 16)


def early_draw(seed: keras.random.SeedGenerator) -> Tensor | None:
    """A draw for `dropout_of_rows`, on JAX; None on other backends, which have none."""
    return state_of(seed) if NAME == "jax" else None


def dropout_of_rows(x: Tensor, rate: float, draw: Tensor, rows: Tensor | None = None) -> Tensor:
    """`dropout` of rows of an array by a draw for the whole of it, on JAX.

    By a keyed hash of each element's index. XLA fuses it into whatever consumes the mask, on every device and under every
    sharding, where JAX's own generator makes 20 rounds in a pass of its own (28 times slower on a CPU: 15.4 against 0.54 ms
    for a million elements).

    Args:
        x: (rows, ...) float.
        rate: As of `dropout`.
        draw: From `early_draw`: two words.
        rows: (rows,) int, which rows of the whole these are. Default: the first ones.
    """
    import jax
    import jax.numpy as jnp

    if rate >= 1.0:
        return ops.zeros_like(x)
    first = _mix(draw[0].astype(jnp.uint32))
    second = _mix(draw[1].astype(jnp.uint32) ^ first)
    index, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        if axis == 0 and rows is not None:
            place = jnp.reshape(rows.astype(jnp.uint32), (-1, *[1] * (x.ndim - 1)))
        else:
            place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        index = index + place * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    words = _mix(_mix(index ^ second) + first)
    keep = words >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def _dropout_torch(x: Tensor, rate: float, state: Any) -> Tensor:
    """On the CPU, where `torch.bernoulli` takes one draw at a time (8.4 against 1.5 ms for a million elements)."""
    import torch

    threshold = _threshold(rate)
    generator = None  # torch's own, which `keras.utils.set_random_seed` seeds: as Keras does for layers without a seed
    if state is not None:
        # The generator takes 32 bits. Draw n + 1 of one seed must not be draw n of the next.
        generator = torch.Generator().manual_seed((state[0] + 0x9E3779B9 * state[1]) % 2**32)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    keep = words.view(torch.int16)[: x.numel()].view(x.shape) >= threshold - _LANES // 2
    return x * keep.to(x.dtype).mul_(1.0 / (1.0 - threshold / _LANES))


_DROPOUT: dict[str, Callable] = {"tensorflow": _dropout_tensorflow, "jax": dropout_of_rows, "torch": _dropout_torch}


def dropout(x: Tensor, rate: float, seed: keras.random.SeedGenerator) -> Tensor:
    """Zero each element with probability `rate` and scale the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
        x: A float tensor of any shape.
        rate: Probability in [0, 1]; on TensorFlow, and torch's CPU, rounded to a multiple of 1/65536.
        seed: A `keras.random.SeedGenerator`, advanced by one draw. On torch one that was made without a seed draws from
            torch's own generator.
    """
    if rate <= 0.0:
        return x
    if rate >= 1.0:
        return ops.zeros_like(x)
    if NAME == "torch":
        import torch

        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return keras.random.dropout(x, rate, seed=seed)
        return _dropout_torch(x, rate, None if seed._initial_seed is None else state_of(seed))
    return _DROPOUT[NAME](x, rate, state_of(seed))


def state_of(seed: keras.random.SeedGenerator) -> Any:
    """A draw of a generator, from which `dropout_again` makes the same mask as often as it is asked for.

    Two int32 on TensorFlow, two uint32 on JAX, two numbers of Python's on torch.
    """
    if NAME == "tensorflow":
        import tensorflow as tf

        state = tf.cast(seed.next(), tf.int32)
        replica = replicas.index()  # each its own mask: the states are the same on all of them
        return state if replica is None else state + tf.stack([replica * _APART, 0])
    if NAME == "torch":
        import torch

        if seed._initial_seed is None:
            return tuple(torch.randint(2**31, (2,)).tolist())
        return tuple(int(word) for word in seed.next())
    return seed.next()


def dropout_again(x: Tensor, rate: float, state: Any, part: int | Tensor) -> Tensor:
    """`dropout` with the mask that belongs to a state (`state_of`) and a part of the whole, an int32."""
    if rate <= 0.0:
        return x
    if rate >= 1.0:
        return ops.zeros_like(x)
    if NAME == "tensorflow":
        import tensorflow as tf

        state = state + tf.stack([0, tf.cast(part, tf.int32) * _PARTS_APART])
    elif NAME == "jax":
        import jax.numpy as jnp

        state = jnp.stack(
            [state[0], state[1] + jnp.asarray(part, state.dtype) * jnp.asarray(_PARTS_APART, state.dtype)]
        )
    else:
        state = (state[0], state[1] + int(part) * _PARTS_APART)
        if x.device.type != "cpu":
            return _dropout_torch_cuda(x, rate, state)
    return _DROPOUT[NAME](x, rate, state)


def _dropout_torch_cuda(x: Tensor, rate: float, state: tuple[int, int]) -> Tensor:
    import torch

    generator = torch.Generator(x.device).manual_seed((state[0] + 0x9E3779B9 * state[1]) % 2**32)
    keep = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * keep.to(x.dtype) * (1.0 / (1.0 - rate))
