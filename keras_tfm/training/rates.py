"""A learning rate for every layer, under any of Keras's training loops."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_tfm.layers.base import register
from keras_tfm.training.parts import EMBEDDINGS, check_model

# Optimizers whose step is the rate times what they make of the gradient, each variable for itself.
OPTIMIZERS = ("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "Lamb", "Lion", "RMSprop", "SGD")


class LayerRates:
    """What is added to an optimizer of Keras's: its rate and weight decay, times a factor for each group of layers.

    A factor of 0 freezes a group: its gradients are taken for 0, so that neither norms for clipping nor moments see them.

    Args:
        rate_groups: Pairs of a factor and the beginnings of the variable paths that it is for, the model's lowest layers
            first. A variable is in the group with the longest beginning that fits, in the last where none does.
        arguments: Those of the optimizer.
    """

    # Of the optimizer:
    add_variable: Callable[..., Any]
    built: bool
    name: str
    weight_decay: float | None
    _get_variable_index: Callable[[Any], int]

    def __init__(self, *arguments: Any, rate_groups: list, **options: Any):
        super().__init__(*arguments, **options)
        self._rate_groups = tuple((float(factor), tuple(starts)) for factor, starts in rate_groups)
        self._factor: Any = None

    def build(self, variables: list) -> None:
        super().build(variables)
        self._group_of = tuple(self._group(variable.path) for variable in variables)
        factors = [factor for factor, _ in self._rate_groups]
        self._rate_factors = self.add_variable(
            (len(factors),),
            lambda shape, dtype=None: ops.convert_to_tensor(np.array(factors, "float32"), dtype=dtype),
            dtype="float32",
            name="rate_factors",
        )

    @property
    def rate_groups(self) -> tuple:
        """As the constructor was given them."""
        return self._rate_groups

    def set_rate_factors(self, factors: list[float]) -> None:
        """Other factors than the constructor's, for each of its groups, from the next update on."""
        if len(factors) != len(self._rate_groups):
            raise ValueError(f"factors must be one for each of {len(self._rate_groups)} groups; got {len(factors)}.")
        if not self.built:
            raise ValueError(f"{self.name} must be built before its factors can be set.")
        self._rate_factors.assign(np.array(factors, "float32"))

    def _group(self, path: str) -> int:
        fitting = [
            (len(start), group)
            for group, (_, starts) in enumerate(self._rate_groups)
            for start in starts
            if path == start or path.startswith(f"{start}/")
        ]
        return max(fitting)[1] if fitting else len(self._rate_groups) - 1

    def _groups(self, variables: Any) -> list[tuple[Any, list[int]]]:
        """The factor of each group, () float32, and which of these variables are in it."""
        members: dict[int, list[int]] = {}
        for place, variable in enumerate(variables):
            members.setdefault(self._group_of[self._get_variable_index(variable)], []).append(place)
        factors = ops.convert_to_tensor(self._rate_factors)
        return [(factors[group], places) for group, places in sorted(members.items())]

    def _get_current_learning_rate(self) -> Any:
        rate = super()._get_current_learning_rate()
        return rate if self._factor is None else rate * ops.cast(self._factor, "float32")

    def _backend_apply_gradients(self, grads: Any, trainable_variables: Any) -> None:
        grads = list(grads)
        for factor, places in self._groups(trainable_variables):
            for place in places:
                grads[place] = _unless_zero(factor, grads[place])
        super()._backend_apply_gradients(grads, trainable_variables)

    def _apply_weight_decay(self, variables: Any) -> None:
        if self.weight_decay is None:
            return
        for factor, places in self._groups(variables):
            self._factor = factor
            try:
                super()._apply_weight_decay([variables[place] for place in places])
            finally:
                self._factor = None

    def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
        for factor, places in self._groups(trainable_variables):
            rate = ops.cast(learning_rate, "float32") * factor
            super()._backend_update_step(
                [grads[place] for place in places], [trainable_variables[place] for place in places], rate
            )

    def get_config(self) -> dict[str, Any]:
        groups = [[factor, list(starts)] for factor, starts in self._rate_groups]
        return {**super().get_config(), "rate_groups": groups}


