"""The decoder's block."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers.base import check_boolean, pack, register, release
from keras_tfm.layers.multi_head_cross_attention import MultiHeadCrossAttention
from keras_tfm.layers.transformer_block import TransformerBlock
from keras_tfm.ops import backend
from keras_tfm.ops.attention import check_mask
from keras_tfm.ops.places import at_places, masked_as


@register
class TransformerDecoderBlock(TransformerBlock):
    """A transformer decoder block (Vaswani et al. 2017, 3.1): causal self-attention, cross-attention if asked for,
    feed-forward.

    Args:
        num_heads, intermediate_dim: As of `TransformerBlock`.
        cross_attention: True, a dict of options of `MultiHeadCrossAttention`, or such a layer: attend to a context.
        norm, norm_placement, dropout: As of `TransformerBlock`.
        kwargs: All its other options, by name.

    Call arguments, all optional but the first:
        x: (batch, length, width), float.
        context: (batch, context_length, context_width), for cross-attention; left out where the cache holds it.
        padding_mask, attention_mask, segment_ids, positions: Of x, as in `TransformerEncoderBlock`.
        context_padding_mask: (batch, context_length), true = a token. Default: the mask that Keras attached to context.
        context_segment_ids: (batch, context_length) int; packing, together with segment_ids.
        cache: From `make_cache`; x then holds the next tokens.
        return_scores: Also return the attention weights: (batch, heads, length, length) float32, or with cross-attention
            a dict of these ("attention") and those over the context ("cross_attention").
        places: (batch, n) int, the tokens of x whose outputs are asked for; no more is computed than they need.

    Returns:
        (batch, length, width), or of `places` (batch, n, width); with a cache, also the updated cache; with
        return_scores, then the scores.

    Example:
        >>> block = keras_tfm.layers.TransformerDecoderBlock(num_heads=4, intermediate_dim=64, cross_attention=True)
        >>> block(keras.random.normal((2, 8, 32)), keras.random.normal((2, 20, 48))).shape
        (2, 8, 32)
    """

    causal = True
    branches = ("attention", "cross_attention", "feed_forward")

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        cross_attention: Any = False,
        norm: Any = "layer_norm",
        norm_placement: str | dict[str, str] = "pre",
        dropout: float = 0.0,
        **kwargs,
    ):
        super().__init__(num_heads, intermediate_dim, norm, norm_placement, dropout, **kwargs)
        if cross_attention and self.parallel:
            raise ValueError("parallel has no place for cross_attention; leave one of them out.")
        if isinstance(norm_placement, dict) and "cross_attention" in norm_placement and not cross_attention:
            raise ValueError("norm_placement names cross_attention, which this block has not.")
        if not isinstance(cross_attention, keras.layers.Layer):
            self._given["cross_attention"] = cross_attention
        options = None if cross_attention is True else cross_attention
        self.cross_attention: Any = None
        self.cross_attention_residual: Any = None
        if cross_attention:
            self.cross_attention = self._attention("cross_attention", options, MultiHeadCrossAttention)
            self.cross_attention_residual = self._residual("cross_attention")

    def build(self, x_shape, context_shape=None):
        super().build(x_shape)
        if self.cross_attention is not None:
            self.cross_attention_residual.build(x_shape)
            if not self.cross_attention.built:
                self.cross_attention.build(x_shape, context_shape)
            if context_shape is not None:
                self._widths = (*self._widths, ("context", context_shape[-1]))

    def make_cache(
        self, batch: int, capacity: int, dtype: str | None = None, spare: int = 0, context=None
    ) -> dict[str, Any]:
        """An empty cache of self-attention, and the context's keys and values where there is cross-attention."""
        cache = super().make_cache(batch, capacity, dtype, spare)
        if self.cross_attention is not None:
            if context is None:
                raise ValueError("This block attends to a context: make_cache needs it.")
            cache["cross_attention"] = self.cross_attention.make_cache(context)
        return cache

    def call(
        self,
        x,
        context=None,
        padding_mask=None,
        attention_mask=None,
        segment_ids=None,
        positions=None,
        cache=None,
        context_padding_mask=None,
        context_segment_ids=None,
        return_scores=False,
        places=None,
        training=None,
    ):
        cache = release(cache)
        self._check_context(context, cache, context_padding_mask, segment_ids, context_segment_ids)
        asked = places if self._is_per_token() else None
        padding_mask = backend.implicit_mask(x) if padding_mask is None else padding_mask
        y, reads, cache, scores = self._attend(
            x, padding_mask, attention_mask, segment_ids, positions, cache, return_scores, asked, training
        )
        if asked is not None and segment_ids is not None:
            segment_ids = at_places(segment_ids, asked)
        if self.cross_attention is not None:
            result = self.cross_attention(
                self.cross_attention_residual.enter(y),
                context,
                context_padding_mask=context_padding_mask,
                segment_ids=segment_ids,
                context_segment_ids=context_segment_ids,
                cache=None if cache is None else cache["cross_attention"],
                return_scores=return_scores,
                training=training,
            )
            if return_scores:
                result, cross_scores = result
                scores = {"attention": scores, "cross_attention": cross_scores}
            y = self.cross_attention_residual.leave(y, result, training=training)
        y = self._feed_forward(y, reads, padding_mask, training)
        return pack(masked_as(y if places is asked else at_places(y, places), x, places), cache, scores)

    def _check_context(self, context, cache, context_padding_mask, segment_ids, context_segment_ids) -> None:
        if self.cross_attention is None and not (context is None and context_padding_mask is None):
            raise ValueError(
                "This block was built with cross_attention=False: it takes no context. Masks of x are passed by name."
            )
        if self.cross_attention is not None and context is None and cache is None:
            raise ValueError(
                "This block attends to a context: pass it as the second argument, or a cache that holds it."
            )
        if self.cross_attention is not None and (segment_ids is None) != (context_segment_ids is None):
            raise ValueError("segment_ids and context_segment_ids go together: the row's segments and the context's.")

    def compute_output_spec(
        self,
        x,
        context=None,
        padding_mask=None,
        attention_mask=None,
        segment_ids=None,
        positions=None,
        cache=None,
        context_padding_mask=None,
        context_segment_ids=None,
        return_scores=False,
        places=None,
        training=None,
    ):
        cache = release(cache)
        self._check_context(context, cache, context_padding_mask, segment_ids, context_segment_ids)
        options = {"padding_mask": padding_mask, "attention_mask": attention_mask, "segment_ids": segment_ids}
        output, cache, scores = self._attention_specs(x, cache, return_scores, places, positions=positions, **options)
        if self.cross_attention is not None and context is not None:
            check_boolean(context_padding_mask=context_padding_mask)
            check_mask("context_padding_mask", context_padding_mask, [tuple(context.shape[:2])])
        if return_scores and self.cross_attention is not None:
            inner = None if cache is None else cache["cross_attention"]
            _, cross_scores = self.cross_attention.compute_output_spec(x, context, cache=inner, return_scores=True)
            scores = {"attention": scores, "cross_attention": cross_scores}
        return pack(keras.KerasTensor(output.shape, dtype=self.compute_dtype), cache, scores)
