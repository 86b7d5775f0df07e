"""What tests need on every backend alike: values out, gradients, weights and seeds set by hand."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

BACKEND = keras.backend.backend()

FLOATS = {"float32": 1e-5, "bfloat16": 3e-2, "float16": 4e-3}  # dtype to a tolerance for values of size 1


def numpy(x: Any) -> Any:
    """Tensors, alone or nested, as NumPy arrays; bfloat16 as float32."""

    def convert(tensor):
        if "bfloat16" in str(getattr(tensor, "dtype", "")):
            tensor = ops.cast(tensor, "float32")
        return ops.convert_to_numpy(tensor)

    return keras.tree.map_structure(convert, x)


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-5) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(actual[name], value, tolerance)
    elif isinstance(expected, (list, tuple)) and any(hasattr(part, "shape") for part in expected):
        for ours, theirs in zip(actual, expected, strict=True):
            assert_close(ours, theirs, tolerance)
    else:
        np.testing.assert_allclose(numpy(actual), numpy(expected), rtol=tolerance, atol=tolerance)


def gradients(function: Callable, *arrays: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The value of `function` at `arrays`, and the gradients of its dot product with a fixed tensor."""

    def scalar(*tensors):
        output = function(*tensors)
        weights = np.cos(np.arange(np.prod([int(d) for d in output.shape]))).reshape(output.shape)
        return ops.sum(ops.cast(output, "float32") * ops.convert_to_tensor(weights, dtype="float32")), output

    if BACKEND == "tensorflow":
        import tensorflow as tf

        tensors = [tf.convert_to_tensor(a) for a in arrays]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            total, output = scalar(*tensors)
        result = tape.gradient(total, tensors, unconnected_gradients="zero")
    elif BACKEND == "jax":
        import jax

        tensors = [ops.convert_to_tensor(a) for a in arrays]
        (_, output), result = jax.value_and_grad(scalar, argnums=tuple(range(len(tensors))), has_aux=True)(*tensors)
    else:
        import torch

        tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
        total, output = scalar(*tensors)
        result = torch.autograd.grad(total, tensors, allow_unused=True)
        result = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, result, strict=True)]
        output = output.detach()
    return numpy(output), [numpy(g) for g in result]


def weight_gradients(layer: keras.Layer, loss: Callable[[], Any]) -> dict[str, np.ndarray]:
    """Gradients of the scalar `loss()`, which calls the built `layer`, with respect to its trainable weights, by path."""
    variables = layer.trainable_variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = loss()
        result = tape.gradient(total, [v.value for v in variables], unconnected_gradients="zero")
    elif BACKEND == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return loss()

        result = jax.grad(stateless)([v.value for v in variables])
    else:
        import torch

        result = torch.autograd.grad(loss(), [v.value for v in variables], allow_unused=True)
    return {
        v.path: np.zeros(v.shape) if g is None else numpy(ops.convert_to_tensor(g))
        for v, g in zip(variables, result, strict=True)
    }


def fill_weights(layer: keras.Layer, size: float = 0.5) -> keras.Layer:
    """Give every weight a value that depends only on its place in the layer and its shape; gammas stay near one."""
    for variable in layer.weights:
        path = variable.path.split("/", 1)[-1]
        values = np.random.default_rng(zlib.crc32(path.encode())).normal(size=variable.shape) * size
        variable.assign(1.0 + 0.2 * values if path.endswith(("gamma", "scale")) else values)
    return layer


def reset_seeds(layer: keras.Layer, seed: int = 7) -> None:
    """Set all random states within a layer, so that its next training call draws as after any other reset."""
    for variable in layer.variables:
        if "seed_generator_state" in variable.path:
            variable.assign(np.asarray([seed, 0], "uint32"))
    if BACKEND == "torch":  # where Keras draws from torch's own state unless a seed was given
        import torch

        torch.manual_seed(seed)


def ids(batch: int, length: int, vocabulary: int = 11) -> np.ndarray:
    return np.arange(1, batch * length + 1).reshape(batch, length).astype("int32") % (vocabulary - 1) + 1


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@contextmanager
def policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def some_steps(model: Any, x: Any, y: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """Losses by epoch and all variables behind three epochs of SGD, from weights and seeds set by hand."""
    reset_seeds(fill_weights(model, 0.1))
    keras.utils.set_random_seed(1)
    model.compile(keras.optimizers.SGD(0.1), metrics=None)
    history = model.fit(x, y, batch_size=2, epochs=3, shuffle=False, verbose=0).history["loss"]
    return np.array(history), [numpy(variable) for variable in model.variables]


QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # XLA compiles, and not well


def simulated(devices: int) -> dict[str, str]:
    """The environment of a process of JAX that has so many devices, all of one CPU."""
    flags = f"--xla_force_host_platform_device_count={devices} {QUICKLY}"
    return {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
