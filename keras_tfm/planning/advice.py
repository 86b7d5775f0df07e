"""What to change where nothing fits, and what every figure rests on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from keras_tfm.models.language_models import LanguageModel
from keras_tfm.planning.job import Job
from keras_tfm.planning.units import said
from keras_tfm.planning.ways import Way

if TYPE_CHECKING:
    from keras_tfm.planning.plan import MeshPlan, Plan


def advice(plan: Plan) -> list[str]:
    """Where no mesh fits: the nearest miss, and each single change, then all together, that would make it fit."""
    possible = [mesh for mesh in plan.meshes if mesh.refused is None]
    if plan.best is not None:
        return []
    if not possible:
        reasons = list(dict.fromkeys(mesh.refused or "" for mesh in plan.meshes))
        return ["The model cannot be laid out so: " + "; ".join(reasons[:3]) + "."]
    nearest = min(possible, key=lambda mesh: mesh.bytes)
    missing = nearest.bytes - plan.budget
    found = [
        f"Nothing fits. {nearest.way.name} is nearest: it needs {said(nearest.bytes)} of the {said(plan.budget)} that may "
        f"be used, {said(missing)} too much; most of it is {_largest(nearest)}."
    ]
    enough: list[str] = []
    short: list[str] = []
    for words, job, way in _changes(plan, nearest):
        changed = plan.on(way, job)
        if changed.refused is None:
            (enough if changed.fits else short).append(f"{words} ({said(changed.bytes)})")
    if enough:
        found.append("It would fit with " + ", or with ".join(enough) + ".")
    if short:
        found.append("Not enough alone: " + "; ".join(short) + ".")
    if not enough:
        found.append(_together(plan))
    return found


def _largest(mesh: MeshPlan) -> str:
    parts = mesh.memory if sum(mesh.memory.values()) >= sum(mesh.generation.values()) else mesh.generation
    return max(parts, key=lambda part: parts[part])


def _savings(plan: Plan) -> list[tuple[str, Job]]:
    job, found = plan.job, []
    if not job.remat:
        found.append(("remat=True", dataclasses.replace(job, remat=True)))
    if job.loss == "dense" and isinstance(plan.described.model, LanguageModel):
        found.append(("loss='chunked'", dataclasses.replace(job, loss="chunked")))
    return found


def _changes(plan: Plan, nearest: MeshPlan) -> list[tuple[str, Job, Way]]:
    way = nearest.way
    found = [(words, job, way) for words, job in _savings(plan)]
    rows = plan.job.batch_size
    while rows % 2 == 0 and (rows // 2) % way.data == 0:
        rows //= 2
        smaller = dataclasses.replace(plan.job, batch_size=rows)
        if plan.on(way, smaller).fits or (rows // 2) % way.data or rows % 2:
            found.append((f"batch_size={rows}", smaller, way))
            break
    if way.data > 1 and not way.fsdp:
        found.append(("fsdp", plan.job, Way(way.data, way.model, True)))
    return found


def _together(plan: Plan) -> str:
    job = plan.job
    for _, saving in _savings(plan):
        job = dataclasses.replace(
            job,
            **{
                name: getattr(saving, name)
                for name in ("remat", "loss")
                if getattr(saving, name) != getattr(plan.job, name)
            },
        )
    devices = plan.meshes[0].way.devices
    for count in (devices, *(devices * 2**power for power in range(1, 13))):
        for scale in (1, 0):
            rows = job.batch_size * count // devices if scale else count
            trial = dataclasses.replace(job, batch_size=rows)
            tried = [
                plan.on(Way(count // m, m, f), trial) for m in (1, 2, 4, 8) if count % m == 0 for f in (False, True)
            ]
            fitting = [mesh for mesh in tried if mesh.fits]
            if fitting:
                best = min(fitting, key=lambda mesh: mesh.seconds["step"])
                changes = [
                    *(["remat=True"] if job.remat and not plan.job.remat else []),
                    *(["loss='chunked'"] if job.loss != plan.job.loss else []),
                    *([f"batch_size={rows}"] if rows != plan.job.batch_size else []),
                    *([f"devices={count}"] if count != devices else []),
                ]
                return f"It would fit on {best.way.name} with {' and '.join(changes)} ({said(best.bytes)})."
    return (
        "No number of devices up to 4096 times as many holds it with these rows; take a smaller model or shorter rows."
    )


def assumptions(plan: Plan) -> list[str]:
    """A sentence for each thing that the figures rest on."""
    job, device = plan.job, plan.device
    hidden = (
        "sums of gradients and gathered weights hide behind the backward pass"
        if job.overlap
        else "no collective hides behind computing"
    )
    found = [
        f"Device: {device.name}, {said(device.memory)}, {device.flops / 1e12:,.1f} TFLOP/s, "
        f"{device.bandwidth / 1e9:,.1f} GB/s in a group of {device.group}, {device.network / 1e9:,.1f} GB/s beyond "
        f"it. Source: {device.source}.",
        f"Memory: {said(plan.budget)} of it may be used; 8 % is left to the runtime.",
        f"Compute: products alone, at {job.utilization:.0%} of that rate, which is assumed.",
        f"Collectives: rings, {job.latency * 1e6:g} µs each, one after another; {hidden}. Beyond a group "
        "in two stages: within it, then each device with its like in the other groups. Gradients are summed "
        "in the weights' dtype, in pieces of 30 MiB.",
        "Activations: what "
        + ("XLA keeps in a compiled step" if job.jit_compile else "JAX's differentiation keeps, uncompiled")
        + ", measured to 10 % on small models and a CPU.",
        "Attention: "
        + ("dense; scores as a whole are kept." if job.kernel == "dense" else "a fused kernel keeps no scores."),
        f"Optimizer: {job.optimizer if isinstance(job.optimizer, str) else type(job.optimizer).__name__}; its slots lie "
        "where their weights do.",
        "Rows are full: no padding, no packing.",
        "Meshes: measured on 8 simulated devices; on real ones nothing has been run.",
    ]
    if any(mesh.way.fsdp and mesh.refused is None for mesh in plan.meshes):
        found.append(
            "fsdp: weights are gathered once a step and stay whole until their gradients are there (with remat: a block's, "
            "twice a step; assumed); gradients are summed whole and then cut, as XLA does for the simulated devices. A "
            "weight that the devices divide along no dimension stays whole."
        )
    if job.accumulation > 1:
        found.append("Accumulated gradients are one more slot a weight; they are summed over devices in every step.")
    if job.cache_tokens is not None:
        found.append("Generating: rows shared by data, heads by model, is arithmetic; it has not been run on a mesh.")
    return found
