"""What is where: the layout of every variable as it is, not as it was meant."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_tfm.ops.backend import NAME


@dataclass(frozen=True)
class Placement:
    """Where one variable is.

    Attributes:
        path: The variable's.
        kind: "weight" or "optimizer".
        shape, dtype: Of the whole.
        spec: The mesh's axis that each dimension is split over; None for not split.
        shard: Shape of what one device has.
        bytes: Of what one device has.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    spec: tuple[Any, ...]
    shard: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class LayoutReport:
    """Where a model's variables are. Printed, a table.

    Attributes:
        placements: One for every weight and optimizer slot.
        unmatched: Patterns of the distribution that match no variable.
    """

    placements: tuple[Placement, ...]
    unmatched: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """What one device has of all of them."""
        return sum(placement.bytes for placement in self.placements)

    @property
    def whole_bytes(self) -> int:
        """All of them, once."""
        return sum(math.prod(p.shape) * p.bytes // max(math.prod(p.shard), 1) for p in self.placements)

    def __str__(self) -> str:
        rows = [("variable", "shape", "split over", "on one device", "bytes")]
        for p in self.placements:
            split = ", ".join("-" if axis is None else str(axis) for axis in p.spec) if any(p.spec) else "whole"
            rows.append((p.path, str(p.shape), split, str(p.shard), f"{p.bytes:,}"))
        rows.append(("all", "", "", f"of {self.whole_bytes:,}", f"{self.bytes:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(row[:4], widths, strict=False)), row[4].rjust(widths[4])]
            )
            for row in rows
        ]
        lines += [f"The pattern {pattern!r} matches no variable." for pattern in self.unmatched]
        return "\n".join(lines)


def layout_report(model: Any) -> LayoutReport:
    """Where the weights of a model are, and its optimizer's slots, read off the arrays themselves.

    Args:
        model: Any built Keras model.
    """
    found: list[Placement] = []
    optimizer = getattr(model, "optimizer", None)
    groups = (("weight", model.variables), ("optimizer", [] if optimizer is None else optimizer.variables))
    for kind, variables in groups:
        for variable in variables:
            shape = tuple(variable.shape)
            spec, shard = _placed(variable.value, len(shape))
            each = variable.value.dtype.itemsize if NAME != "tensorflow" else variable.value.dtype.size
            found.append(
                Placement(variable.path, kind, shape, str(variable.dtype), spec, shard, math.prod(shard) * each)
            )
    distribution = keras.distribution.distribution()
    patterns = getattr(distribution, "patterns", {})
    unmatched = tuple(p.pattern for p in patterns if p.pattern not in distribution.matched)
    return LayoutReport(tuple(found), unmatched)


def _placed(value: Any, rank: int) -> tuple[tuple[Any, ...], tuple[int, ...]]:
    """An array's spec, and the shape of its part on one device."""
    shape = tuple(int(size) for size in value.shape)
    sharding = getattr(value, "sharding", None) if NAME == "jax" else None
    if sharding is None:
        return (None,) * rank, shape
    spec = tuple(getattr(sharding, "spec", ()))
    return (*spec, *(None,) * (rank - len(spec))), tuple(sharding.shard_shape(shape))


def check_placed(model: Any) -> None:
    """Raise ValueError if a model was built before the distribution that is set now, on other devices than its mesh.

    Task models do so at `fit`. Without a distribution nothing is checked.
    """
    distribution = keras.distribution.distribution()
    if distribution is None or NAME != "jax":
        return
    devices = {str(device) for device in np.ravel(distribution.device_mesh.backend_mesh.devices)}
    for variable in model.variables:
        sharding = getattr(variable.value, "sharding", None)
        own = {str(device) for device in getattr(sharding, "device_set", ())}
        if own and own != devices:
            raise ValueError(
                f"{variable.path} is on {len(own)} device(s), the distribution's mesh has {len(devices)}: the model was "
                "built before the distribution was set. Build it, or load it, within distribution.scope(), or after "
                "keras.distribution.set_distribution(...)."
            )
