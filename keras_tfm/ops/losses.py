"""Losses over tokens, in float32 under any dtype."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops.backend import NAME, Tensor


def token_crossentropy(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy per token, where negative labels (-100, -1) mean "no label here".

    Args:
        labels: (...) int in [0, classes), or negative.
        logits: (..., classes), float.

    Returns:
        Losses (...) float32, 0 where there is no label; and where there is one, (...) float32 of 0 and 1.
    """
    labels = ops.cast(labels, "int32")
    counted = labels >= 0
    weights = ops.cast(counted, "float32")
    safe = ops.where(counted, labels, 0)
    logits = ops.cast(logits, "float32")
    if NAME == "tensorflow":
        import tensorflow as tf

        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(safe, logits)
    elif NAME == "torch":
        import torch

        flat = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), safe.reshape(-1).long(), reduction="none"
        )
        losses = flat.reshape(safe.shape)
    else:
        import jax

        chosen = ops.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
        losses = jax.nn.logsumexp(logits, axis=-1) - chosen
    return ops.where(counted, losses, 0.0), weights