def _unless_zero(factor: Any, gradient: Any) -> Any:
    """The gradient, zeros where the factor is 0, whatever the gradient is."""
    if hasattr(gradient, "dense_shape"):  # TensorFlow's, of an embedding
        return type(gradient)(_unless_zero(factor, gradient.values), gradient.indices, gradient.dense_shape)
    return ops.where(factor > 0, gradient, ops.zeros_like(gradient))


def _with_rates(name: str) -> Any:
    """The optimizer of this name with rates by layer."""
    base = getattr(keras.optimizers, name)
    base = type(base.__new__(base))  # the backend's own, where it has one
    return register(type(f"LayerRates{name}", (LayerRates, base), {"__doc__": LayerRates.__doc__}))


_CLASSES = {name: _with_rates(name) for name in OPTIMIZERS}


def layer_rates(
    model: keras.Model, decay: float, optimizer: str | keras.optimizers.Optimizer = "adamw"
) -> keras.optimizers.Optimizer:
    """An optimizer whose rate falls with each layer below the head (Howard and Ruder 2018, 3.2; Clark et al. 2020).

    The head, the pooler and the final norm have the optimizer's rate; the last block `decay` times that, the block below
    decay ** 2, and so on down to the embeddings. The blocks of an encoder-decoder's encoder are below its decoder's. It is
    the step that is scaled, weight decay included: Adam divides a scaled gradient by its own size again.

    Args:
        model: A `Backbone` or a task model.
        decay: Above 0, up to 1. Howard and Ruder take 1 / 2.6, Clark et al. (ELECTRA) 0.8 and 0.9.
        optimizer: A name, or one of Keras's that has not been used. Any of `OPTIMIZERS`; its schedule stays.

    Returns:
        A new optimizer for `compile`, with the other's settings. It is kept in `.keras` files.

    Raises:
        ValueError: for another optimizer, a used one, a decay out of range, and for blocks that share their weights.

    Example:
        >>> classifier.compile(keras_tfm.training.layer_rates(classifier, 0.9, keras.optimizers.AdamW(5e-5)))
    """
    check_model(model)
    if not 0.0 < decay <= 1.0:
        raise ValueError(f"decay must be above 0 and up to 1; got {decay!r}.")
    optimizer = keras.optimizers.get(optimizer)
    name = type(optimizer).__name__
    if name not in _CLASSES or not isinstance(optimizer, getattr(keras.optimizers, name)):
        raise ValueError(f"optimizer must be one of Keras's {', '.join(OPTIMIZERS)}; got {name}.")
    if optimizer.built:
        raise ValueError(f"optimizer must be one that has not been used; {optimizer.name!r} has.")
    groups = depth_groups(model)
    below = len(groups) - 1
    rates = [[math.pow(decay, below - depth), starts] for depth, starts in enumerate(groups)]
    scaled = _CLASSES[name].from_config({**optimizer.get_config(), "rate_groups": rates})
    for setting in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):  # not in the config
        if hasattr(optimizer, setting):
            setattr(scaled, setting, getattr(optimizer, setting))
    return scaled


def depth_groups(model: keras.Model) -> list[list[str]]:
    """Beginnings of variable paths: of the embeddings, of each block from the input on, of the logits' own table.

    Raises:
        ValueError: for blocks that share their weights, which have no depth of their own.
    """
    backbone = check_model(model)
    embeddings = [getattr(backbone, name, None) for name in EMBEDDINGS]
    groups = [[layer.path for layer in embeddings if layer is not None]]
    for blocks in (backbone.blocks, getattr(backbone, "decoder_blocks", None) or []):
        if len({id(block) for block in blocks}) < len(blocks):
            raise ValueError(
                f"The blocks of {backbone.name!r} share their weights, so that none has a rate of its own."
            )
        groups += [[block.path] for block in blocks]
    tokens = backbone.token_embedding
    own = (
        [] if tokens is None else [v.path for v in tokens.weights if v.path.endswith(("/reverse_embeddings", "/bias"))]
    )
    return [*groups, own]
