"""The replicas of `tf.distribute`, or processes of torch, that share a training step: how many, which, sums over them.

Within a step each replica has its part of the batch and adds its gradients to the others'; torch's processes average them.
What is a mean over the whole batch must therefore be divided by the whole batch's weight, and what is random must know
where it is drawn.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_tfm.ops import processes
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
    """How many replicas, or processes of torch, share this step; 1 outside of one."""
    if processes.is_in_step():
        return processes.count()
    context = _context()
    return 1 if context is None else int(context.num_replicas_in_sync)


def addends() -> int:
    """How many losses add up to that of the whole batch: all replicas', which add gradients; 1 where these are averaged."""
    return 1 if processes.is_in_step() else count()


def index() -> Tensor | None:
    """Which replica of `tf.distribute` this is, a scalar int32 from 0; None where there are no others."""
    context = _context()
    if context is None:
        return None
    return ops.cast(context.replica_id_in_sync_group, "int32")


def summed(x: Tensor) -> Tensor:
    """The sum of x over all replicas, through which no gradient flows; x where there are no others."""
    if processes.is_in_step():
        return processes.summed(x)
    context = _context()
    if context is None:
        return x
    import tensorflow as tf

    return tf.stop_gradient(context.all_reduce(tf.distribute.ReduceOp.SUM, tf.stop_gradient(x)))


def summed_gradients(gradients: list) -> list:
    """Each gradient's sum over all replicas of `tf.distribute`, as a tensor; they themselves where there are no others."""
    context = _context()
    if context is None:
        return gradients
    import tensorflow as tf

    given = [gradient for gradient in gradients if gradient is not None]
    found = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, given) if given else [])
    return [None if gradient is None else next(found) for gradient in gradients]
