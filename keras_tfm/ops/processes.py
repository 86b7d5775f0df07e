"""The processes that train one model together: how many there are, which this is, what they tell each other.

On JAX they are one mesh, whose programs communicate by themselves. On torch each computes with its part of a batch, and
what must be of the whole is summed here, through `torch.distributed`.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_tfm.ops.backend import NAME, Tensor

_is_in_step = False  # of `shared_step`


def count() -> int:
    """How many processes are connected; 1 on TensorFlow."""
    if NAME == "jax":
        import jax

        return jax.process_count()
    return _group().get_world_size() if is_connected() else 1


def index() -> int:
    """Which one this is, from 0."""
    if NAME == "jax":
        import jax

        return jax.process_index()
    return _group().get_rank() if is_connected() else 0


def is_connected() -> bool:
    """Whether this is one of several processes of torch."""
    if NAME != "torch":
        return False
    group = _group()
    return group.is_available() and group.is_initialized() and group.get_world_size() > 1


def is_in_step() -> bool:
    """Whether processes of torch share the batch that is computed now."""
    return _is_in_step


@contextlib.contextmanager
def shared_step(shares: bool = True) -> Iterator[None]:
    """Within: torch's processes share a batch, so that losses are of all of it; or, if `shares` is False, they do not."""
    global _is_in_step
    before, _is_in_step = _is_in_step, shares and is_connected()
    if _is_in_step:
        _be_left_by_compilers()
    try:
        yield
    finally:
        _is_in_step = before


def summed(x: Tensor) -> Tensor:
    """The sum of x over torch's processes, a new tensor without gradient."""
    return _sum(x)


def _summed(x: Tensor) -> Tensor:
    total = x.detach().clone()
    with waiting():
        _group().all_reduce(total)
    return total


_sum: Any = _summed  # as it is left by compilers, from the first step on


def any_of(told: bool) -> bool:
    """Whether this was told to any of torch's processes; all of them ask."""
    if not is_connected():
        return told
    import torch

    return bool(summed(torch.tensor(float(told))) > 0)


def gathered(value: Any) -> list[Any]:
    """What each process gives, in their order; anything that can be pickled."""
    if count() == 1:
        return [value]
    if NAME == "jax":
        from jax.experimental import multihost_utils

        own = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = multihost_utils.process_allgather(np.array([own.size], np.int32))[:, 0]
        rows = multihost_utils.process_allgather(np.pad(own, (0, lengths.max() - own.size)))
        return [pickle.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
    found: list[Any] = [None] * count()
    with waiting():
        _group().all_gather_object(found, value)
    return found


def has_whole(x: Tensor) -> bool:
    """Whether this process has all of an array, of which JAX's may have parts on other hosts."""
    return NAME != "jax" or x.is_fully_addressable or x.is_fully_replicated


def is_shared(x: Tensor) -> bool:
    """Whether an array is of several of JAX's processes, each of which has all or a part of it."""
    return NAME == "jax" and not x.is_fully_addressable


def whole(x: Tensor) -> np.ndarray:
    """All of an array or a variable, in NumPy; where it is split over hosts, all of them ask."""
    x = keras.ops.convert_to_tensor(x)
    if has_whole(x):
        return keras.ops.convert_to_numpy(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def take_firsts(tensors: Sequence[Tensor]) -> None:
    """Give these tensors, of the same shapes in all of torch's processes, the values that the first process has."""
    with waiting():
        for tensor in tensors:
            # Of what is laid out otherwise, the memory is not the rows.
            value = tensor.detach().contiguous()
            _group().broadcast(value, src=0)
            tensor.detach().copy_(value)


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Within: errors of communication say what they mean."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"Process {index()} of {count()} waited for the others in vain: one of them has ended, or has not come within "
            "the time that distribution.initialize(collective_timeout=...) sets. What it said is in its own output. All "
            f"processes must call fit, evaluate and predict alike. ({error})"
        ) from error


def _group() -> Any:
    import torch

    return torch.distributed


def _be_left_by_compilers() -> None:
    """`torch.compile` leaves off before sums over processes, for it would take them for operations of its own."""
    global _sum
    if _sum is _summed:
        import torch

        _sum = torch.compiler.disable(_summed)
