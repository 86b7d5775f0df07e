"""What processes that train one model must have the same, compared before they begin."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_tfm.data.tokenizer import BaseTokenizer
from keras_tfm.ops import processes


def agree(facts: dict[str, Any]) -> None:
    """Raise ValueError, in all processes, unless all of them give the same facts, which are strings or JSON-able."""
    mine = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in facts.items()}
    first, *others = processes.gathered(mine)
    for place, theirs in enumerate(others, 1):
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                raise ValueError(
                    f"Processes differ in {name}: process 0 has {first.get(name)}, process {place} {theirs.get(name)}. All "
                    "of them must build the same model and call fit, evaluate and predict with the same rows in the same "
                    "order. (A tokenizer that is trained, by wordpiece or unigram, comes out differently each time: train "
                    "one, save it, and load it in all processes.)"
                )


def agree_on_data(data: Sequence[Any]) -> None:
    """Raise ValueError, in all processes, unless x and validation_data are the same; seeds are taken from the first."""
    agree(_described(data))
    for one in data:
        if hasattr(one, "described"):
            one.set_state(processes.gathered(one.get_state())[0])
            agree({"a batch": one.digest()})  # of rows in the same order, then


def described(model: Any) -> dict[str, str | None]:
    """What a model is."""
    return {"model": _structure(model), "tokenizer": _tokenizer(model)}


def described_training(model: Any) -> dict[str, Any]:
    """How a compiled model is trained."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    plain = (bool, int, float)
    config = {name: value for name, value in optimizer.get_config().items() if isinstance(value, plain)}
    return {"optimizer": type(optimizer).__name__, **config}


def described_arrays(x: Any) -> dict[str, str]:
    """Of what `predict` is given, where it is arrays."""
    arrays = keras.tree.flatten(x)
    if not all(hasattr(array, "shape") for array in arrays):
        return {}
    return {"the arrays": f"{[tuple(array.shape) for array in arrays]}, {digest(arrays)}"}


def _structure(model: Any) -> str:
    """Names differ where other models were built before; shapes do not."""
    shapes = [(list(v.shape), str(v.dtype), bool(v.trainable)) for v in model.variables]
    of_shapes = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:12]
    return f"{type(model).__name__} of {len(shapes)} variables, {of_shapes}"


def _tokenizer(model: Any) -> str | None:
    tokenizer = getattr(getattr(model, "student", model), "tokenizer", None)
    return f"{type(tokenizer).__name__} {tokenizer.digest()}" if isinstance(tokenizer, BaseTokenizer) else None


def _described(data: Sequence[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for one, name in zip(data, ("x", "validation_data"), strict=False):
        if hasattr(one, "described"):
            facts[f"the rows of {name}"] = one.described()
        else:
            facts[f"the number of batches of {name}"] = _length(one)
    return facts


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:  # a generator, or `tf.data` of unknown length
        return None


def digest(arrays: Sequence[Any]) -> str:
    """Of arrays' values, as 12 hexadecimal digits."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(keras.ops.convert_to_numpy(array)).tobytes())
    return found.hexdigest()[:12]
