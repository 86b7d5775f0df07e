"""What training did to a model, as part of its config: updates beside its kernels, and what is frozen."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.models.named_inputs import NamedInputsModel
from keras_tfm.training.freezing import restore_trainable, trainable_state
from keras_tfm.training.low_rank import LowRank, low_rank
from keras_tfm.training.parts import named_layers


def changes(model: Any) -> dict[str, Any]:
    """What `restore` needs to do to a new model of this config, JSON-able; empty for nothing.

    Of a model within the model nothing: it has a config of its own.
    """
    adapters: dict[str, Any] = {}
    nested: list[tuple] = []
    seen: set[int] = set()
    for path, layer in named_layers(model).items():
        if isinstance(layer, keras.Model):
            nested.append(path)
        if any(path[: len(outer)] == outer for outer in nested) or id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, LowRank):
            options = {name: adapter.options() for name, adapter in layer._adapters.items()}
            adapters[str(path)] = {"adapters": options, "used": layer._active}
    frozen = trainable_state(model)
    return {name: value for name, value in (("lora", adapters), ("frozen", frozen)) if value}


def restore(model: Any, state: dict[str, Any]) -> None:
    """Do to a new model what `changes` found; the weights are read later."""
    layers = {str(path): layer for path, layer in named_layers(model).items()}
    for path, found in state.get("lora", {}).items():
        layer = low_rank(layers[path])
        for name, options in found["adapters"].items():
            layer.add_adapter(name, **options)
        layer.use_adapter(found["used"])
    restore_trainable(model, state.get("frozen", {}))


NamedInputsModel.changes_of = staticmethod(changes)
NamedInputsModel.restore_changes = staticmethod(restore)
