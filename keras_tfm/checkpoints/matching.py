"""Which tensor of a checkpoint belongs to which variable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tfm.architectures.architecture import Architecture
from keras_tfm.architectures.stored import Tensor, Weights
from keras_tfm.checkpoints.tensors import Entry
from keras_tfm.models import Backbone
from keras_tfm.models.language_models import LanguageModel


class Pair:
    """A tensor of theirs and the variables of ours that it holds: one, or those that it fuses.

    Attributes:
        ours: Path of the (first) variable. `part` is its first step, an attribute of the backbone or task.
        theirs: Name of the tensor, the backbone's without prefix.
        variables: Of the model.
        in_head: Belongs to the task's head.
    """

    def __init__(self, ours: str, theirs: str, variables: list[Any], tensor: Tensor, in_head: bool):
        self.ours, self.theirs, self.variables, self.tensor, self.in_head = ours, theirs, variables, tensor, in_head
        self.part = ours.partition(".")[0]

    def read(self, array: np.ndarray) -> None:
        """Their tensor into our variables."""
        values = self.tensor.split(array, [tuple(variable.shape) for variable in self.variables])
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def write(self) -> np.ndarray:
        """Our variables as their tensor."""
        return self.tensor.join([keras.ops.convert_to_numpy(variable) for variable in self.variables])

    def shape(self) -> tuple[int, ...]:
        """Of their tensor: what our variables would be written as, found without their values."""
        nothing = np.zeros((), np.int8)
        return self.tensor.join([np.broadcast_to(nothing, tuple(v.shape)) for v in self.variables]).shape


def pairs(model: Any, architecture: Architecture) -> Iterator[Pair]:
    """Every variable of the model with its tensor, in the order of the architecture's tables."""
    backbone = model if isinstance(model, Backbone) else model.backbone
    yield from _walk(backbone, architecture.weights, in_head=False)
    if backbone is model or isinstance(model, LanguageModel):
        yield from _walk(backbone, architecture.output, in_head=True)
    if backbone is not model:
        yield from _walk(model, architecture.heads[type(model).__name__].weights, in_head=True)


def _walk(root: Any, weights: Weights, *, in_head: bool) -> Iterator[Pair]:
    seen: set[int] = set()  # layers that blocks share are written once
    for ours, (theirs, layout) in weights.items():
        paths = (ours,) if isinstance(ours, str) else ours
        for i in range(_blocks(root, paths[0])):
            for tensor in layout:
                full = [".".join(filter(None, (path.format(i=i), tensor.ours))) for path in paths]
                variables = [_resolve(root, path) for path in full]
                if any(variable is None for variable in variables) or id(variables[0]) in seen:
                    continue
                seen.add(id(variables[0]))
                name = ".".join(filter(None, (theirs.format(i=i), tensor.theirs)))
                yield Pair(full[0], name, variables, tensor, in_head)


def _blocks(root: Any, path: str) -> int:
    """How often a path with {i} stands for something."""
    if "{i}" not in path:
        return 1
    blocks = _resolve(root, path.partition(".{i}")[0])
    return 0 if blocks is None else len(blocks)


def _resolve(root: Any, path: str) -> Any:
    """The object at a dotted path; None where a part of it is None (an option that is off)."""
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part, None)
        if root is None:
            return None
    return root


def match(
    wanted: list[Pair], entries: Mapping[str, Entry], prefix: str, architecture: Architecture, directory: Path
) -> tuple[dict[str, str], list[str]]:
    """Tensor names by wanted name; and what is not there and may start untrained (the head, the pooler).

    Raises ValueError, naming tensors and shapes, if the checkpoint lacks or contradicts what the model needs.
    """
    found: dict[str, str] = {}
    new: list[str] = []
    missing: list[str] = []
    wrong: list[str] = []
    in_heads = 0
    for pair in wanted:
        key = pair.theirs if pair.in_head else prefix + pair.theirs
        if key not in entries:
            optional = pair.in_head or pair.part in architecture.optional
            (new if optional else missing).append(pair.ours.replace("._", ".") if optional else key)
            continue
        if entries[key].shape != pair.shape():
            wrong.append(f"{key}: {entries[key].shape}, where config.json implies {pair.shape()}")
            in_heads += pair.in_head
        else:
            found[pair.theirs] = key
    if missing:
        raise ValueError(
            f"{directory} lacks tensors that a {architecture.model_type!r} model of this config needs: {some(missing)}."
        )
    if wrong and in_heads == len(wrong):
        raise ValueError(
            f"{directory} has a head of another size: {some(wrong)}. Give its num_classes, "
            "or load the backbone and put a new head on it."
        )
    if wrong:
        raise ValueError(f"{directory} disagrees with its own config.json: {some(wrong)}.")
    return found, new


def some(names: list[str], most: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
