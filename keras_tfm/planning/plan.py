"""The plan: what a model needs on so many devices, which meshes hold it, and how it grows."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras

from keras_tfm.planning import advice, memory, table
from keras_tfm.planning.collectives import Collective, collectives
from keras_tfm.planning.described import Described, describe
from keras_tfm.planning.devices import Device, find
from keras_tfm.planning.job import Job
from keras_tfm.planning.units import bytes_of
from keras_tfm.planning.ways import Way, parse, refusal, ways
from keras_tfm.planning.work import flops, times

RESERVED = 0.08  # share of a device's memory that the runtime and its gaps take


@dataclass(frozen=True)
class MeshPlan:
    """A model on one mesh.

    Attributes:
        way: The mesh.
        memory: Bytes on one device in a training step, by part (`planning.memory.PARTS`).
        generation: Bytes on one device while generating, by part; empty where nothing is generated.
        collectives: Of one training step.
        seconds: "compute", "communication" and "step".
        flops: Of one device in a step.
        fits: All that is needed at once is less than what a device has.
        refused: Why the model cannot be laid out so; None where it can. The rest is empty then.
    """

    way: Way
    memory: dict[str, int] = field(default_factory=dict)
    generation: dict[str, int] = field(default_factory=dict)
    collectives: tuple[Collective, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    fits: bool = False
    refused: str | None = None

    @property
    def bytes(self) -> int:
        """On one device, at once: the larger of training and generating."""
        return max(sum(self.memory.values()), sum(self.generation.values()))

    @property
    def moved(self) -> int:
        """Bytes of all collectives of a step, as they come out on one device."""
        return sum(collective.bytes for collective in self.collectives)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "mesh": {"data": self.way.data, "model": self.way.model},
            "fsdp": self.way.fsdp,
            "fits": self.fits,
            "refused": self.refused,
            "bytes": self.bytes,
            "memory": self.memory,
            "generation": self.generation,
            "collectives": [dataclasses.asdict(collective) for collective in self.collectives],
            "collective_bytes": self.moved,
            "flops": self.flops,
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Plan:
    """What `plan` found. Printed, a table with its assumptions.

    Attributes:
        described: The model.
        job: The step.
        device: What it runs on.
        budget: Bytes of a device that a plan may take.
        meshes: Ranked: those that fit by time, then those that do not by bytes, then those that are refused.
    """

    described: Described
    job: Job
    device: Device
    budget: int
    meshes: tuple[MeshPlan, ...]

    @property
    def best(self) -> MeshPlan | None:
        """The fastest that fits; None where none does."""
        return self.meshes[0] if self.meshes and self.meshes[0].fits else None

    @property
    def assumptions(self) -> list[str]:
        """What the figures rest on, a sentence each."""
        return advice.assumptions(self)

    @property
    def advice(self) -> list[str]:
        """Where nothing fits: the nearest miss, and what would make it fit."""
        return advice.advice(self)

    def on(self, way: Way, job: Job | None = None) -> MeshPlan:
        """The same model on another mesh, or in another step."""
        return on(self.described, job or self.job, way, self.device, self.budget)

    def scaling(self, most: int = 4096) -> dict[str, list[dict[str, Any]]]:
        """How each way to lay the model out grows from one device to `most`, as many rows a device: weak scaling.

        Returns:
            Name of the way to points {"devices", "bytes", "tokens_per_second", "ideal", "fits"}.
        """
        from keras_tfm.planning.scaling import scaling

        return scaling(self, most)

    def plot(self, path: str | Path, most: int = 4096) -> None:
        """Write `scaling` as a picture, PNG or what the path's ending says.

        Raises:
            ImportError: without matplotlib; names the extra.
        """
        from keras_tfm.planning.plot import plot

        plot(self, path, most)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "model": self.described.name,
            "class": type(self.described.model).__name__,
            "parameters": self.described.parameters,
            "job": dataclasses.asdict(self.job) | {"optimizer": str(self.job.optimizer)},
            "device": dataclasses.asdict(self.device),
            "budget": self.budget,
            "meshes": [mesh.to_dict() for mesh in self.meshes],
            "advice": self.advice,
            "assumptions": self.assumptions,
        }

    def __str__(self) -> str:
        return table.text(self)


def on(described: Described, job: Job, way: Way, device: Device, budget: int) -> MeshPlan:
    """A model's `MeshPlan` on one mesh."""
    refused = refusal(described, way, job.batch_size)
    if refused is not None:
        return MeshPlan(way, refused=refused)
    moved = collectives(described, job, way)
    found = MeshPlan(
        way,
        memory.training(described, job, way),
        memory.generating(described, job, way),
        tuple(moved),
        times(described, job, way, device, moved),
        flops(described, job, way),
    )
    return dataclasses.replace(found, fits=found.bytes <= budget)


