"""Work that each device of a mesh does on its own rows of a batch, on JAX.

XLA shares the work of a program among devices by itself, but for what it cannot see through: a loop over chunks of tokens,
a sort, a gather. Of these it makes every device compute the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_tfm.ops.backend import NAME, Tensor


class Parts(NamedTuple):
    """Weights whose first dimension may be split over an axis of the mesh.

    Attributes:
        weights: A tree of arrays, split alike.
        variable: One of them, whose layout says over which axis.
    """

    weights: Any
    variable: Any


def by_device(
    function: Callable,
    rows: Sequence[Tensor],
    whole: Sequence[Any],
    results: Sequence[str],
    variable: Any = None,
    parts: Parts | None = None,
) -> Any:
    """`function(*rows, *whole)`, run on each device with its rows alone where a batch is split over a mesh.

    Without a distribution, within a `jax.shard_map` over the batch's axis, and where the devices do not divide the rows,
    it is called once with all of them. Axes that weights are split over are left to XLA inside, but for that of `parts`.

    Args:
        function: Of arrays, gives a tuple of arrays. It draws no random numbers and sets no variable.
        rows: Arrays whose first dimension is that of the batch, or of the tokens of all rows, one row's after another's.
        whole: Arrays that all devices get as a whole, or trees of them.
        results: Of each array that comes back: "rows", as the arguments are; or "sum", to be added up over devices.
        variable: Of the caller's weights, one. If it is on other devices than the mesh, as that of a model which was built
            before the distribution was set, the mesh has no part in it.
        parts: Weights that each device has a part of, and uses alone. `function` gets two more arguments, the part and its
            number, and gives "rows" that add up over the parts to what they are.

    Returns:
        What `function` gives, of the whole batch.
    """
    shared = _shared_axis(rows[0].shape[0], variable) if NAME == "jax" else None
    parted = _part_axis(parts.variable) if NAME == "jax" and parts is not None else None
    weights = () if parts is None else (parts.weights,)
    if shared is None and parted is None:
        return function(*rows, *whole, *weights, *(0 for _ in weights))
    import jax
    import jax.numpy as jnp
    from jax.sharding import PartitionSpec

    mesh = next(found[0] for found in (shared, parted) if found is not None)
    axis, part = (None if found is None else found[1] for found in (shared, parted))

    def of_one(*arguments: Any) -> tuple[Any, ...]:
        number = 0 if part is None else jax.lax.axis_index(part)
        made = function(*arguments, *(number for _ in weights))
        sums = (jax.lax.psum(x, axis) if kind == "sum" and axis else x for x, kind in zip(made, results, strict=True))
        return tuple(x if part is None else x[None] for x in sums)

    over_parts = () if part is None else (part,)  # the first dimension of what comes back, which is added up
    found = jax.shard_map(
        of_one,
        mesh=mesh,
        in_specs=(
            *(PartitionSpec(axis) for _ in rows),
            *(PartitionSpec() for _ in whole),
            *(PartitionSpec(part) for _ in weights),
        ),
        out_specs=tuple(PartitionSpec(*over_parts, *(() if kind == "sum" else (axis,))) for kind in results),
        axis_names={name for name in (axis, part) if name is not None},
        check_vma=False,
    )(*rows, *whole, *weights)
    return found if part is None else tuple(jnp.sum(x, axis=0) for x in found)


def by_part(
    function: Callable,
    arrays: Sequence[Tensor],
    axes: Sequence[tuple[str | None, ...]],
    result: tuple[str | None, ...],
) -> Tensor:
    """`function(*arrays)`, called on each device of a mesh with its rows and heads: for what XLA cannot divide at all.

    Rows are split over the batch's axis where it divides them, heads over the other axes where these divide those of the
    first array; otherwise every device of the axis has all. Heads of other arrays that an axis does not divide, as keys of
    few heads, are repeated so that each device has what its queries need. It is one call without a distribution, within
    a `jax.shard_map` over all of the mesh, and of arrays at hand that are not on the mesh. Of those of a program that is
    being made this cannot be known: they are taken to be.

    Args:
        function: Of arrays, gives one.
        arrays: The first has the rows and heads that others have, or a multiple of their heads.
        axes: Of each array, what its dimensions are: "rows", "heads" or None.
        result: The same of what comes back.
    """
    distribution: Any = keras.distribution.distribution() if NAME == "jax" else None
    if distribution is None:
        return function(*arrays)
    import jax
    import jax.numpy as jnp

    mesh, batch = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
    context = jax.sharding.get_abstract_mesh()
    done = set(getattr(context, "manual_axes", ()))
    left = [name for name in mesh.axis_names if name not in done]
    at_hand = not isinstance(arrays[0], jax.core.Tracer)
    if mesh.size == 1 or not left or (at_hand and arrays[0].sharding.device_set != set(mesh.devices.flat)):
        return function(*arrays)
    rows, heads = (arrays[0].shape[axes[0].index(kind)] for kind in ("rows", "heads"))
    over_heads: list[str] = []
    devices = 1
    for name in left:
        if name != batch and heads % (devices * mesh.shape[name]) == 0:
            over_heads.append(name)
            devices *= mesh.shape[name]
    over = {
        "rows": batch if batch in left and rows % mesh.shape[batch] == 0 else None,
        "heads": tuple(over_heads) or None,
        None: None,
    }

    def parted(x: Any, of: tuple[str | None, ...]) -> Any:
        if "heads" not in of or x.shape[of.index("heads")] % devices == 0:
            return x
        few = x.shape[of.index("heads")]
        return jnp.repeat(x, math.lcm(few, devices) // few, axis=of.index("heads"))

    specs = [jax.sharding.PartitionSpec(*(over[kind] for kind in of)) for of in (*axes, result)]
    return jax.shard_map(
        function,
        mesh=context if done else mesh,
        in_specs=tuple(specs[:-1]),
        out_specs=specs[-1],
        axis_names=set(left),
        check_vma=False,
    )(*map(parted, arrays, axes))


def with_rows_split(x: Tensor, variable: Any = None) -> Tensor:
    """x, (rows, ...), whose rows are to stay split over the batch's axis in a compiled program.

    Of what weights are multiplied or looked up with, XLA takes over the weights' layout: where these are split over the
    batch's axis too, by `fsdp`, it would gather rows and split the width instead, again and again. `variable` is as of
    `by_device`.
    """
    if NAME != "jax":
        return x
    import jax

    found = _shared_axis(x.shape[0], variable) if isinstance(x, jax.core.Tracer) else None
    if found is None:
        return x
    mesh, axis = found
    rest = [jax.sharding.PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis, *rest))
    )


def on_every_device(x: Any) -> Any:
    """Arrays of a tree as a whole on every device of the mesh, so that every host can read them."""
    import jax

    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.tree.map(lambda array: jax.lax.with_sharding_constraint(array, everywhere), x)


def _shared_axis(rows: Any, variable: Any) -> tuple[Any, str] | None:
    """The mesh and its axis that the batch is split over; None where each device is to have all rows."""
    import jax

    distribution: Any = keras.distribution.distribution()
    axis = None if distribution is None else distribution.batch_dim_name
    if axis is None:
        return None
    mesh = distribution.device_mesh.backend_mesh
    is_apart = axis in getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ())
    if is_apart or mesh.shape[axis] == 1 or rows % mesh.shape[axis]:
        return None
    # While `fit` runs Keras leaves variables without a value; it has seen before that they are on the mesh.
    sharding = getattr(getattr(variable, "_value", None), "sharding", None)
    if sharding is not None and sharding.device_set != set(mesh.devices.flat):
        return None
    return mesh, axis


def _part_axis(variable: Any) -> tuple[Any, str] | None:
    """The mesh and its axis that the first dimension of a variable is split over; None where each device has all."""
    import jax

    distribution: Any = keras.distribution.distribution()
    layout = None if distribution is None else getattr(variable, "_layout", None)
    axis = None if layout is None or not layout.axes else layout.axes[0]
    if axis is None or axis == distribution.batch_dim_name:
        return None
    mesh = distribution.device_mesh.backend_mesh
    is_apart = axis in getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ())
    return None if is_apart or mesh.shape[axis] == 1 else (mesh, axis)
