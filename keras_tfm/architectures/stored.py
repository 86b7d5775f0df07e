"""How published files store a module: which tensors, in which orientation, and the way there and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs that is one variable of ours.

    Attributes:
        ours: What follows the module's path on our side, such as "_kernel"; "" for the variable itself.
        theirs: What follows the module's name on theirs, such as "weight".
        read: Their array and our shape to our array.
        write: Our array to theirs.
    """

    ours: str
    theirs: str
    read: Callable[[Array, Shape], Array] = lambda array, shape: array.reshape(shape)
    write: Callable[[Array], Array] = lambda array: array

    def split(self, array: Array, shapes: Sequence[Shape]) -> list[Array]:
        """Their array to ours, one for each of `shapes`."""
        return [self.read(array, shapes[0])]

    def join(self, arrays: Sequence[Array]) -> Array:
        """Ours to theirs."""
        return self.write(arrays[0])

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Of their array, found without any."""
        nothing = np.zeros((), np.int8)
        return self.join([np.broadcast_to(nothing, shape) for shape in shapes]).shape


@dataclass(frozen=True)
class Fused(Tensor):
    """One tensor of theirs that holds several variables of ours, such as query, key and value.

    Attributes:
        cut: Their array, output features first, and our shapes to a piece for each.
        tie: The inverse: pieces and our shapes to their array.
        transposed: They store (in, out), as GPT-2's Conv1D does.
    """

    cut: Callable[[Array, Sequence[Shape]], list[Array]] = lambda array, shapes: []
    tie: Callable[[list[Array], Sequence[Shape]], Array] = lambda pieces, shapes: pieces[0]
    transposed: bool = False

    def split(self, array: Array, shapes: Sequence[Shape]) -> list[Array]:
        """Their array to ours, one for each of `shapes`."""
        array = array.T if self.transposed else array
        return [self.read(piece, shape) for piece, shape in zip(self.cut(array, shapes), shapes, strict=True)]

    def join(self, arrays: Sequence[Array]) -> Array:
        """Ours to theirs."""
        array = self.tie([self.write(array) for array in arrays], [array.shape for array in arrays])
        return array.T if self.transposed else array


@dataclass(frozen=True)
class Interleaved(Tensor):
    """One tensor of theirs whose last axis takes the values of several variables of ours in turn."""

    def split(self, array: Array, shapes: Sequence[Shape]) -> list[Array]:
        """Their array to ours, one for each of `shapes`."""
        return [array[..., start :: len(shapes)] for start in range(len(shapes))]

    def join(self, arrays: Sequence[Array]) -> Array:
        """Ours to theirs."""
        return np.stack(arrays, axis=-1).reshape(*arrays[0].shape[:-1], -1)

    def joined_shape(self, shapes: Sequence[Shape]) -> Shape:
        """Of their array, found without any."""
        return (*shapes[0][:-1], shapes[0][-1] * len(shapes))


Layout = tuple[Tensor, ...]
# Our attribute path, or several that they fuse, to their module's name and the way it is stored. {i} is the block;
# {e} in their name says that they have a tensor for each of what we stack along a first axis, such as experts.
# (Keys are `str | tuple[str, ...]`; a mapping's key type is invariant, so that a dict of either alone would not be one.)
Weights = Mapping[Any, tuple[str, Layout]]


def _split_heads(array: Array, shape: Shape) -> Array:
    return array.T.reshape(shape)  # (heads * head_dim, width) -> (width, heads, head_dim)


def _merge_heads(array: Array, shape: Shape) -> Array:
    return array.T.reshape(shape)  # (width, heads * head_dim) -> (heads, head_dim, width)


# torch keeps a linear layer as (out, in), Keras as (in, out), with heads apart.
LINEAR: Layout = (
    Tensor("_kernel", "weight", lambda array, shape: array.T.reshape(shape), lambda array: array.T),
    Tensor("bias", "bias"),
)
INTO_HEADS: Layout = (
    Tensor("_kernel", "weight", _split_heads, lambda array: array.reshape(array.shape[0], -1).T),
    Tensor("bias", "bias", write=lambda array: array.reshape(-1)),
)
OUT_OF_HEADS: Layout = (
    Tensor("_kernel", "weight", _merge_heads, lambda array: array.reshape(-1, array.shape[-1]).T),
    Tensor("bias", "bias"),
)
# GPT-2's Conv1D keeps (in, out).
CONV1D: Layout = (Tensor("_kernel", "weight"), Tensor("bias", "bias"))
CONV1D_OUT_OF_HEADS: Layout = (
    Tensor("_kernel", "weight", write=lambda array: array.reshape(-1, array.shape[-1])),
    Tensor("bias", "bias"),
)
LAYER_NORM: Layout = (Tensor("gamma", "weight"), Tensor("beta", "bias"))
RMS_NORM: Layout = (Tensor("scale", "weight"),)
EMBEDDING: Layout = (Tensor("embeddings", "weight"),)
TOKEN_EMBEDDING: Layout = (Tensor("table._embeddings", "weight"),)
OUTPUT_EMBEDDING: Layout = (
    Tensor("table.reverse_embeddings", "weight", lambda array, shape: array.T.reshape(shape), lambda array: array.T),
)
VECTOR: Layout = (Tensor("", ""),)
INTERLEAVED: Layout = (Interleaved("", ""),)
# ViT keeps these with a first axis of one, for the batch.
FIRST_VECTOR: Layout = (Tensor("", "", write=lambda array: array[None]),)
FIRST_POSITIONS: Layout = (Tensor("embeddings", "", write=lambda array: array[None]),)


def patches(shape: Shape) -> Layout:
    """A projection of patches of this (height, width, channels), which torch keeps as the kernel of a convolution."""
    height, width, channels = shape

    def read(array: Array, to: Shape) -> Array:
        return array.transpose(2, 3, 1, 0).reshape(to)

    def write(array: Array) -> Array:
        return array.reshape(height, width, channels, -1).transpose(3, 2, 0, 1)

    return (Tensor("_kernel", "weight", read, write), Tensor("bias", "bias"))


def _transposed(ours: str, theirs: str) -> Tensor:
    return Tensor(ours, theirs, lambda array, shape: array.T, lambda array: array.T)


def router(name: str) -> Layout:
    """A mixture of experts' router, a linear layer called so."""
    return (_transposed("router", f"{name}.weight"), Tensor("router_bias", f"{name}.bias"))


