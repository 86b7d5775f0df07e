"""Cross-attention: queries from one sequence, keys and values from another."""

from __future__ import annotations

from keras_tfm import ops as tfm_ops
from keras_tfm.layers.attention import Attention
from keras_tfm.layers.base import check_boolean, check_hidden, pack, register, release
from keras_tfm.ops import backend, kv_cache


@register
class MultiHeadCrossAttention(Attention):
    """Multi-head attention from x to a context of any width and length (Vaswani et al. 2017, 3.2.3).

    Args: those of `MultiHeadSelfAttention`, without causal, window and position.

    Call arguments:
        x: (batch, queries, width), float.
        context: (batch, keys, context_width), float; may be left out where a cache is given.
        context_padding_mask: (batch, keys), true = a token of the *context*. Default: the mask that Keras attached to it.
        attention_mask: (batch, queries, keys) or (batch, heads, queries, keys), true = may attend.
        segment_ids: (batch, queries) int; packing: attention goes only to keys of equal `context_segment_ids`,
            (batch, keys). Both or neither.
        cache: From `make_cache(context)`: keys and values of the context, computed once.
        return_scores: Also return the attention weights, (batch, heads, queries, keys) float32.

    Returns:
        (batch, queries, width); with return_scores, also the scores. The cache is not changed, so it is not returned.

    Example:
        >>> layer = keras_tfm.layers.MultiHeadCrossAttention(num_heads=4)
        >>> layer(keras.random.normal((2, 8, 32)), keras.random.normal((2, 20, 48))).shape
        (2, 8, 32)
    """

    def build(self, x_shape, context_shape=None):
        width = check_hidden("x", x_shape)
        context_width = width if context_shape is None else check_hidden("context", context_shape)
        self._build_projections(width, context_width)
        self._widths = (("x", width), ("context", context_width))

    def make_cache(self, context) -> kv_cache.Cache:
        """Keys and values of the context: {"key", "value"}, laid out as `kv_cache` says."""
        key, value = self._keys_and_values(context)
        return {"key": kv_cache.to_slots("key", key), "value": kv_cache.to_slots("value", value)}

    def call(
        self,
        x,
        context=None,
        context_padding_mask=None,
        attention_mask=None,
        segment_ids=None,
        context_segment_ids=None,
        cache=None,
        return_scores=False,
        training=None,
    ):
        cache = release(cache)
        if context_padding_mask is None and context is not None:
            context_padding_mask = backend.implicit_mask(context)
        if cache is not None:
            key, value = (kv_cache.from_slots(name, cache[name]) for name in ("key", "value"))
        elif context is not None:
            key, value = self._keys_and_values(context)
        else:
            raise ValueError("Cross-attention needs context, or a cache made from one by make_cache(context).")
        if (segment_ids is None) != (context_segment_ids is None):
            raise ValueError(
                "segment_ids and context_segment_ids go together: one names the queries' segments, the other the keys'."
            )
        check_boolean(context_padding_mask=context_padding_mask, attention_mask=attention_mask)
        heads = tfm_ops.attention(
            self._queries(x),
            key,
            value,
            padding_mask=context_padding_mask,
            attention_mask=attention_mask,
            segment_ids=None if segment_ids is None else (segment_ids, context_segment_ids),
            return_scores=return_scores,
            **self._score_options(training),
        )
        heads, scores = heads if return_scores else (heads, None)
        return pack(self._combine_heads(heads, x), scores)

    def compute_output_spec(
        self,
        x,
        context=None,
        context_padding_mask=None,
        attention_mask=None,
        segment_ids=None,
        context_segment_ids=None,
        cache=None,
        return_scores=False,
        training=None,
    ):
        cache = release(cache)
        check_hidden("x", x)
        if context is None and cache is None:
            raise ValueError("Cross-attention needs context, or a cache made from one by make_cache(context).")
        keys = kv_cache.slots("key", cache["key"]) if cache is not None else context.shape[1]
        output, scores = self._output_specs(x, keys, return_scores)
        return pack(output, scores)
