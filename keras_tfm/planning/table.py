"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keras_tfm.planning.memory import PARTS
from keras_tfm.planning.units import count, said

if TYPE_CHECKING:
    from keras_tfm.planning.plan import MeshPlan, Plan

SHOWN = 12  # meshes


def text(plan: Plan) -> str:
    """The model, the meshes ranked, the best one's collectives, advice and assumptions."""
    job, described = plan.job, plan.described
    options = [
        f"{job.batch_size} rows of {job.sequence_length} tokens a step",
        job.policy,
        str(job.optimizer) if isinstance(job.optimizer, str) else type(job.optimizer).__name__,
        *(["not compiled"] if not job.jit_compile else []),
        *(["remat"] if job.remat else []),
        *([f"{job.loss} loss"] if job.loss != "dense" else []),
        *([f"{job.kernel} attention"] if job.kernel != "dense" else []),
        *([f"accumulation {job.accumulation}"] if job.accumulation > 1 else []),
    ]
    lines = [
        f"{described.name}: {type(described.model).__name__}, {count(described.parameters)} parameters; "
        f"{', '.join(options)}",
        "",
        "Bytes on one device, collectives and time of one training step:",
        "",
        *rows(plan),
    ]
    refused = [mesh for mesh in plan.meshes if mesh.refused is not None]
    if refused:
        lines += ["", "Not possible:"] + [f"  {mesh.way.name}: {mesh.refused}" for mesh in refused[:4]]
        lines += [f"  … and {len(refused) - 4} more"] if len(refused) > 4 else []
    shown = plan.best or next((mesh for mesh in plan.meshes if mesh.refused is None), None)
    if shown is not None and shown.collectives:
        lines += ["", f"Collectives of {shown.way.name}:", *_collectives(shown)]
    if shown is not None and shown.generation:
        parts = ", ".join(f"{name} {said(size)}" for name, size in shown.generation.items())
        lines += ["", f"Generating up to {job.cache_tokens} tokens a row, on {shown.way.name}: {parts} on one device."]
    if plan.advice:
        lines += ["", *plan.advice]
    lines += ["", "Assumptions:", *(f"- {sentence}" for sentence in plan.assumptions)]
    return "\n".join(lines)


def rows(plan: Plan) -> list[str]:
    """The meshes' table."""
    parts = [part for part in PARTS if any(mesh.memory.get(part) for mesh in plan.meshes)]
    head = ["mesh", *parts, "all", "fits", "collectives", "moved", "step", "tokens/s"]
    table = [head]
    possible = [mesh for mesh in plan.meshes if mesh.refused is None]
    for mesh in possible[:SHOWN]:
        tokens = plan.job.batch_size * plan.job.sequence_length / mesh.seconds["step"]
        table.append(
            [
                mesh.way.name,
                *(said(mesh.memory[part]) for part in parts),
                said(mesh.bytes),
                "yes" if mesh.fits else "no",
                str(sum(collective.tensors for collective in mesh.collectives)),
                said(mesh.moved),
                f"{mesh.seconds['step'] * 1e3:,.1f} ms",
                count(tokens),
            ]
        )
    more = [f"… and {len(possible) - SHOWN} meshes more"] if len(possible) > SHOWN else []
    return _aligned(table) + more


def _collectives(mesh: MeshPlan) -> list[str]:
    merged: dict[tuple[str, str, str], list[int]] = {}
    for collective in mesh.collectives:
        sums = merged.setdefault((collective.kind, collective.axis, collective.what), [0, 0])
        sums[0] += collective.tensors
        sums[1] += collective.bytes
    table = [
        [f"  {kind}", f"over {axis}", what, f"{tensors} tensors", said(size)]
        for (kind, axis, what), (tensors, size) in merged.items()
    ]
    return _aligned(table, left=3)


def _aligned(table: list[list[str]], left: int = 1) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
