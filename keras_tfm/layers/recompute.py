"""A layer whose intermediate values are computed again when gradients are, rather than kept until then."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers.mixture_of_experts import MixtureOfExperts
from keras_tfm.ops.backend import attach_mask, implicit_mask, read
from keras_tfm.ops.places import at_places


class Counting(keras.StatelessScope):
    """Holds what is assigned within it, and how often to each variable."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.assigned: dict[int, int] = {}

    def add_update(self, update: tuple[Any, Any]) -> None:
        self.assigned[id(update[0])] = self.assigned.get(id(update[0]), 0) + 1
        super().add_update(update)


def recomputed(layer: keras.layers.Layer, x: Any, **arguments: Any) -> Any:
    """`layer(x, **arguments)`, of which only inputs and outputs are kept for the gradients (Chen et al. 2016).

    Random draws are the same both times, and the same as without recomputation.

    Args:
        layer: Built; its weights change in training steps only, but for the states of its random generators.
        x: (batch, length, width), float.
        arguments: Further call arguments: tensors, or plain values.

    Returns:
        One tensor.
    """
    mask = implicit_mask(x)
    arguments = with_masks(x, arguments)
    tensors = {name: value for name, value in arguments.items() if keras.ops.is_tensor(value)}
    floats = [name for name, value in tensors.items() if "float" in keras.backend.standardize_dtype(value.dtype)]
    trained = [variable for variable in layer.variables if "float" in str(variable.dtype)]
    others = [variable for variable in layer.variables if "float" not in str(variable.dtype)]
    # Values as they are out here: a scope within a scope of Keras's sees the variables alone that it is given.
    held = [(variable, read(variable)) for variable in others]
    draws: dict[int, int] = {}

    def run(x: Any, *values: Any) -> Any:
        given = dict(zip(floats, values, strict=False))
        mapping = [*zip(trained, values[len(floats) :], strict=True), *held]
        with Counting(state_mapping=mapping) as scope:
            y = layer(x, **{**arguments, **given})
        draws.update(scope.assigned)
        return y

    weights = [read(variable) for variable in trained]
    y = keras.remat(run)(x, *(arguments[name] for name in floats), *weights)
    for variable, value in held:
        advance(variable, value, draws.get(id(variable), 0))
    if mask is not None:
        places = arguments.get("places")
        attach_mask(y, mask if places is None else at_places(mask, places))
    return y


def with_masks(x: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """A block's arguments, with the masks that Keras hung on tensors; they are lost where a function is traced again."""
    found = {"padding_mask": implicit_mask(x), "context_padding_mask": implicit_mask(arguments.get("context"))}
    missing = {name: mask for name, mask in found.items() if mask is not None and arguments.get(name) is None}
    return {**arguments, **missing}


def advance(variable: Any, value: Any, draws: int) -> None:
    """Let the state of a random generator, which counts, be that behind so many draws from `value`."""
    if draws:
        variable.assign(value + keras.ops.cast([0, draws], variable.dtype))


def check_recomputable(layer: keras.layers.Layer) -> None:
    """Raise ValueError for a layer with a loss of its own, which would come out of the second computation."""
    for part in layer._flatten_layers():
        if isinstance(part, MixtureOfExperts) and part.balance_loss:
            raise ValueError(
                f"{part.path} adds a loss (balance_loss={part.balance_loss}), which recomputation would lose; build it "
                "with balance_loss=0, or keep its values."
            )
