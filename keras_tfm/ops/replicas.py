"""The replicas of `tf.distribute` that share a training step: how many there are, which one this is, sums over them.

Within a step each replica has its part of the batch and adds its gradients to the others'. What is a mean over the whole
batch must therefore be divided by the whole batch's weight, and what is random must know where it is drawn.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_tfm.ops.backend import NAME, Tensor


def _context() -> Any:
    """The replica's, where several share a step; None on other backends, outside of a step, and for one replica."""
    if NAME != "tensorflow":
        return None
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return None
    context = tf.distribute.get_replica_context()
    return context if context is not None and context.num_replicas_in_sync > 1 else None


def expected() -> bool:
    """Whether this is the scope of a strategy, outside of a step too."""
    if NAME != "tensorflow":
        return False
    import tensorflow as tf

    return bool(tf.distribute.has_strategy())


def count() -> int:
    """How many replicas share this step; 1 outside of one."""
    context = _context()
    return 1 if context is None else int(context.num_replicas_in_sync)


def index() -> Tensor | None:
    """Which replica this is, a scalar int32 from 0; None where there are no others."""
    context = _context()
    if context is None:
        return None
    return ops.cast(context.replica_id_in_sync_group, "int32")


def summed(x: Tensor) -> Tensor:
    """The sum of x over all replicas, through which no gradient flows; x where there are no others."""
    context = _context()
    if context is None:
        return x
    import tensorflow as tf

    return tf.stop_gradient(context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(x)))


def summed_gradients(gradients: list) -> list:
    """Each gradient's sum over all replicas, as a tensor; they themselves where there are no others."""
    context = _context()
    if context is None:
        return gradients
    import tensorflow as tf

    given = [gradient for gradient in gradients if gradient is not None]
    found = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given) if given else [])
    return [None if gradient is None else next(found) for gradient in gradients]
