"""Floating-point operations of a training step, and the time that it takes."""

from __future__ import annotations

import math

from keras_tfm.layers.mixture_of_experts import MixtureOfExperts
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.planning.activations import Step, stacks
from keras_tfm.planning.collectives import Collective, seconds
from keras_tfm.planning.described import Described
from keras_tfm.planning.devices import Device
from keras_tfm.planning.job import Job
from keras_tfm.planning.ways import Way


def flops(described: Described, job: Job, way: Way) -> float:
    """Operations of one device in a training step: two for each weight and token forward, four backward.

    As Kaplan et al. 2020 (section 2.1) count them, with the products of attention in full, whether or not it is causal,
    and the vocabulary's product, which the tied table gives. Blocks that are computed again add their forward pass.
    Norms, activations, look-ups and the optimizer are left out.
    """
    step = Step(described, job)
    passes = 4 if job.remat else 3  # forward, twice as much backward
    of_blocks = 0.0
    for blocks, cross in stacks(described):
        for block in blocks:
            attends = [block.attention] + ([block.cross_attention] if cross else [])
            for layer in attends:
                of_blocks += 4.0 * step.length * layer.num_heads * layer._head_dim
            feed = block.feed_forward
            for variable in block.trainable_variables:
                if len(variable.shape) < 2:
                    continue
                axes = getattr(variable, "logical_axes", None) or ()
                if "experts" in axes and isinstance(feed, MixtureOfExperts):
                    of_blocks += 2.0 * math.prod(variable.shape) * feed.top_k / feed.num_experts
                else:
                    of_blocks += 2.0 * math.prod(variable.shape)
    found = passes * of_blocks * step.tokens / way.devices
    config = described.config
    if isinstance(described.model, LanguageModel) and config.vocabulary_size:
        head = 6.0 * step.tokens * config.vocabulary_size * (config.embedding_dim or step.width)
        splits = way.model if config.vocabulary_size % way.model == 0 else 1
        found += head / splits / way.data
    return found


def times(described: Described, job: Job, way: Way, device: Device, moved: list[Collective]) -> dict[str, float]:
    """Seconds of a step: "compute", "communication", and the "step" that they make.

    Compute is `flops` at a share of the device's rate. Collectives follow one another, with a latency each, as rings
    within a group of devices and then, where there are more groups, among those that have the same part in each. With
    `job.overlap`, those that need not be waited for hide behind the backward pass, two thirds of the computing.
    """
    compute = flops(described, job, way) / (device.flops * job.utilization)
    waiting = hidden = 0.0
    for collective in moved:
        size, kind = collective.bytes, collective.kind
        count = way.data if collective.axis == "data" else way.model
        room = device.group // way.model if collective.axis == "data" else device.group  # "model" is the inner axis
        inside = max(1, min(count, room))
        took = seconds(size, kind, inside, device.bandwidth)
        took += seconds(size / inside, kind, math.ceil(count / inside), device.network)
        took += collective.launches * job.latency
        if job.overlap and collective.hideable:
            hidden += took
        else:
            waiting += took
    exposed = max(0.0, hidden - compute * 2 / 3)
    return {"compute": compute, "communication": waiting + hidden, "step": compute + waiting + exposed}
