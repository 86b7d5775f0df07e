"""Ways to lay a model over devices: the meshes, and the library's own rules for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from keras_tfm.distribution.layouts import TENSOR_PARALLEL, WHOLE_IF_UNEVEN
from keras_tfm.distribution.rules import Rules
from keras_tfm.planning.described import Described


@dataclass(frozen=True)
class Way:
    """A mesh, and whether weights are split over "data" too.

    Attributes:
        data: Devices that share a batch.
        model: Devices that share heads, widths and the vocabulary.
        fsdp: Weights are split over "data" as well.
    """

    data: int
    model: int = 1
    fsdp: bool = False

    @property
    def devices(self) -> int:
        """How many there are."""
        return self.data * self.model

    @property
    def name(self) -> str:
        """Such as "data 2 x model 4, fsdp"."""
        parts = [f"{axis} {size}" for axis, size in (("data", self.data), ("model", self.model)) if size > 1]
        return (" x ".join(parts) or "one device") + (", fsdp" if self.fsdp else "")

    @property
    def rules(self) -> Rules:
        """Those of `distribution.data_parallel`, `fsdp` and `tensor_parallel`."""
        sizes = {"data": self.data, "model": self.model}
        rest = "data" if self.fsdp else None
        if self.model == 1:
            return Rules(sizes, {}, rest)
        return Rules(sizes, TENSOR_PARALLEL, rest, WHOLE_IF_UNEVEN)

    @property
    def unsplit(self) -> Rules:
        """The same rules without fsdp: what a device computes with."""
        return Way(self.data, self.model).rules


def ways(devices: int) -> list[Way]:
    """All meshes of so many devices, with fsdp and without."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    found = [Way(devices // size, size) for size in sizes]
    return found + [Way(way.data, way.model, True) for way in found if way.data > 1]


def parse(mesh: str | dict[str, int], devices: int) -> tuple[int, int]:
    """(data, model) of a mesh such as "data=2,model=4" or {"data": 2, "model": 4}; an axis left out is 1.

    Raises:
        ValueError: for other axes, sizes that are not positive, and another number of devices than there are.
    """
    given = mesh
    if isinstance(mesh, str):
        pairs = [part.partition("=") for part in mesh.replace(" ", "").split(",") if part]
        mesh = {name: int(size) if size.isdigit() else 0 for name, _, size in pairs}
    if not mesh or set(mesh) - {"data", "model"} or any(type(size) is not int or size < 1 for size in mesh.values()):
        raise ValueError(f"mesh must be sizes of data and model, such as 'data=2,model=4'; got {given!r}.")
    if math.prod(mesh.values()) != devices:
        raise ValueError(
            f"mesh={given!r} has {math.prod(mesh.values())} devices; there are {devices}. Choose sizes whose product that "
            "is, or another number of devices."
        )
    return mesh.get("data", 1), mesh.get("model", 1)


def refusal(described: Described, way: Way, rows: int) -> str | None:
    """Why a model cannot be laid out this way; None where it can."""
    if rows % way.data:
        return f"{rows} rows a step are not shared evenly by {way.data} devices"
    try:
        for variable in described.weights:
            way.rules.spec(variable.path, variable.shape, variable.axes)
    except ValueError as error:
        return str(error)
    return None
