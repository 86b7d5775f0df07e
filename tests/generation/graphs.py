"""Of torch's recorded graphs: tensors to record with, and what is in a recorded one."""

from __future__ import annotations

import torch

from keras_tfm.generation.recorded import Recorded


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def record(function, weights, state, **options) -> Recorded:
    return Recorded(function, list(range(len(weights))), weights, state, [], **options)


def count(module, target) -> int:
    return sum(node.target is target for node in module.graph.nodes)
