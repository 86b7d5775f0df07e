"""Random numbers that differ from process to process, of generators that stay equal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_tfm.ops import backend, processes

APART = 0x1E3779B1  # odd: between the seeds of two processes


@contextlib.contextmanager
def own_draws(model: Any) -> Iterator[None]:
    """Within: a step of a model in which each of torch's processes draws numbers of its own, dropout's above all.

    Behind it the generators are as in all other processes, so that one of them can write down the state of all. Seeds of
    layers are moved by the process's index, and moved back; torch's own generators begin anew from a number that all
    processes draw from them, moved likewise, and go on from behind that number afterwards.
    """
    import torch

    shift = processes.index() * APART
    seeds = [state.value[:1] for state in _seed_states(model)]
    number = int(torch.randint(2**48, ()))
    before = torch.get_rng_state()
    device_before = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    torch.manual_seed(number + shift)
    _move(seeds, shift)
    try:
        yield
    finally:
        _move(seeds, -shift)
        torch.set_rng_state(before)
        if device_before is not None:
            torch.cuda.set_rng_state(device_before)


def _seed_states(model: Any) -> list[Any]:
    """The states, (2,), of the generators of all layers, and of Keras's global one."""
    found = {
        id(generator): generator.state
        for layer in model._flatten_layers()
        for generator in getattr(layer, "_seed_generators", ())
    }
    overall = backend.global_seed_generator()
    return [*found.values(), *([] if overall is None else [overall.state])]


def _move(seeds: list[Any], by: int) -> None:
    import torch

    if seeds and by:
        with torch.no_grad():
            torch._foreach_add_(seeds, by)
