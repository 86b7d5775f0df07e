"""Freezing parts of a model by name."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.training.low_rank import LowRank
from keras_tfm.training.parts import forget_compiled, named_layers, select


def freeze(model: keras.Model, *patterns: str) -> list[str]:
    """Keep parts of a model as they are in training. Compile the model afterwards.

    Each part's `trainable` becomes False, as Keras means it: dropout within it stays.

    Args:
        model: A `Backbone` or a task model.
        patterns: "embeddings" are all parts before the first block; "backbone" all but the head; others are attribute
            names with dots between them, such as "head", "blocks[:6]", "blocks[-1]", "feed_forward.*",
            "blocks[2:].attention.query", which are compared with the end of a layer's path.

    Returns:
        The paths of the layers that the patterns name, such as "backbone.blocks[0]".

    Raises:
        ValueError: for no pattern, and for one that matches no layer with weights; names the nearest.

    Example:
        >>> keras_tfm.training.freeze(classifier, "embeddings", "blocks[:1]")
        ['backbone.token_embedding', ..., 'backbone.blocks[0]']
    """
    return _set_trainable(model, patterns, False)


def unfreeze(model: keras.Model, *patterns: str) -> list[str]:
    """The inverse of `freeze`, of the same patterns. What holds the parts is trained with them, its other parts not.

    Returns:
        The paths of the layers that the patterns name.

    Raises:
        ValueError: as `freeze`.
    """
    return _set_trainable(model, patterns, True)


def _set_trainable(model: keras.Model, patterns: tuple[str, ...], value: bool) -> list[str]:
    if not patterns:
        raise ValueError(
            "Name the parts: freeze(model, 'embeddings', 'blocks[:6]'), or 'backbone' for all but the head."
        )
    chosen = {
        path: layer for found in [select(model, pattern) for pattern in patterns] for path, layer in found.items()
    }
    for layer in chosen.values():
        for inner in layer._flatten_layers():
            inner._trainable = not value  # on TensorFlow, what is set to the value that it has changes nothing below it
        layer.trainable = value
    if value:  # Keras finds nothing to train below a layer that is not
        for path, layer in {(): model, **named_layers(model)}.items():
            if any(inner[: len(path)] == path for inner in chosen):
                layer._trainable = True
    forget_compiled(model)
    return [str(path) for path in chosen]


def trainable_state(model: Any) -> dict[str, list[str]]:
    """What is frozen in a model, for its config: see `restore_trainable`.

    Returns:
        {"layers": paths of layers that are frozen as a whole, "variables": paths of single weights}; without the
        entries that are empty. Nothing of a model within the model, which keeps its own.
    """
    layers: list[str] = []
    variables: list[str] = []
    frozen: list[tuple] = []
    nested: list[tuple] = []
    seen: set[int] = set()
    for path, layer in named_layers(model).items():
        if any(path[: len(outer)] == outer for outer in (*frozen, *nested)) or id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            nested.append(path)
        elif not layer.trainable and layer.weights and not any(v.trainable for v in layer.weights):
            layers.append(str(path))
            frozen.append(path)
        elif not isinstance(layer, LowRank):  # which has its own rule
            variables += [v.path for v in layer._trainable_variables if not v.trainable]
    return {name: found for name, found in (("layers", layers), ("variables", variables)) if found}


def restore_trainable(model: Any, state: dict[str, list[str]]) -> None:
    """Freeze what `trainable_state` found frozen."""
    layers = {str(path): layer for path, layer in named_layers(model).items()}
    for path in state.get("layers", ()):
        layers[path].trainable = False
    variables = {v.path: v for v in model.weights}
    for path in state.get("variables", ()):
        variables[path].trainable = False
