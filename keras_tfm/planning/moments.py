"""What a training step holds beside weights and slots, moment by moment of its backward pass.

Activations are at their most when it begins, gradients of weights when it ends; most is held somewhere between.
"""

from __future__ import annotations

import math

from keras_tfm.models.language_models import LanguageModel
from keras_tfm.planning import activations
from keras_tfm.planning.described import Described, Variable, itemsize
from keras_tfm.planning.job import Job
from keras_tfm.planning.tensors import total
from keras_tfm.planning.ways import Way


def held(variables: tuple[Variable, ...], way: Way) -> int:
    """Bytes that one device has of variables."""
    return sum(math.prod(way.rules.shard(v.path, v.shape, v.axes)) * itemsize(v.dtype) for v in variables)


def moments(described: Described, job: Job, way: Way) -> list[dict[str, int]]:
    """Bytes on one device: while the loss's gradients are computed, each block's, the last block first, and at the end.

    Returns:
        Of each moment, by name. gradients: by weights, those that are there. activations: what the forward pass keeps
        (`activations.saved`) and is still to be read. recomputed: with recomputation, a block's second pass. passing:
        logits and their gradient, or the largest gradients by activations of a block.
    """
    trained = tuple(variable for variable in described.weights if variable.trainable)
    ends = total(activations.of_ends(described, job), way)
    blocks = [total(tensors, way) for tensors in activations.of_blocks(described, job)]
    again = [total(tensors, way) for tensors in activations.recomputed(described, job)]
    slopes = [total(tensors, way) for tensors in activations.slopes(described, job)]
    there = _of_tables(described, job, way)
    loss = total(activations.passing(described, job, way.data), way)
    found = [_moment(there, ends + sum(blocks), 0, loss)]
    layers = [layer for of_stack, _ in activations.stacks(described) for layer in of_stack]
    done: set[str] = set()
    for index in reversed(range(len(blocks))):
        paths = {variable.path for variable in layers[index].trainable_variables} - done  # blocks may share theirs
        done |= paths
        there += held(tuple(variable for variable in trained if variable.path in paths), way)
        found.append(_moment(there, ends + sum(blocks[: index + 1]), again[index], slopes[index]))
    return [*found, _moment(held(trained, way), 0, 0, 0)]  # those of look-ups and head, one


def _moment(gradients: int, kept: int, recomputed: int, passing: int) -> dict[str, int]:
    return {"gradients": gradients, "activations": kept, "recomputed": recomputed, "passing": passing}


def _of_tables(described: Described, job: Job, way: Way) -> int:
    """Gradients by what is as long as the vocabulary, which are there from the beginning.

    Those of look-ups begin as zeros. The head's is computed first, and is of its own even where it has the same table; the
    chunked loss's is one of its tensors.
    """
    model = described.model
    is_head = isinstance(model, LanguageModel) and job.loss == "dense"
    found = 0
    for variable in described.weights:
        if not variable.trainable or "vocab" not in (variable.axes or ()) or len(variable.shape) < 2:
            continue
        looked_up = variable.path in described.tables
        times = int(looked_up) + int(is_head and (described.config.tie_embeddings or not looked_up))
        shape = way.unsplit.shard(variable.path, variable.shape, variable.axes)
        found += times * math.prod(shape) * itemsize(variable.dtype)
    return found


__all__ = ["held", "moments"]
