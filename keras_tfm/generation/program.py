"""Pure functions of a model's weights, compiled by the backend: XLA on TensorFlow and JAX, one graph of ops on torch."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.generation.recorded import Kept, Recorded
from keras_tfm.ops import few_rows, kv_cache
from keras_tfm.ops.backend import NAME, recording

Tree = Any


HELD = 1 << 20  # bytes that take longer to copy, for each call of a loop, than a variable to make


def to_tensors(tree: Tree) -> Tree:
    """Its NumPy arrays as tensors."""
    return keras.tree.map_structure(
        lambda x: ops.convert_to_tensor(x) if isinstance(x, (np.ndarray, np.generic)) else x, tree
    )


@contextmanager
def plainly() -> Iterator[None]:
    """On torch: without gradients, and in the dtypes of Keras's policy, whatever torch.autocast is around it.

    What is recorded in one of autocast's modes cannot be run in another.
    """
    import torch

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def eagerly(function: Callable[..., Tree], *arguments: Tree) -> Tree:
    """A program's function, run as it is, on torch."""
    with plainly(), kv_cache.in_place():
        return function(*to_tensors(arguments))


class Program:
    """A function of a model, compiled when it is first called; it always sees the model's present weights.

    Args:
        variables: The function's weights.
        function: (*trees of tensors) -> tree of tensors; reads variables, changes none.
        traced: Called whenever the function is traced anew.
        inductor: On torch, have what `repeat` repeats compiled, rather than run operation by operation.
        consumes: The first argument's memory may be taken for the result, which has the same structure and shapes: the
            caller has no use for it any more. On TensorFlow large tensors of the result are variables, which the next call
            writes over; what else is given them reads them.

    Calling it takes the same arguments: nested dicts and lists of tensors and NumPy arrays, always of the same shapes.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        function: Callable[..., Tree],
        traced: Callable[[], None],
        inductor: bool = False,
        consumes: bool = False,
    ):
        self.function, self.traced, self.inductor, self.consumes = function, traced, inductor, consumes
        self._variables = list(variables)
        self._run: Callable[..., Tree] | None = None
        self._record: tuple[Recorded, Tree] | None = None

    def __call__(self, *arguments: Tree) -> Tree:
        """The function's result with the weights as they are now."""
        arguments = to_tensors(arguments)
        if self._run is None:
            self._run = {"jax": self._jax, "tensorflow": self._tensorflow, "torch": self._torch}[NAME](arguments)
        return self._run(*arguments)

    def _with_weights(self, values: list[Any], arguments: tuple[Tree, ...], reshaped: Any = None) -> Tree:
        self.traced()
        mapping = list(zip(self._variables, values, strict=True))
        with recording(reshaped), keras.StatelessScope(state_mapping=mapping):
            return self.function(*arguments)

    def _jax(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        import jax

        def apart(values, first, others):
            return self._with_weights(values, (first, *others))

        compiled = jax.jit(apart, donate_argnums=(1,) if self.consumes else ())
        return lambda first, *others: compiled([variable.value for variable in self._variables], first, others)

    def _tensorflow(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        import tensorflow as tf

        structure = keras.tree.map_structure(lambda _: 0, arguments[0])  # the program outlives the tensors
        none = [False] * len(keras.tree.flatten(structure))
        large = [self.consumes and _is_large(x) for x in keras.tree.flatten(arguments[0])]

        def traced(variables: list[Any], first: list[Any], *others: Tree) -> Tree:
            # Read once: XLA carries a variable that is read within a loop through all of its rounds. And reshaped once:
            # it takes a product of one row with a matrix that is reshaped on the spot for an element-wise loop.
            values = [tf.convert_to_tensor(variable.value) for variable in self._variables]
            reshaped = {
                (id(variable), *shape): tf.reshape(value, shape)
                for variable, value in zip(self._variables, values, strict=True)
                for shape in few_rows.shapes(tuple(value.shape))
            }
            held = large if variables else none
            given = _merged(held, map(tf.convert_to_tensor, variables), first)
            given = keras.tree.pack_sequence_as(structure, given)
            result = self._with_weights(values, (given, *others), reshaped)
            if not variables:
                return result
            found, left = _apart(held, keras.tree.flatten(result))
            for variable, value in zip(variables, found, strict=True):
                variable.assign(value)
            return left

        # A partial, for TensorFlow counts tracings by code object, and takes many programs for one that is traced anew.
        compiled = tf.function(functools.partial(traced), jit_compile=True, autograph=False)

        def call(first: Tree, *others: Tree) -> Tree:
            held = none if tf.distribute.has_strategy() else large  # whose variables would be mirrored
            variables, left = _apart(held, keras.tree.flatten(first))
            variables = [x if isinstance(x, tf.Variable) else tf.Variable(x, trainable=False) for x in variables]
            found = compiled(variables, [tf.convert_to_tensor(x) for x in left], *others)
            return keras.tree.pack_sequence_as(first, _merged(held, variables, found)) if variables else found

        return call

    def _torch(self, arguments: tuple[Tree, ...]) -> Callable[..., Tree]:
        def call(*arguments: Tree) -> Tree:
            state, settings = keras.tree.flatten(arguments[0]), keras.tree.flatten(arguments[1:])
            with plainly():
                record, structure = self._recorded(arguments)
                return keras.tree.pack_sequence_as(structure, record.bound(self._weights(), settings, Kept())(state))

        return call

    def repeat(self, kept: Kept, state: Tree, *settings: Tree) -> Tree:
        """On torch: state after state, as long as the function says, which gives whether to go on and the next state.

        Whether to go on is a boolean without dimensions, and state keeps its structure. What is made of weights is left in
        `kept` and taken from there.
        """
        arguments = to_tensors((state, *settings))
        flat, others = keras.tree.flatten(arguments[0]), keras.tree.flatten(arguments[1:])
        with plainly():
            record, _ = self._recorded(arguments, loops=True)
            return keras.tree.pack_sequence_as(state, record.loop(self._weights(), others, kept, flat))

    def _weights(self) -> list[Any]:
        return [variable.value.detach() for variable in self._variables]

    def _recorded(self, arguments: tuple[Tree, ...], loops: bool = False) -> tuple[Recorded, Tree]:
        """The recorded function, from the flat first argument to the flat result, and its result's structure."""
        if self._record is None:
            structure: list[Tree] = []

            def run(weights: list, flat: list, settings: list) -> list:
                given = keras.tree.pack_sequence_as(arguments, [*flat, *settings])
                result = self._with_weights(weights, given)
                structure[:] = [keras.tree.map_structure(lambda _: 0, result)]
                return keras.tree.flatten(result)

            names = [id(variable) for variable in self._variables]
            flat, settings = keras.tree.flatten(arguments[0]), keras.tree.flatten(arguments[1:])
            with kv_cache.in_place():
                record = Recorded(
                    run,
                    names,
                    self._weights(),
                    flat,
                    settings,
                    repeated=loops,
                    loops=loops,
                    compiled=self.inductor,
                )
            self._record = record, structure[0]
        return self._record


def _is_large(x: Any) -> bool:
    return math.prod(x.shape) * np.dtype(keras.backend.standardize_dtype(x.dtype)).itemsize >= HELD


def _apart(which: list[bool], flat: list[Any]) -> tuple[list[Any], list[Any]]:
    """Those, and the others."""
    return list(itertools.compress(flat, which)), list(itertools.compress(flat, map(operator.not_, which)))


def _merged(which: list[bool], those: Iterable[Any], others: Iterable[Any]) -> list[Any]:
    """The inverse of `_apart`."""
    those, others = iter(those), iter(others)
    return [next(those if each else others) for each in which]
