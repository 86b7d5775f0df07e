"""Which tensor of a checkpoint belongs to which variable."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np

from keras_tfm.architectures.architecture import Architecture
from keras_tfm.architectures.stored import Tensor, Weights
from keras_tfm.checkpoints.tensors import Entry
from keras_tfm.models import Backbone
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.ops import processes


class Pair:
    """A tensor of theirs and the variables of ours that it holds: one, or those that it fuses.

    Attributes:
        ours: Path of the (first) variable. `part` is its first step, an attribute of the backbone or task.
        theirs: Name of the tensor, the backbone's without prefix.
        variables: Of the model. `owners` are the layers that they belong to.
        in_head: Belongs to the task's head.
    """

    def __init__(self, ours: str, theirs: str, variables: list[Any], owners: list[Any], tensor: Tensor, in_head: bool):
        self.ours, self.theirs, self.tensor, self.in_head = ours, theirs, tensor, in_head
        self.variables, self.owners = variables, owners
        self.part = ours.partition(".")[0]

    def whole(self) -> list[Any]:
        """The model's variables that it is a part of."""
        return [variable.stack.variable if isinstance(variable, Member) else variable for variable in self.variables]

    def read(self, array: np.ndarray) -> None:
        """Their tensor into our variables."""
        values = self.tensor.split(array, [tuple(variable.shape) for variable in self.variables])
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(np.array(value))  # a copy: JAX may keep the very memory, and the file's is not ours

    def write(self) -> np.ndarray:
        """Our variables as their tensor, LoRA merged.

        Raises:
            ValueError: for quantized weights, which the format has no word for.
        """
        values = [_values(variable, owner) for variable, owner in zip(self.variables, self.owners, strict=True)]
        return np.ascontiguousarray(self.tensor.join(values))

    def byte_count(self) -> int:
        """Of their tensor, in the dtype of our variables."""
        return math.prod(self.shape()) * item_size(self.variables[0])

    def shape(self) -> tuple[int, ...]:
        """Of their tensor: what our variables would be written as, found without their values."""
        return self.tensor.joined_shape([tuple(variable.shape) for variable in self.variables])


class Stack:
    """A variable whose first axis takes one tensor after the other, as of experts; assigned once, when all are there."""

    def __init__(self, variable: Any):
        self.variable = variable
        self.values: np.ndarray | None = None
        self.waiting = set(range(variable.shape[0]))

    def put(self, index: int, value: np.ndarray) -> None:
        """One of them."""
        if self.values is None:
            self.values = np.empty(tuple(self.variable.shape), value.dtype)
        self.values[index] = value
        self.waiting.discard(index)
        if not self.waiting:
            self.variable.assign(self.values)
            self.values, self.waiting = None, set(range(self.variable.shape[0]))


class Member:
    """One place of a `Stack`, to be read and written as a variable is."""

    def __init__(self, stack: Stack, index: int):
        self.stack, self.index = stack, index
        self.shape, self.dtype = tuple(stack.variable.shape[1:]), stack.variable.dtype

    @property
    def value(self) -> Any:
        """Its part of the variable's value."""
        return self.stack.variable.value[self.index]

    def assign(self, value: np.ndarray) -> None:
        """Put it in its place."""
        self.stack.put(self.index, value)


def item_size(variable: Any) -> int:
    """Bytes of one number of a variable."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return np.dtype(getattr(ml_dtypes, dtype, None) or dtype).itemsize


def check_not_quantized(pair: Pair) -> None:
    """Raise ValueError if a layer of the pair holds quantized weights."""
    for owner in pair.owners:
        if getattr(owner, "quantization_mode", None) is not None:
            raise ValueError(
                f"{owner.path} is quantized to {owner.quantization_mode}, which this format has no word for: write the "
                "model before `quantize`, or keep the quantized one as a .keras file."
            )


def _values(variable: Any, owner: Any) -> np.ndarray:
    """A variable's values, in its own dtype; NumPy knows bfloat16 by `ml_dtypes`."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    value = variable.value
    if getattr(owner, "lora_enabled", False):  # what the layer computes with: the kernel or table and the update
        for merged in ("kernel", "embeddings"):
            if getattr(owner, f"_{merged}", None) is variable:
                value = getattr(owner, merged)
    if dtype == "bfloat16":
        return processes.whole(keras.ops.cast(value, "float32")).astype(ml_dtypes.bfloat16)
    return processes.whole(value)


