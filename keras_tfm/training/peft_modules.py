"""Which linear layer of a published model holds which of our projections, feature by feature."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_tfm.architectures.architecture import Architecture
from keras_tfm.checkpoints.matching import Pair, pairs
from keras_tfm.training.low_rank import is_projection, kernel_shape
from keras_tfm.training.parts import named_layers
from keras_tfm.training.products import contracted_axes


@dataclass(frozen=True)
class Module:
    """A linear layer of theirs.

    Attributes:
        name: Theirs, without the backbone's prefix.
        in_head: Belongs to the task's head.
        paths, layers: Our projections that it holds: one, or those that it fuses.
        inputs: (in,) for each of their input features ours.
        rows: For each projection, (outputs,) for each of our output features theirs.
        transposed: They keep (in, out).
    """

    name: str
    in_head: bool
    paths: tuple[str, ...]
    layers: tuple[Any, ...]
    inputs: np.ndarray
    rows: tuple[np.ndarray, ...]
    transposed: bool

    @property
    def outputs(self) -> int:
        """How many output features it has."""
        return sum(len(rows) for rows in self.rows)

    def join(self, parts: list[tuple[np.ndarray, np.ndarray] | None]) -> tuple[np.ndarray, np.ndarray]:
        """Our (A, B) of each projection, None for none, as their pair: (rank, in) and (out, rank).

        Updates that share their A have a pair of the same rank. Others have one of all their ranks together, in which
        each has its own rows of A and columns of B, so that nothing is lost.
        """
        given = [part for part in parts if part is not None]
        shared = len(given) == len(parts) and all(np.array_equal(part[0], given[0][0]) for part in given)
        blocks = given[:1] if shared else given
        total = sum(a.shape[1] for a, _ in blocks)
        ours = np.concatenate([a for a, _ in blocks], axis=1)  # (in, rank)
        theirs = np.zeros((self.outputs, total), np.float32)
        start = 0
        for part, rows in zip(parts, self.rows, strict=True):
            if part is not None:
                theirs[rows, start : start + part[1].shape[0]] = part[1].T
                start += 0 if shared else part[1].shape[0]
        return np.ascontiguousarray(ours[self.inputs].T), theirs

    def split(self, theirs_a: np.ndarray, theirs_b: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The inverse, with the whole A for each projection."""
        a = np.empty(theirs_a.T.shape, np.float32)
        a[self.inputs] = theirs_a.T
        return [(a, np.ascontiguousarray(theirs_b[rows].T)) for rows in self.rows]


def modules(model: Any, architecture: Architecture) -> Iterator[Module]:
    """Every linear layer of theirs that is one or several of our projections."""
    paths: dict[int, str] = {}
    for path, layer in named_layers(model).items():
        paths.setdefault(id(layer), str(path))
    for pair in pairs(model, architecture):
        kernels = [getattr(owner, "_kernel", None) for owner in pair.owners]
        whole = all(kernel is variable for kernel, variable in zip(kernels, pair.variables, strict=True))
        if whole and all(map(is_projection, pair.owners)) and pair.theirs.endswith(".weight"):
            module = _module(pair, tuple(paths[id(owner)] for owner in pair.owners))
            if module is not None:
                yield module


def _module(pair: Pair, paths: tuple[str, ...]) -> Module | None:
    """None for a weight that is no matrix of all input by all output features, such as that of a convolution."""
    shapes = [kernel_shape(owner) for owner in pair.owners]
    widths = [math.prod(shape[contracted_axes(owner) :]) for shape, owner in zip(shapes, pair.owners, strict=True)]
    starts = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    # Their matrix with the place of each number in ours, one kernel after the other.
    places = pair.tensor.join([np.arange(a, b).reshape(s) for a, b, s in zip(starts, starts[1:], shapes, strict=False)])
    if places.ndim != 2:
        return None
    for transposed in (False, True):
        matrix = places.T if transposed else places  # (out, in)
        owner = np.searchsorted(starts, matrix, side="right") - 1
        inside = matrix - starts[owner]
        width = np.array(widths)[owner]
        inputs, outputs = inside // width, inside % width
        apart = (inputs == inputs[:1]).all() and (outputs == outputs[:, :1]).all() and (owner == owner[:, :1]).all()
        if apart:
            rows = tuple(
                np.flatnonzero(owner[:, 0] == k)[np.argsort(outputs[owner[:, 0] == k, 0])] for k in range(len(shapes))
            )
            name = pair.theirs.removesuffix(".weight")
            return Module(name, pair.in_head, paths, tuple(pair.owners), inputs[0], rows, transposed)
    return None
