"""How a plan grows with the number of devices, each with as many rows: weak scaling."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from keras_tfm.planning.units import count
from keras_tfm.planning.ways import Way

if TYPE_CHECKING:
    from keras_tfm.planning.plan import Plan


def families(plan: Plan) -> dict[str, tuple[int, bool]]:
    """Name to (model, fsdp) of the ways that are followed: data alone and the best of each sort that the plan looked at."""
    found = {"data": (1, False), "fsdp": (1, True)}
    for mesh in plan.meshes:
        if mesh.refused is None and mesh.way.model > 1 and len(found) < 5:
            suffix = ", fsdp" if mesh.way.fsdp else ""
            found.setdefault(f"data x model {mesh.way.model}{suffix}", (mesh.way.model, mesh.way.fsdp))
    return found


def scaling(plan: Plan, most: int = 4096) -> dict[str, list[dict[str, Any]]]:
    """As `Plan.scaling`.

    Raises:
        ValueError: for a number of devices that is not positive.
    """
    if not isinstance(most, int) or most < 1:
        raise ValueError(f"most must be a positive number of devices; got {most!r}.")
    first = plan.meshes[0].way.devices
    each = max(1, plan.job.batch_size // first)
    alone = _alone(plan, each)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (model, fsdp) in families(plan).items():
        points = []
        devices = model * (2 if fsdp else 1)
        while devices <= most:
            job = dataclasses.replace(plan.job, batch_size=each * devices)
            mesh = plan.on(Way(devices // model, model, fsdp), job)
            if mesh.refused is None:
                tokens = job.batch_size * job.sequence_length
                points.append(
                    {
                        "devices": devices,
                        "bytes": mesh.bytes,
                        "tokens_per_second": tokens / mesh.seconds["step"],
                        "ideal": alone * devices,
                        "fits": mesh.fits,
                    }
                )
            devices *= 2
        if points:
            found[name] = points
    return found


def _alone(plan: Plan, rows: int) -> float:
    """Tokens a second of one device with nothing to wait for."""
    job = dataclasses.replace(plan.job, batch_size=rows)
    return rows * job.sequence_length / plan.on(Way(1), job).seconds["compute"]


def table(points: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The points as Markdown: devices, bytes a device and tokens a second of each way."""
    lines = ["| devices | " + " | ".join(points) + " |", "|---|" + "---|" * len(points)]
    for devices in sorted({point["devices"] for series in points.values() for point in series}):
        cells = []
        for series in points.values():
            point = next((p for p in series if p["devices"] == devices), None)
            cells.append("" if point is None else f"{count(point['tokens_per_second'])} tokens/s")
        lines.append(f"| {devices} | " + " | ".join(cells) + " |")
    return lines
