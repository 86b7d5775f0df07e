"""Bytes on one device: of what stays there, and of what a step adds."""

from __future__ import annotations

import math
from typing import Any

from keras_tfm.planning import activations
from keras_tfm.planning.described import Described, itemsize
from keras_tfm.planning.job import Job
from keras_tfm.planning.moments import held, moments
from keras_tfm.planning.ways import Way

# The parts of a step's memory, in the order in which they are shown.
PARTS = ("weights", "gradients", "optimizer", "activations", "recomputed", "passing", "gathered")


def training(described: Described, job: Job, way: Way) -> dict[str, int]:
    """Bytes on one device when a step holds most, by the parts in `PARTS`.

    weights, optimizer: As `layout_report` gives them.
    gradients, activations, recomputed, passing: Of that moment (`moments`).
    gathered: Weights that fsdp makes whole: all of them, kept until the backward pass; with recomputation a block's.
    """
    found = max(moments(described, job, way), key=lambda moment: sum(moment.values()))
    found |= {
        "weights": held(described.weights, way),
        "optimizer": held(described.slots, way),
        "gathered": _gathered(described, job, way),
    }
    return {part: found[part] for part in PARTS}


def _gathered(described: Described, job: Job, way: Way) -> int:
    if not way.fsdp:
        return 0
    by_block: dict[str, int] = {}
    for variable in described.weights:
        if "data" not in way.rules.spec(variable.path, variable.shape, variable.axes):
            continue
        whole = math.prod(way.unsplit.shard(variable.path, variable.shape, variable.axes)) * itemsize(variable.dtype)
        parts = [part for part in variable.path.split("/") if "block_" in part]
        key = parts[0] if parts and job.remat else "" if not job.remat else "ends"
        by_block[key] = by_block.get(key, 0) + whole
    ends = by_block.pop("ends", 0)
    return ends + max(by_block.values(), default=0)


def generating(described: Described, job: Job, way: Way) -> dict[str, int]:
    """Bytes on one device while texts are generated: weights and the cache of `job.cache_tokens` tokens a row."""
    if job.cache_tokens is None:
        return {}
    return {"weights": held(described.weights, way), "cache": cache(described, job, way)}


def cache(described: Described, job: Job, way: Way) -> int:
    """Bytes of keys and values; rows are shared by "data", heads by "model" where it divides them."""
    assert job.cache_tokens is not None, "checked by the caller"
    step, whole = activations.Step(described, job), 0
    rows = -(-step.rows // way.data)
    each = itemsize(job.cache_dtype or step.dtype)
    scale = 4 if job.cache_dtype == "int8" else 0  # a float32 for each vector
    blocks, cross = activations.stacks(described)[-1]
    for block in blocks:
        layer = block.attention
        slots = min(job.cache_tokens, layer.window or job.cache_tokens)
        heads = _shared(layer, way)
        whole += 2 * rows * slots * heads * (layer._head_dim * each + scale) + rows * slots * 4 + rows * 4
        if cross:
            layer = block.cross_attention
            whole += 2 * rows * step.length * _shared(layer, way) * layer._head_dim * itemsize(step.dtype)
    return whole


def _shared(layer: Any, way: Way) -> int:
    """Key and value heads that one device has."""
    return layer._kv_heads // way.model if layer._kv_heads % way.model == 0 else layer._kv_heads
