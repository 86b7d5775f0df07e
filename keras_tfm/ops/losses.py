"""Losses over tokens, in float32 under any dtype."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops.backend import NAME, Tensor


def token_crossentropy(
    labels: Tensor, logits: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy per token, where negative labels (-100, -1) mean "no label here".

    Args:
        labels: (...) int in [0, classes), or negative.
        logits: (..., classes), float.
        label_smoothing: The share of each label that is spread over all classes (Szegedy et al. 2016, section 7).
        z_loss: Factor on the square of the logarithm of the softmax's normalizer, which is added and keeps logits from
            drifting (Chowdhery et al. 2022, section 5: 1e-4).

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
    if label_smoothing or z_loss:
        normalizer = ops.logsumexp(logits, axis=-1)
        if label_smoothing:
            spread = normalizer - ops.mean(logits, axis=-1)
            losses = (1.0 - label_smoothing) * losses + label_smoothing * spread
        if z_loss:
            losses = losses + z_loss * ops.square(normalizer)
    return ops.where(counted, losses, 0.0), weights
