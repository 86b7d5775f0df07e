"""Layouts of weights over a mesh of devices, by what their dimensions mean."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_tfm.distribution.known_axes import known_axes
from keras_tfm.distribution.rules import Rules
from keras_tfm.ops.backend import NAME

AXES = ("vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "positions", "classes", "experts")
# Shoeybi et al. 2019 (Megatron-LM), section 3: heads and the feed-forward's inner width are split, and the vocabulary.
TENSOR_PARALLEL = {"heads": "model", "kv_heads": "model", "mlp": "model", "vocab": "model", "experts": "model"}
WHOLE_IF_UNEVEN = (
    "kv_heads",
    "vocab",
)  # by the default rules: few key heads, and vocabularies that are no round number


def mesh(devices: Any = None, **axes: int) -> Any:
    """A mesh of devices.

    Args:
        devices: Default: all that the backend has.
        axes: Sizes by name, such as data=2, model=4. One may be -1: what is left of the devices. Default: data=-1.

    Returns:
        A `keras.distribution.DeviceMesh`.

    Raises:
        ValueError: for sizes that do not make up the number of devices, and on other backends than JAX.
    """
    _check_backend()
    found = list(keras.distribution.list_devices() if devices is None else devices)
    sizes = dict(axes or {"data": -1})
    for name, size in sizes.items():
        if not isinstance(size, int) or (size < 1 and size != -1):
            raise ValueError(f"{name} must be a positive int, or -1 for what is left; got {size!r}.")
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"One axis may be -1; {open_axes} are.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes:
        sizes[open_axes[0]] = len(found) // known
    if math.prod(sizes.values()) != len(found):
        raise ValueError(
            f"A mesh of {_said(sizes)} has {math.prod(sizes.values()) or known} devices; there are {len(found)}. "
            "Choose sizes whose product that is, or give devices=."
        )
    return keras.distribution.DeviceMesh(tuple(sizes.values()), list(sizes), np.array(found))


class Layouts(keras.distribution.ModelParallel):
    """A `keras.distribution.Distribution` that splits each weight by what its dimensions mean.

    Every weight of this library says that itself; those of Keras's attention and KerasHub's blocks are known by their
    paths. Batches are split over `batch_axis`. Optimizer slots live where their weights do.

    Args:
        mesh: A `DeviceMesh`, from `mesh`.
        rules: Logical axis, such as "heads" or "mlp", to the mesh's axis that it is split over.
        patterns: Logical axes of other variables by a regular expression that matches their whole path, such as
            {".*my_layer/kernel": ("embed", "mlp")}. `layout_report` says which match nothing.
        rest: An axis of the mesh that weights are also split over where no rule did: along their largest dimension that it
            divides.
        whole_if_uneven: Logical axes that stay whole where their mesh axis does not divide them; others raise.
        batch_axis: The mesh's axis that batches are split over.

    Raises:
        ValueError: for axes that the mesh or no weight has; when a weight is made, for one that a rule does not divide and
            one that two patterns match.

    Example:
        >>> with keras_tfm.distribution.tensor_parallel(keras_tfm.distribution.mesh(data=2, model=4)).scope():
        ...     model = keras_tfm.CausalLM(keras_tfm.models.gpt("small"))
        ...     model.fit(x, y)
    """

    def __init__(
        self,
        mesh: Any,
        rules: Mapping[str, str] | None = None,
        *,
        patterns: Mapping[str, tuple[str | None, ...]] | None = None,
        rest: str | None = None,
        whole_if_uneven: tuple[str, ...] = (),
        batch_axis: str = "data",
        auto_shard_dataset: bool = True,
    ):
        _check_backend()
        if not isinstance(mesh, keras.distribution.DeviceMesh):
            raise ValueError(f"mesh must be a keras.distribution.DeviceMesh, from distribution.mesh; got {mesh!r}.")
        self.rules = dict(rules or {})
        self.rest = rest
        self.whole_if_uneven = tuple(whole_if_uneven)
        self.patterns = {re.compile(pattern): tuple(axes) for pattern, axes in (patterns or {}).items()}
        self.matched: set[str] = set()  # patterns
        named = [*self.rules, *(axis for axes in self.patterns.values() for axis in axes if axis is not None)]
        for axis in (*named, *self.whole_if_uneven):
            if axis not in AXES:
                near = difflib.get_close_matches(str(axis), AXES, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"No weight has an axis {axis!r}; there are {list(AXES)}.{hint}")
        for axis in (*self.rules.values(), *([rest] if rest else ()), batch_axis):
            if axis not in mesh.axis_names:
                raise ValueError(f"The mesh has no axis {axis!r}; it has {list(mesh.axis_names)}.")
        super().__init__(
            layout_map=keras.distribution.LayoutMap(mesh),
            batch_dim_name=batch_axis,
            auto_shard_dataset=auto_shard_dataset,
        )
        self.sizes = dict(zip(mesh.axis_names, mesh.shape, strict=True))

    def get_variable_layout(self, variable: Any) -> Any:
        """Where a variable lives, a `keras.distribution.TensorLayout`."""
        if getattr(variable, "_layout", None) is not None:
            return variable._layout
        return self._layout(variable)

    def place(self, variable: Any) -> None:
        """Put a variable where it belongs, now that its axes are known (`layers.base.logical_axes` calls this)."""
        variable._layout = self._layout(variable)
        if variable._value is not None:
            variable._direct_assign(variable._value)

    def _layout(self, variable: Any) -> Any:
        return keras.distribution.TensorLayout(list(self.spec(variable)), self.device_mesh)

    def spec(self, variable: Any) -> tuple[str | None, ...]:
        """The mesh's axis that each dimension of a variable is split over; None for not split.

        Raises:
            ValueError: for a dimension that its rule does not divide, and a path that two patterns match.
        """
        rules = Rules(self.sizes, self.rules, self.rest, self.whole_if_uneven)
        return rules.spec(variable.path, tuple(variable.shape), self.axes(variable))

    def axes(self, variable: Any) -> tuple[str | None, ...] | None:
        """The logical axes of a variable; None for one of which nothing is known, which every device has whole."""
        given = getattr(variable, "logical_axes", None)
        if given is not None:
            return given
        path, rank = str(getattr(variable, "path", "")), len(variable.shape)
        hits = [pattern for pattern in self.patterns if pattern.fullmatch(path)]
        if len(hits) > 1:
            raise ValueError(f"{path} is matched by {[pattern.pattern for pattern in hits]}; one of them may.")
        if not hits:
            return known_axes(path, rank)
        axes = self.patterns[hits[0]]
        if len(axes) != rank:
            raise ValueError(f"{path} has {rank} dimensions; the pattern {hits[0].pattern!r} names {list(axes)}.")
        self.matched.add(hits[0].pattern)
        return axes


def data_parallel(mesh: Any = None, **options: Any) -> Layouts:
    """Every device has all weights and a part of each batch.

    Args:
        mesh: From `mesh`, with an axis "data". Default: all devices.
        options: As of `Layouts`.
    """
    return Layouts(_mesh(mesh, data=-1), **options)


def tensor_parallel(mesh: Any = None, rules: Mapping[str, str] | None = None, **options: Any) -> Layouts:
    """Heads, the feed-forward's width, the vocabulary and experts are split (Shoeybi et al. 2019), batches over "data".

    Args:
        mesh: From `mesh`, with axes "data" and "model". Default: all devices are "model".
        rules: As of `Layouts`. Default: `TENSOR_PARALLEL`, by which key and value heads, and the vocabulary, stay whole
            where they do not divide.
        options: As of `Layouts`; rest="data" splits what is left too, as `fsdp` does.
    """
    if rules is None:
        rules = TENSOR_PARALLEL
        options.setdefault("whole_if_uneven", WHOLE_IF_UNEVEN)
    return Layouts(_mesh(mesh, data=1, model=-1), rules, **options)


def fsdp(mesh: Any = None, **options: Any) -> Layouts:
    """Each device has a part of every weight, gathered where it is used, and a part of each batch.

    A weight is split along its largest dimension that the devices divide; small ones are kept whole (Rajbhandari et al.
    2020, ZeRO: Memory Optimizations Toward Training Trillion Parameter Models, stage 3).

    Args:
        mesh: From `mesh`, with an axis "data". Default: all devices.
        options: As of `Layouts`.
    """
    return Layouts(_mesh(mesh, data=-1), **{"rest": "data", **options})


def _check_backend() -> None:
    if NAME != "jax":
        raise ValueError(
            f"keras.distribution lays out weights on JAX alone; this is {NAME}. Set KERAS_BACKEND=jax, or use "
            "tf.distribute.MirroredStrategy on TensorFlow and DistributedDataParallel on torch."
        )


def _mesh(given: Any, **axes: int) -> Any:
    return mesh(**axes) if given is None else given


def _said(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{name} {size}" for name, size in sizes.items())
