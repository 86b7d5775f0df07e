"""Pure functions of a model's weights, compiled by the backend: XLA on TensorFlow and JAX, one graph of ops on torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.generation.recorded import Kept, Recorded
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
        inductor: On torch, have what `repeat` repeats compiled, rather than run operation by operation.

    Calling it takes the same arguments: nested dicts and lists of tensors and NumPy arrays, always of the same shapes.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        function: Callable[..., Tree],
        traced: Callable[[], None],
        inductor: bool = False,
    ):
        self.function, self.traced, self.inductor = function, traced, inductor
        self._variables = list(variables)
        self._run: Callable[..., Tree] | None = None
        self._record: tuple[Recorded, list[Tree]] | None = None

    def __call__(self, *arguments: Tree) -> Tree:
        """The function's result with the weights as they are now."""
        arguments = to_tensors(arguments)
        if self._run is None:
            self._run = {"jax": self._jax, "tensorflow": self._tensorflow, "torch": self._torch}[NAME](arguments)
        return self._run(*arguments)

    def _with_weights(self, values: list[Any], arguments: tuple[Tree, ...], matrices: Any = None) -> Tree:
        self.traced()
        mapping = list(zip(self._variables, values, strict=True))
        with recording(matrices), keras.StatelessScope(state_mapping=mapping):
            return self.function(*arguments)

    def _jax(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        import jax

        compiled = jax.jit(self._with_weights)
        return lambda *arguments: compiled([variable.value for variable in self._variables], arguments)

    def _tensorflow(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        import tensorflow as tf

        def traced(*arguments):
            # Read once: XLA carries a variable that is read within a loop through all of its rounds. And reshaped once:
            # it takes a product of one row with a matrix that is reshaped on the spot for an element-wise loop.
            values = [tf.convert_to_tensor(variable.value) for variable in self._variables]
            matrices = {}
            for variable, value in zip(self._variables, values, strict=True):
                if len(value.shape) == 3:
                    for rows in (value.shape[0], value.shape[0] * value.shape[1]):
                        matrices[id(variable), rows] = tf.reshape(value, (rows, -1))
            return self._with_weights(values, arguments, matrices)

        # A partial, for TensorFlow counts tracings by code object, and takes many programs for one that is traced anew.
        return tf.function(functools.partial(traced), jit_compile=True, autograph=False)

    def _torch(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        def call(*arguments: Tree) -> Tree:
            run, structure = self._recorded(arguments)
            return keras.tree.pack_sequence_as(structure, run(keras.tree.flatten(arguments[0])))

        return call

    def repeat(self, going: Callable[[Tree], bool], kept: Kept, state: Tree, *settings: Tree) -> Tree:
        """On torch: state = function(state, *settings), as long as `going` says so of the state's single tensors.

        State keeps its structure; what is made of weights is left in `kept` and taken from there.
        """
        import torch

        state, *others = to_tensors((state, *settings))
        run, _ = self._recorded((state, *others), kept)
        flat = keras.tree.flatten(state)
        places = keras.tree.pack_sequence_as(state, list(range(len(flat))))
        seen = {name: place for name, place in places.items() if isinstance(place, int)}
        with torch.no_grad():
            while going({name: flat[place] for name, place in seen.items()}):
                flat = run(flat)
        return keras.tree.pack_sequence_as(state, flat)

    def _recorded(self, arguments: tuple[Tree, ...], kept: Kept | None = None) -> tuple[Callable[[list], list], Tree]:
        """The recorded function with the weights of now, from the flat first argument to the flat result; its structure.

        With `kept` it is one that is repeated.
        """
        weights = [variable.value.detach() for variable in self._variables]
        flat, settings = keras.tree.flatten(arguments[0]), keras.tree.flatten(arguments[1:])
        if self._record is None:
            structure: list[Tree] = []

            def run(weights: list, flat: list, settings: list) -> list:
                given = keras.tree.pack_sequence_as(arguments, [*flat, *settings])
                result = self._with_weights(weights, given)
                structure[:] = [keras.tree.map_structure(lambda _: 0, result)]
                return keras.tree.flatten(result)

            names = [id(variable) for variable in self._variables]
            with kv_cache.in_place():
                self._record = (
                    Recorded(run, names, weights, flat, settings, kept is not None, self.inductor),
                    structure,
                )
        return self._record[0].bound(weights, settings, kept or Kept()), self._record[1][0]
