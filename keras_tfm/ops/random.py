"""Dropout, the random part of every layer here, drawn as cheaply as each backend allows."""

from __future__ import annotations

import keras
from keras import ops

from keras_tfm.ops.backend import NAME, Tensor

# A lane is a 16-bit slice of a random word: two Bernoulli draws for the price of one, and a rate that is
# exact to 1/65536. The scale uses the rounded rate, so the expectation is exact.
_LANES = 1 << 16


def _lanes_tensorflow(shape: Tensor, seed) -> Tensor:
    import tensorflow as tf

    state = tf.cast(keras.src.random.seed_generator.draw_seed(seed), tf.int32)
    count = tf.reduce_prod(shape)
    words = tf.random.stateless_uniform(((count + 1) // 2,), seed=state, minval=None, maxval=None, dtype=tf.uint32)
    lanes = tf.reshape(tf.bitcast(words, tf.uint16), (-1,))  # (words, 2) -> (2 * words,)
    return tf.reshape(lanes[:count], shape)


def _lanes_jax(shape: tuple[int, ...], seed) -> Tensor:
    import jax

    return jax.random.bits(keras.src.backend.jax.random.jax_draw_seed(seed), shape, "uint16")


def dropout(x: Tensor, rate: float, seed: keras.random.SeedGenerator) -> Tensor:
    """Zero each element with probability `rate` and scale the rest by 1 / (1 - rate) (Srivastava et al. 2014).

    Args:
        x: A float tensor of any shape.
        rate: Probability in [0, 1], rounded to 1/65536 on TensorFlow and JAX. 0 gives `x` itself.
        seed: A `keras.random.SeedGenerator`, advanced by one draw.
    """
    if rate <= 0.0:
        return x
    if rate >= 1.0:
        return ops.zeros_like(x)
    if NAME == "torch":
        return keras.random.dropout(x, rate, seed=seed)
    threshold = round(rate * _LANES)
    keep_scale = 1.0 / (1.0 - threshold / _LANES)
    if NAME == "tensorflow":
        import tensorflow as tf

        keep = _lanes_tensorflow(tf.shape(x), seed) >= tf.constant(threshold, tf.uint16)
        return x * tf.cast(keep, x.dtype) * tf.cast(keep_scale, x.dtype)
    import jax.numpy as jnp

    keep = _lanes_jax(x.shape, seed) >= threshold
    return jnp.where(keep, x * jnp.asarray(keep_scale, x.dtype), jnp.zeros((), x.dtype))
