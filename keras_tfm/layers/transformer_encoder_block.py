"""The encoder's block."""

from __future__ import annotations

from keras_tfm.layers.base import register
from keras_tfm.layers.transformer_block import TransformerBlock


@register
class TransformerEncoderBlock(TransformerBlock):
    """A transformer encoder block (Vaswani et al. 2017, 3.1): attention in both directions, then feed-forward.

    Args: those of `TransformerBlock`.

    Call arguments, all optional but the first:
        x: (batch, length, width), float.
        padding_mask: (batch, length), true = a token. Default: the mask that Keras attached to x, if any.
        attention_mask: (batch, length, length) or (batch, heads, length, length), true = may attend.
        segment_ids: (batch, length) int; packing: attention stays within equal ids.
        positions: (batch or 1, length) int. Default: counted over real tokens, anew in each segment.
        return_scores: Also return the attention weights, (batch, heads, length, length) float32.
        places: (batch, n) int, the tokens whose outputs are asked for; no more is computed than they need.

    Returns:
        (batch, length, width), or of `places` (batch, n, width); with return_scores, also the scores.

    Example:
        >>> block = keras_tfm.layers.TransformerEncoderBlock(num_heads=4, intermediate_dim=64, dropout=0.1)
        >>> block(keras.random.normal((2, 16, 32))).shape
        (2, 16, 32)
    """
