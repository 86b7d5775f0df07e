"""Gradients clipped by their norm, where TensorFlow would take another one."""

from __future__ import annotations

from typing import Any

from keras_tfm.ops.backend import NAME


def clip_summed(optimizer: Any) -> bool:
    """Let this optimizer clip by the norm of gradients whose rows are summed.

    TensorFlow keeps the gradient of a lookup as a row for each token looked up, and takes the norm of these rows before it
    sums those of equal tokens: with an embedding, `clipnorm` and `global_clipnorm` clip by a number that is not the norm.

    Returns:
        Whether the optimizer was changed: it is on TensorFlow, if it clips by a norm.
    """
    norms = (getattr(optimizer, name, None) for name in ("clipnorm", "global_clipnorm"))
    if NAME != "tensorflow" or not any(norms):
        return False
    if not isinstance(getattr(optimizer, "_clip_gradients", None), _Summed):
        optimizer._clip_gradients = _Summed(optimizer._clip_gradients)
    return True


class _Summed:
    """The optimizer's clipping, behind a sum of equal tokens' rows. Copies, which Keras makes by config, are without."""

    def __init__(self, clip: Any):
        self.clip = clip

    def __call__(self, grads: list) -> list:
        import tensorflow as tf

        return self.clip([tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads])
