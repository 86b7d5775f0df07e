"""Which dimension of a weight is split over which axis of a mesh: arithmetic on sizes, without devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SMALLEST = 4096  # elements; smaller weights are kept whole by fsdp, for gathering them costs more than it saves


@dataclass(frozen=True)
class Rules:
    """How weights are split.

    Attributes:
        sizes: Of the mesh's axes, by name.
        rules: Logical axis to the mesh's axis that it is split over.
        rest: The mesh's axis that weights are also split over where no rule did: along their largest dimension that it
            divides.
        whole_if_uneven: Logical axes that stay whole where their mesh axis does not divide them; others raise.
    """

    sizes: Mapping[str, int]
    rules: Mapping[str, str] = field(default_factory=dict)
    rest: str | None = None
    whole_if_uneven: tuple[str, ...] = ()

    def spec(self, path: str, shape: Sequence[int], axes: Sequence[str | None] | None) -> tuple[str | None, ...]:
        """The mesh's axis that each dimension is split over; None for not split.

        Args:
            path: What an error calls it.
            shape: Of the whole.
            axes: The logical axis of each dimension; None where nothing is known: such a variable stays whole.

        Raises:
            ValueError: for a dimension that its rule does not divide.
        """
        found: list[str | None] = [None] * len(shape)
        for place, (axis, size) in enumerate(zip(axes or (), shape, strict=axes is not None)):
            target = None if axis is None else self.rules.get(axis)
            if target is None or target in found:
                continue
            if size % self.sizes[target] == 0:
                found[place] = target
            elif axis not in self.whole_if_uneven:
                raise ValueError(
                    f"{path}: its dimension {place} ({axis}) has {size} entries, which the mesh's axis {target!r} "
                    f"of {self.sizes[target]} devices does not divide. Take a mesh that does, or name {axis!r} in "
                    "whole_if_uneven."
                )
        # Variables that are no weights (seeds, counts) and small ones are not worth it.
        if axes is not None and self.rest is not None and self.rest not in found and math.prod(shape) >= SMALLEST:
            by = self.sizes[self.rest]
            free = [place for place, size in enumerate(shape) if found[place] is None and size % by == 0]
            if free:
                found[max(free, key=lambda place: shape[place])] = self.rest
        return tuple(found)

    def shard(self, path: str, shape: Sequence[int], axes: Sequence[str | None] | None) -> tuple[int, ...]:
        """The shape of what one device has. Arguments and errors are those of `spec`."""
        spec = self.spec(path, shape, axes)
        return tuple(size if axis is None else size // self.sizes[axis] for size, axis in zip(shape, spec, strict=True))