def plan(
    config: Any,
    *,
    devices: int = 1,
    memory: int | str | None = None,
    device: str = "H100",
    mesh: str | dict[str, int] | None = None,
    task: str | None = None,
    batch_size: int | None = None,
    sequence_length: int | None = None,
    policy: str | None = None,
    optimizer: Any = "adamw",
    jit_compile: bool = True,
    remat: bool = False,
    loss: str = "dense",
    kernel: str = "dense",
    accumulation: int = 1,
    cache_tokens: int | None = None,
    cache_dtype: str | None = None,
    flops: float | None = None,
    bandwidth: int | str | None = None,
    network: int | str | None = None,
    utilization: float = 0.4,
    latency: float = 1e-5,
    overlap: bool = False,
) -> Plan:
    """What training a model takes on so many devices: bytes, collectives, and an estimate of the time, mesh by mesh.

    Nothing is allocated, and the devices need not be there. Works on every backend; the meshes are those of
    `keras_tfm.distribution`, on JAX.

    Args:
        config: A directory with a config.json in Hugging Face's format; a JSON file of `TransformerConfig`'s fields; a
            .keras file; a builder's size such as "gpt:small"; a `TransformerConfig`; or a model.
        devices: How many there are.
        memory: Of each, such as "80GiB". Default: the device's.
        device: A key of `planning.devices.DEVICES`, for memory, rate and bandwidth.
        mesh: The only one to look at, such as "data=2,model=4". Default: all that there are.
        task: Our class, such as "TextClassifier". Default: the config's own, else that of pretraining.
        batch_size: Rows a step, of all devices together. Default: 8 a device.
        sequence_length: Tokens a row. Default: the config's max_sequence_length, at most 2048.
        policy: Keras's dtype policy. Default: "mixed_bfloat16", or a model's own.
        optimizer: A name that Keras knows, or an optimizer that is not built.
        jit_compile: XLA compiles the whole step, as on JAX, and keeps less for the gradients. False: all that
            differentiation keeps.
        remat: As `recompute_blocks`.
        loss: "dense", or "chunked" for `loss="linear_crossentropy"`.
        kernel: "dense" attention, or "fused" for a kernel that keeps no probabilities, as "blockwise" does not either.
        accumulation: The optimizer's gradient_accumulation_steps.
        cache_tokens: Also plan for generating: tokens that each of the batch's rows may come to.
        cache_dtype: Of that cache. Default: the policy's compute dtype.
        flops: Operations a second of a device, in place of the data sheet's.
        bandwidth, network: Bytes a second among a group's devices and beyond it, such as "450GB".
        utilization: Share of the rate at which the devices compute.
        latency: Seconds a collective.
        overlap: Sums of gradients, and gathered weights, move while the devices compute.

    Returns:
        A `Plan`: print it, or take its `meshes`, `to_dict()`, `scaling()`, `plot(path)`.

    Raises:
        ValueError: for arguments that mean nothing, naming them.
        FileNotFoundError: for a directory without a config.json.

    Example:
        >>> print(keras_tfm.distribution.plan("gpt:xl", devices=8, memory="80GiB", remat=True))
    """
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        raise ValueError(f"devices must be a positive integer; got {devices!r}.")
    if isinstance(config, keras.Model):
        if policy is not None:
            raise ValueError(f"policy={policy!r} is for descriptions; a model has its own.")
    elif policy is None:
        policy = "mixed_bfloat16"
    what = find(device, memory=memory, flops=flops, bandwidth=bandwidth, network=network)
    chosen = None if mesh is None else parse(mesh, devices)
    given: dict[str, Any] = {
        "batch_size": 8 * devices if batch_size is None else batch_size,
        "optimizer": optimizer,
        "jit_compile": jit_compile,
        "remat": remat,
        "loss": loss,
        "kernel": kernel,
        "accumulation": accumulation,
        "cache_tokens": cache_tokens,
        "cache_dtype": cache_dtype,
        "utilization": utilization,
        "latency": latency,
        "overlap": overlap,
    }
    Job(**given, sequence_length=1 if sequence_length is None else sequence_length)  # refuses before a model is built
    described = describe(config, task, policy, optimizer, accumulation)
    length = _length(described, sequence_length)
    job = Job(**given, sequence_length=length, policy=described.backbone.dtype_policy.name)
    _check_loss(described, job)
    budget = math.floor(bytes_of(what.memory) * (1 - RESERVED))
    asked = [way for way in ways(devices) if chosen is None or (way.data, way.model) == chosen]
    found = [on(described, job, way, what, budget) for way in asked]
    ranked = sorted(
        found,
        key=lambda m: (m.refused is not None, not m.fits, m.seconds["step"] if m.fits else m.bytes, m.way.fsdp),
    )
    return Plan(described, job, what, budget, tuple(ranked))


def _length(described: Described, given: int | None) -> int:
    config = described.config
    if config.image_shape is not None:
        if given is not None:
            raise ValueError(f"sequence_length={given} has no effect on a model of images; its config says its length.")
        return config.num_positions or 1
    most = config.max_sequence_length
    if given is None:
        return min(most or 2048, 2048)
    if most is not None and given > most and config.position_kind == "learned":
        raise ValueError(f"sequence_length={given} is more than the model's max_sequence_length={most}.")
    return given


def _check_loss(described: Described, job: Job) -> None:
    from keras_tfm.models.language_models import LanguageModel

    if job.loss == "chunked" and not isinstance(described.model, LanguageModel):
        raise ValueError(
            f"loss='chunked' is of language models; this is a {type(described.model).__name__}. Leave it out."
        )
    if job.cache_tokens is not None and described.config.kind == "encoder":
        raise ValueError(f"cache_tokens={job.cache_tokens} is for models that generate; this one is an encoder.")
