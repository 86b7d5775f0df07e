"""The one place that looks behind Keras's public face: backend, device, implicit masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend import get_keras_mask, set_keras_mask  # no public name exists
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.utils import rng_utils

Tensor = Any

NAME = keras.backend.backend()


@contextmanager
def without_allocating() -> Iterator[None]:
    """Models built inside have weights with shapes and no values: for counting, and for checking a file against them.

    Keras puts such weights on a list, to be filled in at the next occasion; these are taken off it.
    """
    waiting = list(global_state.get_global_attribute("uninitialized_variables", [], set_to_default=True))
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute("uninitialized_variables", waiting)


_recording = False
_reshaped: dict[tuple[int, ...], Tensor] = {}


@contextmanager
def recording(reshaped: dict[tuple[int, ...], Tensor] | None = None) -> Iterator[None]:
    """Inside, what is computed is written down once and run with other values: shapes must not depend on values.

    Args:
        reshaped: What the function of this name gives inside, by the identity of a variable and its new shape.
    """
    global _recording, _reshaped
    before = _recording, _reshaped
    _recording, _reshaped = True, reshaped or {}
    try:
        yield
    finally:
        _recording, _reshaped = before


def is_recording() -> bool:
    """Whether shapes may not depend on values: within `recording`."""
    return _recording


def is_xla() -> bool:
    """Whether XLA compiles what is computed: always on JAX; on TensorFlow within a function of `jit_compile=True`."""
    if NAME != "tensorflow":
        return NAME == "jax"
    import tensorflow as tf
    from tensorflow.python.ops import control_flow_util  # as TensorFlow's own loops find it out; no public name exists

    graph = tf.compat.v1.get_default_graph()
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(graph)


def reshaped(variable: Any, shape: tuple[int, ...], dtype: str) -> Tensor:
    """A weight in another shape, all of whose sizes are known, and in this dtype."""
    found = _reshaped.get((id(variable), *shape))
    value = keras.ops.reshape(keras.ops.convert_to_tensor(variable), shape) if found is None else found
    return keras.ops.cast(value, dtype)


def read(variable: Any) -> Tensor:
    """A variable's value as it is now, as a tensor that gradients flow through; TensorFlow's are variables until read."""
    value = keras.ops.convert_to_tensor(variable)
    if NAME != "tensorflow":
        return value
    import tensorflow as tf

    return tf.convert_to_tensor(value)


def as_computed(x: Tensor) -> Tensor:
    """x as a tensor of its own in a program of XLA's, which else makes it part of what follows, or of another order."""
    if NAME == "jax":
        import jax

        return jax.lax.optimization_barrier(x)
    if NAME == "tensorflow" and is_xla():
        from tensorflow.compiler.tf2xla.ops import gen_xla_ops  # no public name exists

        return gen_xla_ops.xla_optimization_barrier([x])[0]
    return x


def implicit_mask(x: Tensor) -> Tensor | None:
    """The mask that Keras attached to `x`, as `Embedding(mask_zero=True)` does; None without one."""
    return get_keras_mask(x)


def attach_mask(x: Tensor, mask: Tensor) -> None:
    """The inverse of `implicit_mask`: what follows finds the mask on `x`."""
    set_keras_mask(x, mask)


def device(x: Tensor | None = None) -> str:
    """Kind of device that computes: "cpu", "gpu" or "tpu". `x` decides on torch, where tensors carry their device."""
    if NAME == "torch":
        where = getattr(x, "device", None) or keras.src.backend.torch.core.get_device()
        kind = getattr(where, "type", where)  # NumPy's arrays say "cpu", torch's tensors a device
        return "gpu" if str(kind).startswith("cuda") else "cpu"
    if NAME == "jax":
        import jax

        return "gpu" if jax.default_backend() in ("gpu", "cuda", "rocm") else jax.default_backend()
    import tensorflow as tf

    for kind in ("TPU", "GPU"):
        if tf.config.list_logical_devices(kind):
            return kind.lower()
    return "cpu"


def is_symbolic(x: Tensor) -> bool:
    """True for the placeholder tensors of a functional model under construction."""
    return isinstance(x, keras.KerasTensor)


def concrete(x: Tensor) -> np.ndarray | None:
    """The values of `x` as a NumPy array where reading them is free of tracing and device traffic; else None."""
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, (list, tuple, int)):
        return np.asarray(x)
    if is_symbolic(x) or device(x) != "cpu":
        return None
    if NAME == "tensorflow":
        return x.numpy() if hasattr(x, "numpy") else None
    if NAME == "jax":
        import jax

        return np.asarray(x) if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) else None
    import torch

    plain = (
        type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type == "cpu" and not torch.compiler.is_compiling()
    )
    return x.detach().numpy() if plain else None


def static_shape(x: Tensor) -> tuple[int | None, ...]:
    """The shape of `x` as far as it is known before running; None where a dimension is dynamic."""
    return tuple(None if d is None else int(d) if isinstance(d, (int, np.integer)) else d for d in x.shape)


def random_seed() -> int | None:
    """What `keras.utils.set_random_seed` was given; None without it."""
    return rng_utils.get_random_seed()


def global_seed_generator(create: bool = False) -> Any:
    """Keras's generator for whatever is given no seed; None if nothing has drawn from it yet, unless it is to be made."""
    found = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
    return seed_generator.global_seed_generator() if found is None and create else found