def pairs(model: Any, architecture: Architecture) -> Iterator[Pair]:
    """Every variable of the model with its tensor, in the order of the architecture's tables."""
    backbone = model if isinstance(model, Backbone) else model.backbone
    yield from _walk(backbone, architecture.weights_of(backbone.config), in_head=False)
    if backbone is model or isinstance(model, LanguageModel):
        yield from _walk(backbone, architecture.output, in_head=True)
    head = architecture.heads.get(type(model).__name__)
    if head is not None:
        yield from _walk(model, head.weights_of(backbone.config), in_head=True)


def _walk(root: Any, weights: Weights, *, in_head: bool) -> Iterator[Pair]:
    seen: set[int] = set()  # layers that blocks share are written once
    for ours, (theirs, layout) in weights.items():
        paths = (ours,) if isinstance(ours, str) else ours
        for group, i in enumerate(_blocks(root, paths[0])):
            for tensor in layout:
                full = [".".join(filter(None, (path.format(i=i), tensor.ours))) for path in paths]
                variables = [resolve(root, path) for path in full]
                owners = [resolve(root, path.rpartition(".")[0]) if "." in path else root for path in full]
                if any(variable is None for variable in variables) or id(variables[0]) in seen:
                    continue
                seen.add(id(variables[0]))
                name = ".".join(filter(None, (theirs, tensor.theirs)))
                if "{e}" not in name:
                    yield Pair(full[0], name.format(i=group), variables, owners, tensor, in_head)
                    continue
                stacks = [Stack(variable) for variable in variables]
                for e in range(variables[0].shape[0]):
                    members = [Member(stack, e) for stack in stacks]
                    yield Pair(f"{full[0]}[{e}]", name.format(i=group, e=e), members, owners, tensor, in_head)


def _blocks(root: Any, path: str) -> list[int]:
    """What {i} stands for in a path: the blocks, of those that share their weights the first."""
    if "{i}" not in path:
        return [0]
    blocks = resolve(root, path.partition(".{i}")[0]) or []
    first = {id(block): i for i, block in reversed(list(enumerate(blocks)))}
    return sorted(first.values())


def resolve(root: Any, path: str) -> Any:
    """The object at a dotted path; None where a part of it is None (an option that is off)."""
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part, None)
        if root is None:
            return None
    return root


class Match(NamedTuple):
    """What belongs together.

    Attributes:
        found: Name of a tensor as `Pair.theirs` gives it, to its name in the file.
        new: Variables, by path, that no tensor fills and that may start untrained (the head, the pooler).
        unused: Tensors of the file that the model has no place for.
    """

    found: dict[str, str]
    new: list[str]
    unused: list[str]


def match(
    wanted: list[Pair], entries: Mapping[str, Entry], prefix: str, architecture: Architecture, directory: Path
) -> Match:
    """Which tensor fills what.

    Raises:
        ValueError: naming tensors and shapes, if the checkpoint lacks or contradicts what the model needs.
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
            implies = "this model has" if pair.in_head else "config.json implies"
            wrong.append(f"{key}: {entries[key].shape}, where {implies} {pair.shape()}")
            in_heads += pair.in_head
        else:
            found[pair.theirs] = key
    if missing:
        raise ValueError(
            f"{directory} lacks tensors that a {architecture.model_type!r} model of this config needs: {some(missing)}."
        )
    if wrong and in_heads == len(wrong):
        raise ValueError(
            f"{directory} has a head of another size: {some(wrong)}. Leave num_classes and labels out to take its head, "
            "or put a new one on its backbone: Task(Backbone.from_pretrained(directory), num_classes=...)."
        )
    if wrong:
        raise ValueError(f"{directory} disagrees with its own config.json: {some(wrong)}.")
    used = set(found.values())
    unused = [key for key in entries if key not in used and not architecture.ignores(key.removeprefix(prefix))]
    return Match(found, new, sorted(unused))


def some(names: list[str], most: int = 4) -> str:
    """The first few of many names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