def experts(gate: str, up: str, down: str) -> Layout:
    """A mixture of experts with a linear layer per expert and projection, called so."""
    names = {"expert_gate": gate, "expert_up": up, "expert_down": down}
    each = (_transposed(ours, f"experts.{{e}}.{theirs}.weight") for ours, theirs in names.items())
    return (*router("gate"), *each)


def _rows(array: Array, shapes: Sequence[Shape]) -> list[int]:
    """How many of their output features each of our variables takes."""
    return [math.prod(shape) // math.prod(array.shape[1:]) for shape in shapes]


def _cut_in_turn(array: Array, shapes: Sequence[Shape]) -> list[Array]:
    return np.split(array, np.cumsum(_rows(array, shapes))[:-1])


def _tie_in_turn(pieces: list[Array], shapes: Sequence[Shape]) -> Array:
    return np.concatenate(pieces)


def _cut_by_group(array: Array, shapes: Sequence[Shape]) -> list[Array]:
    """For each key/value head its query heads, its key, its value: (groups, queries + 2, head_dim, …)."""
    (heads, head_dim), (groups, _) = shapes[0][-2:], shapes[1][-2:]
    rest = array.shape[1:]
    grouped = array.reshape(groups, heads // groups + 2, head_dim, *rest)
    return [piece.reshape(-1, *rest) for piece in (grouped[:, :-2], grouped[:, -2], grouped[:, -1])]


def _tie_by_group(pieces: list[Array], shapes: Sequence[Shape]) -> Array:
    head_dim, groups, rest = shapes[0][-1], shapes[1][-2], pieces[0].shape[1:]
    parts = [piece.reshape(groups, -1, head_dim, *rest) for piece in pieces]
    return np.concatenate(parts, axis=1).reshape(-1, *rest)


def _fused(layout: Layout, cut: Any, tie: Any, transposed: bool = False) -> Layout:
    return tuple(Fused(part.ours, part.theirs, part.read, part.write, cut, tie, transposed) for part in layout)


QUERY_KEY_VALUE: Layout = _fused(INTO_HEADS, _cut_in_turn, _tie_in_turn)
"""All queries, then all keys, then all values (Phi-3, ModernBERT)."""
CONV1D_QUERY_KEY_VALUE: Layout = _fused(INTO_HEADS, _cut_in_turn, _tie_in_turn, transposed=True)
"""The same, (in, out) (GPT-2)."""
GROUPED_QUERY_KEY_VALUE: Layout = _fused(INTO_HEADS, _cut_by_group, _tie_by_group)
"""By key/value head (GPT-NeoX, BLOOM, Falcon)."""
TWO_LINEAR: Layout = _fused(LINEAR, _cut_in_turn, _tie_in_turn)
"""Two linear layers of one input, such as gate and up (Phi-3, ModernBERT)."""
