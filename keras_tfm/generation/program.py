"""Pure functions of a model's weights, compiled by the backend: XLA on TensorFlow and JAX, one graph of ops on torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.ops import kv_cache
from keras_tfm.ops.backend import NAME, recording

Tree = Any


def to_tensors(tree: Tree) -> Tree:
    """Its NumPy arrays as tensors."""
    return keras.tree.map_structure(
        lambda x: ops.convert_to_tensor(x) if isinstance(x, (np.ndarray, np.generic)) else x, tree
    )


def eagerly(function: Callable[..., Tree], *arguments: Tree) -> Tree:
    """A program's function, run as it is, on torch."""
    import torch

    with torch.no_grad(), kv_cache.in_place():
        return function(*to_tensors(arguments))


class Program:
    """A function of a model, compiled when it is first called; it always sees the model's present weights.

    Args:
        variables: The function's weights.
        function: (*trees of tensors) -> tree of tensors; reads variables, changes none.
        traced: Called whenever the function is traced anew.

    Calling it takes the same arguments: nested dicts and lists of tensors and NumPy arrays, always of the same shapes.
    """

    def __init__(self, variables: Sequence[Any], function: Callable[..., Tree], traced: Callable[[], None]):
        self.function, self.traced = function, traced
        self._variables = list(variables)
        self._run: Callable[..., Tree] | None = None

    def __call__(self, *arguments: Tree) -> Tree:
        """The function's result with the weights as they are now."""
        arguments = to_tensors(arguments)
        if self._run is None:
            self._run = {"jax": self._jax, "tensorflow": self._tensorflow, "torch": self._torch}[NAME](arguments)
        return self._run(*arguments)

    def _with_weights(self, values: list[Any], arguments: tuple[Tree, ...]) -> Tree:
        self.traced()
        mapping = list(zip(self._variables, values, strict=True))
        with recording(), keras.StatelessScope(state_mapping=mapping):
            return self.function(*arguments)

    def _jax(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        import jax

        compiled = jax.jit(self._with_weights)
        return lambda *arguments: compiled([variable.value for variable in self._variables], arguments)

    def _tensorflow(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        import tensorflow as tf

        def traced(*arguments):
            # Read once: XLA carries a variable that is read within a loop through all of its rounds.
            values = [tf.convert_to_tensor(variable.value) for variable in self._variables]
            return self._with_weights(values, arguments)

        # A partial, for TensorFlow counts tracings by code object, and takes many programs for one that is traced anew.
        return tf.function(functools.partial(traced), jit_compile=True, autograph=False)

    def _torch(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        """The operations that one run performs, without the layers around them: Keras costs more than the arithmetic."""
        import torch
        from torch.fx.experimental.proxy_tensor import make_fx

        flat = keras.tree.flatten(arguments)
        structure: list[Tree] = []

        def run(values: list[torch.Tensor], flat: list[torch.Tensor]) -> list[torch.Tensor]:
            result = self._with_weights(values, keras.tree.pack_sequence_as(arguments, flat))
            structure[:] = [keras.tree.map_structure(lambda _: 0, result)]
            return keras.tree.flatten(result)

        def weights() -> list[torch.Tensor]:
            return [variable.value.detach() for variable in self._variables]

        with torch.no_grad(), kv_cache.in_place():
            graph = make_fx(run)(weights(), flat)
        graph.graph.eliminate_dead_code()
        graph.recompile()

        def call(*arguments: Tree) -> Tree:
            with torch.no_grad():
                flat = graph(weights(), keras.tree.flatten(arguments))
            return keras.tree.pack_sequence_as(structure[0], flat)

        return call
