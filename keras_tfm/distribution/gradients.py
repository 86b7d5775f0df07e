"""Gradients of torch's processes, averaged while they are computed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from keras_tfm.ops import processes

BUCKET = 25 * 2**20  # bytes; Li et al. 2020 (PyTorch Distributed), section 5.4
FIRST = 2**20  # of the gradients that come first, so that communication begins early


class AveragedGradients:
    """Puts the mean over all processes in place of each gradient, within `backward`.

    As in Li et al. 2020 (arXiv:2006.15704), section 3.2: gradients are collected in buckets, in the reverse order of the
    variables, and a full one is on its way while others are computed. Buckets go in the same order in every process. A
    variable that has no gradient here takes part with zeros, and gets the mean if it has one elsewhere.

    Args:
        variables: The trainable variables of a model, of the same shapes and in the same order in every process.
        bucket: Bytes of a bucket.
    """

    def __init__(self, variables: Sequence[Any], bucket: int = BUCKET):
        parameters = [variable.value for variable in reversed(list(variables))]
        self._of = tuple(map(id, reversed(parameters)))
        self._buckets = [_Bucket(part) for part in _parts(parameters, bucket)]
        self._is_running, self._is_under_way, self._passes, self._next = False, False, 0, 0
        self._handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(self._came, box, place))
            for box in self._buckets
            for place, parameter in enumerate(box.parameters)
        ]

    def is_of(self, variables: Sequence[Any]) -> bool:
        """Whether these are the variables that it was made for."""
        return self._of == tuple(id(variable.value) for variable in variables)

    def close(self) -> None:
        """Leave the variables alone from now on."""
        for handle in self._handles:
            handle.remove()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Within: one training step, with one backward pass.

        Raises:
            RuntimeError: for several backward passes, or none; if the other processes do not answer.
        """
        self._is_running, self._passes = True, 0
        try:
            yield
        finally:
            self._is_running = self._is_under_way = False
            for box in self._buckets:
                box.here.clear()
        if self._passes != 1:
            raise RuntimeError(
                f"A training step that processes share has one backward pass; this one had {self._passes}. Write "
                "train_step so, or train in one process."
            )

    def _came(self, box: _Bucket, place: int, parameter: Any) -> None:
        """A gradient is there."""
        if not self._is_running:
            return
        if not self._is_under_way:
            import torch

            self._passes += 1
            self._next, self._is_under_way = 0, True
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        box.put(place)
        while self._next < len(self._buckets) and self._buckets[self._next].is_full:
            self._send()

    def _send(self) -> None:
        self._buckets[self._next].send()
        self._next += 1

    def _finish(self) -> None:
        """The backward pass is over: send what has not come, and take what has arrived."""
        while self._next < len(self._buckets):
            self._send()
        for box in self._buckets:
            box.take()
        self._is_under_way = False


class _Bucket:
    """Gradients of some variables in one stretch of memory, behind them for each whether it has come."""

    def __init__(self, parameters: list[Any]):
        import torch

        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        first = parameters[0]
        self.memory = torch.zeros(sum(sizes) + len(sizes), dtype=first.dtype, device=first.device)
        *views, self.flags = self.memory.split([*sizes, len(sizes)])
        self.views = [view.view(parameter.shape) for view, parameter in zip(views, parameters, strict=True)]
        self.here: set[int] = set()
        self.work: Any = None

    @property
    def is_full(self) -> bool:
        return len(self.here) == len(self.parameters)

    def put(self, place: int) -> None:
        import torch

        parameter = self.parameters[place]
        with torch.no_grad():
            self.views[place].copy_(parameter.grad)
        parameter.grad = None  # twice is too much memory
        self.here.add(place)

    def send(self) -> None:
        """Begin the sum over processes, of their shares of the mean."""
        import torch

        with torch.no_grad():
            for place, view in enumerate(self.views):
                if place not in self.here:
                    view.zero_()
            self.flags.fill_(1.0)
            if not self.is_full:
                self.flags[[place for place in range(len(self.views)) if place not in self.here]] = 0.0
            self.memory.div_(processes.count())
        with processes.waiting():
            self.work = torch.distributed.all_reduce(self.memory, async_op=True)

    def take(self) -> None:
        """Wait for the sum, and put it in place of the gradients."""
        with processes.waiting():
            self.work.wait()
        self.work = None
        # Reading waits for the device: only where it must be known whether others have what is missing here.
        elsewhere = [] if self.is_full else self.flags.tolist()
        for place, (parameter, view) in enumerate(zip(self.parameters, self.views, strict=True)):
            if place in self.here or elsewhere[place] > 0:
                parameter.grad = view
        self.here.clear()


def _parts(parameters: list[Any], bucket: int) -> Iterator[list[Any]]:
    """Neighbours of one dtype and device, of at most so many bytes together; the first part is small."""
    part: list[Any] = []
    size, limit = 0, min(FIRST, bucket)
    for parameter in parameters:
        own = parameter.numel() * parameter.element_size()
        other = part and (part[0].dtype, part[0].device) != (parameter.dtype, parameter.device)
        if part and (other or size + own > limit):
            yield part
            part, size, limit = [], 0, bucket
        part.append(parameter)
        size += own
    if part:
        yield part
