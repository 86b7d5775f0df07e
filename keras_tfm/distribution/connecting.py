"""Processes of torch connected, each with a device of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import keras

from keras_tfm.ops import backend, processes


def connect(coordinator: str, count: int, index: int, timeout: float, collective_timeout: float | None) -> None:
    """Connect this process to the others by `torch.distributed`, and give all of them the first's random seed.

    By nccl between GPUs, of which each process takes the one of its place on its machine; by gloo between CPUs. Told "cpu"
    by KERAS_TORCH_DEVICE, Keras computes there.

    Args:
        coordinator: "host:port" of the first process, which is free there.
        count: How many processes there are.
        index: Which one this is.
        timeout: Seconds to wait for the others now.
        collective_timeout: Seconds to wait for them later. Default: torch's.

    Raises:
        ValueError: if there is no GPU for this process.
    """
    import torch
    from torch import distributed

    on_gpu = backend.device() == "gpu"
    if on_gpu:
        torch.cuda.set_device(local_device(torch.cuda.device_count(), index))
    host, _, port = coordinator.rpartition(":")
    # Not by an address: under torchrun that would be taken for the store of its own.
    store = distributed.TCPStore(host, int(port), count, index == 0, timedelta(seconds=timeout))
    options: dict[str, Any] = {}
    if collective_timeout is not None:
        options["timeout"] = timedelta(seconds=collective_timeout)
    kind = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    distributed.init_process_group(kind, store=store, rank=index, world_size=count, **options)
    atexit.register(_disconnect)
    share_seed()


def share_seed() -> None:
    """Give all processes the random seed of the first, as `keras.distribution.initialize` does on JAX."""
    own = backend.random_seed()
    seed = processes.gathered(random.randint(1, 10**9) if own is None else own)[0]
    if seed != own:
        keras.utils.set_random_seed(seed)


def local_device(devices: int, index: int, environ: Mapping[str, str] | None = None) -> int:
    """Which of the GPUs that it sees a process takes.

    The only one, or the one of its place among the machine's processes: LOCAL_RANK (torchrun), SLURM_LOCALID (Slurm), else
    its index, counted round.

    Raises:
        ValueError: if there are more processes than GPUs, naming the variable.
    """
    given = os.environ if environ is None else environ
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in given and devices > 1:
            if int(given[name]) >= devices:
                raise ValueError(
                    f"{name}={given[name]}, and this process sees {devices} GPUs: start one process for each GPU."
                )
            return int(given[name])
    return index % devices


def _disconnect() -> None:
    from torch import distributed

    # After an error the others may wait for what never comes; the end of the process tells them.
    if distributed.is_initialized() and getattr(sys, "last_value", None) is None:
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()
