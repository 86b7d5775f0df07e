"""Gradients clipped by what they are, where Keras on TensorFlow would clip something else."""

from __future__ import annotations

from typing import Any

from keras_tfm.ops import replicas
from keras_tfm.ops.backend import NAME

CLIPS = ("clipnorm", "global_clipnorm", "clipvalue")


def clip_summed(optimizer: Any) -> bool:
    """Let this optimizer clip gradients whose rows are summed, over all replicas.

    TensorFlow keeps the gradient of a lookup as a row for each token looked up, and takes the norm of these rows before it
    sums those of equal tokens: with an embedding, `clipnorm` and `global_clipnorm` clip by a number that is not the norm.
    Under `tf.distribute`, Keras clips each replica's gradients and then adds them up; here they are added up first.

    There, rows are summed without clipping too: Keras's Adam would square each of an embedding's rows, and add the squares.

    Returns:
        Whether the optimizer was changed: it is on TensorFlow, if it clips or is made in a strategy's scope.
    """
    limits = (getattr(optimizer, name, None) for name in CLIPS)
    if NAME != "tensorflow" or not (any(limits) or replicas.expected()):
        return False
    if not isinstance(getattr(optimizer, "_clip_gradients", None), _Summed):
        optimizer._clip_gradients = _Summed(optimizer._clip_gradients)
        optimizer._all_reduce_sum_gradients = _Reduced(optimizer._all_reduce_sum_gradients)
    return True


class _Summed:
    """The optimizer's clipping, behind a sum of equal tokens' rows. Copies, which Keras makes by config, are without."""

    def __init__(self, clip: Any):
        self.clip = clip

    def __call__(self, grads: list) -> list:
        import tensorflow as tf

        summed = [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        return self.clip(replicas.summed_gradients(summed))


class _Reduced:
    """In place of the optimizer's sum over replicas, behind which `_Summed` has been already."""

    def __init__(self, reduce: Any):
        self.reduce = reduce

    def __call__(self, pairs: Any) -> Any:
        return self.reduce(pairs) if replicas.count() == 1 else list(pairs)
