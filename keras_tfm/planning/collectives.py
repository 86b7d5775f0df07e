"""What devices send each other in a training step: the collectives that XLA puts where the layouts ask for them.

The formulas are those of Shoeybi et al. 2019 (tensor parallelism) and Rajbhandari et al. 2020 (ZeRO), with what
the compiled program has beyond them. `tests/planning` counts them in the programs for 8 simulated devices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from keras_tfm.layers.mixture_of_experts import MixtureOfExperts
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.planning.activations import Step, places, stacks
from keras_tfm.planning.described import Described, itemsize
from keras_tfm.planning.job import Job
from keras_tfm.planning.ways import Way

BUCKET = 30 * 2**20  # bytes of gradients that one all-reduce sums: XLA's default on GPUs


@dataclass(frozen=True)
class Collective:
    """So many tensors that devices of one axis exchange in a step.

    Attributes:
        kind: "all-reduce", "all-gather" or "all-to-all".
        axis: The mesh's, whose devices exchange; "both" for all of them.
        what: What they exchange.
        tensors: How many.
        bytes: Of all these tensors on one device, as they come out.
        launches: How many operations these are, where several tensors share one.
        hideable: The devices can compute meanwhile.
    """

    kind: str
    axis: str
    what: str
    tensors: int
    bytes: int
    launches: int
    hideable: bool = False


def collectives(described: Described, job: Job, way: Way) -> list[Collective]:
    """Those of one training step."""
    step = Step(described, job)
    found: list[Collective] = []
    if way.model > 1:
        found += _tensor_parallel(step, way)
    if way.data > 1:
        found += _gathered(step, way)
        found += _gradients(step, way)
    return [collective for collective in found if collective.tensors]


def _gradients(step: Step, way: Way) -> list[Collective]:
    """Sums over "data" of the gradients; whole even where weights are split, for XLA cuts them afterwards."""
    described, rules = step.described, way.unsplit
    model, config = described.model, described.config
    sizes = []
    language = isinstance(model, LanguageModel)
    tables = described.tables
    for variable in described.weights:
        axes = variable.axes or ()
        if not variable.trainable:
            continue
        if "/pooler/" in f"/{variable.path}" and getattr(model, "pooling", None) != "pooler":
            continue  # read by nothing
        shape = list(rules.shard(variable.path, variable.shape, variable.axes))
        if "kv_heads" in axes and way.model > 1:  # XLA splits them as far as they go
            place = axes.index("kv_heads")
            if shape[place] == variable.shape[place]:
                shape[place] //= math.gcd(shape[place], way.model)
        if "positions" in axes:  # rows that are used
            shape[axes.index("positions")] = min(step.length, shape[axes.index("positions")])
        if "token_type_embedding" in variable.path:
            shape[0] = 1  # the default type's row
        times = 1
        if variable.path in tables:
            lookups = 2 if config.kind == "encoder_decoder" else 1
            times = lookups + int(language and config.tie_embeddings)
        sizes += [math.prod(shape) * itemsize(variable.dtype)] * times
    launches = max(1, math.ceil(sum(sizes) / BUCKET))
    return [
        Collective("all-reduce", "data", "gradients", len(sizes), sum(sizes), launches, hideable=True),
        Collective("all-reduce", "data", "loss and its weight", 2, 8, 1),
    ]


def _gathered(step: Step, way: Way) -> list[Collective]:
    """Weights that fsdp splits, made whole again where they are used: once, as the backward pass finds them there."""
    if not way.fsdp:
        return []
    described, language = step.described, isinstance(step.described.model, LanguageModel)
    tables = described.tables
    looks_apart = _looks_apart(step, way)
    sizes = []
    for variable in described.weights:
        if "data" not in way.rules.spec(variable.path, variable.shape, variable.axes) or not variable.trainable:
            continue
        if "/pooler/" in f"/{variable.path}" and getattr(described.model, "pooling", None) != "pooler":
            continue
        shard = way.unsplit.shard(variable.path, variable.shape, variable.axes)
        times = 1
        if variable.path in tables and language and step.job.loss == "dense" and described.config.tie_embeddings:
            times = 1 if looks_apart else 2
        elif variable.path in tables and looks_apart and not (language and described.config.tie_embeddings):
            continue
        elif step.job.remat and variable.path not in tables:
            times = 2  # forward, and where blocks are computed again
        sizes += [math.prod(shard) * itemsize(variable.dtype)] * times
    found = [Collective("all-gather", "data", "weights", len(sizes), sum(sizes), len(sizes), hideable=True)]
    if looks_apart:
        sides = 2 if described.config.kind == "encoder_decoder" else 1
        stream = step.rows // way.data * step.length * step.width * itemsize(step.dtype)
        what = "embedded tokens, from parts of their width to rows, and back"
        found.append(Collective("all-to-all", "data", what, 2 * sides * way.data, 2 * sides * stream, 2 * sides))
    return found


def _looks_apart(step: Step, way: Way) -> bool:
    """Whether tokens are looked up in a table whose rows and columns are both split, which XLA leaves where it is."""
    return any(
        set(way.rules.spec(v.path, v.shape, v.axes)) == {"data", "model"}
        for v in step.described.weights
        if v.path in step.described.tables
    )


def _tensor_parallel(step: Step, way: Way) -> list[Collective]:
    """Sums over "model" of what each device has a part of: two forward and two backward a block, and the ends."""
    described, config = step.described, step.described.config
    rows = step.rows // way.data
    wide = itemsize(step.dtype)
    stream = rows * step.length * step.width * wide
    found: list[Collective] = []
    only = places(described)
    passes = 2 if step.job.remat else 1  # forward sums of a block that is computed again

    def sums(what: str, tensors: int, launches: int, size: int = stream, kind: str = "all-reduce") -> None:
        found.append(Collective(kind, "model", what, tensors, tensors * size, launches))

    for blocks, cross in stacks(described):
        for index, block in enumerate(blocks):
            few = only if index == len(blocks) - 1 else None
            out = stream if few is None else rows * few * step.width * wide
            attends = [block.attention] + ([block.cross_attention] if cross else [])
            for layer in attends:
                divides = layer._kv_heads % way.model == 0
                sums("attention, forward", passes, passes, out)
                sums("queries' input, backward", 1, 1, out)
                if divides:
                    sums("keys' and values' inputs, backward", 2, 0)
                else:
                    found += _uneven_heads(step, way, layer, rows)
            feed = block.feed_forward
            if isinstance(feed, MixtureOfExperts):
                found += _split_experts(step, way, feed)
            else:
                sums("feed-forward, forward", passes, passes, out)
                sums("feed-forward, backward", 2 if getattr(feed, "gated", False) else 1, 1, out)
    vocabulary = config.vocabulary_size
    if vocabulary and vocabulary % way.model == 0:
        sums("embedded tokens", 2 if config.kind == "encoder_decoder" else 1, 1)
        if isinstance(described.model, LanguageModel):
            chunks = step.chunks(way.data)
            sums("states before the vocabulary, backward", 1, chunks)
            sums("maximum, sum and label's logit", 3, 2 * chunks, rows * step.length * 4)
    if getattr(described.model, "head", None) is not None and isinstance(described.model, LanguageModel):
        sums("masked tokens' head, forward", 1, 1, kind="all-gather")
        sums("masked tokens' head, backward", 1, 1)
        sums("masked tokens' head, its norm", 6, 3, rows * step.length * 4)
    return found


def _uneven_heads(step: Step, way: Way, layer: Any, rows: int) -> list[Collective]:
    """Of key and value heads that the devices do not divide: XLA splits them as far as they go, and sums and gathers."""
    common = math.gcd(layer._kv_heads, way.model)
    size = rows * step.length * layer._kv_heads * layer._head_dim * itemsize(step.dtype)
    found = [Collective("all-reduce", "model", "gradients of uneven keys and values", 2, 2 * size // common, 2)]
    if common > 1:
        kernel = step.width * layer._kv_heads * layer._head_dim * itemsize(step.dtype)
        found.append(Collective("all-gather", "model", "uneven keys and values", 2, 2 * size, 2))
        found.append(Collective("all-gather", "model", "kernels of uneven keys and values", 6, 6 * kernel, 6))
    return found


def _split_experts(step: Step, way: Way, layer: Any) -> list[Collective]:
    """Experts split over "model": each device computes what its experts make of all of its rows' tokens."""
    tokens = step.tokens // way.data
    stream, passes = tokens * step.width * itemsize(step.dtype), 2 if step.job.remat else 1
    return [
        Collective("all-reduce", "model", "experts, forward", passes, passes * stream, passes),
        Collective("all-reduce", "model", "experts, backward", 1, stream, 1),
        Collective("all-reduce", "model", "weights of a token's experts, backward", 1, tokens * layer.top_k * 4, 1),
    ]


def seconds(size: float, kind: str, devices: int, bandwidth: float) -> float:
    """Of a ring of so many devices: each sends 2 (n - 1) / n of the bytes to reduce, (n - 1) / n to gather or move."""
    factor = 2 if kind == "all-reduce" else 1
    return factor * (devices - 1) / devices * size / bandwidth


__all__ = ["BUCKET", "Collective", "collectives", "seconds"]
