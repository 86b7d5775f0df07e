"""Self-attention."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm import ops as tfm_ops
from keras_tfm.layers import position as positions_
from keras_tfm.layers.attention import Attention
from keras_tfm.layers.base import check_hidden, check_places, check_positive, check_sequence, pack, register, release
from keras_tfm.layers.projection import project
from keras_tfm.ops import backend, kv_cache, masks, tiles
from keras_tfm.ops.places import at_places, masked_as
from keras_tfm.ops.positions import default as default_positions


@register
class MultiHeadSelfAttention(Attention):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2) with the options of today's transformers.

    Args:
        num_heads: Query heads.
        num_key_value_heads: Key/value heads, a divisor of num_heads; 1 is multi-query (Shazeer 2019), between is grouped
            (Ainslie et al. 2023). Default: num_heads.
        head_dim: Width of a head; free. Default: width // num_heads, which must then divide.
        causal: A token sees itself and what came before.
        window: Sliding window (Beltagy et al. 2020; Mistral): causal, a token sees `window` tokens up to and including
            itself; otherwise `window` on either side.
        global_tokens: Beside a window, not causal: so many first tokens of a row (of a segment, with segment_ids) see, and
            are seen by, all (Beltagy et al. 2020; one projection for both kinds).
        position: "rotary", "alibi", "relative", "disentangled", a dict of options with a "kind", or a `PositionScheme`
            layer.
        qk_norm: "rms_norm", "layer_norm", a dict of options, or a layer: normalizes each head of queries and keys
            (Henry et al. 2020; Dehghani et al. 2023).
        qk_norm_scope: What has statistics, and weights, of its own: "head" (all heads share the weights), "each_head" (none
            do; Cohere's Command R+; needs qk_norm "layer_norm"), "all_heads" (both over all heads together; OLMo 2).
        logit_softcap: Scores become cap * tanh(scores / cap) (Gemma 2).
        scale: Of the scores. Default: head_dim ** -0.5, or what the position scheme says.
        dropout: Of attention weights, while training.
        use_bias: For all projections, or a dict over "query", "key", "value", "output".
        output_gate: "headwise" or "elementwise": a sigmoid gate, computed from x, on what the heads give (Qiu et al. 2025).
        sinks: "learned" (a logit per head that takes attention and gives nothing; gpt-oss) or "off_by_one" (Miller 2023).
        kernel: "auto" picks the fastest that serves the call; see `keras_tfm.ops.explain_kernel`.
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer: Of the projections.
        seed: An int, for reproducible dropout.

    Call arguments:
        x: (batch, length, width), float.
        padding_mask: (batch, length), true = a token. Default: the mask that Keras attached to x, if any.
        attention_mask: (batch, length, length) or (batch, heads, length, length), true = may attend.
        segment_ids: (batch, length) int; packing: attention stays within equal ids.
        positions: (batch or 1, length) int. Default: counted over real tokens, anew in each segment.
        cache: From `make_cache`; x then holds the next tokens.
        return_scores: Also return the attention weights, (batch, heads, length, keys) float32.
        places: (batch, n) int, the tokens whose outputs are asked for; the others' are not computed. Default: all.

    Returns:
        (batch, length, width), or of `places` (batch, n, width); with a cache, also the updated cache; with
        return_scores, then the scores.

    Example:
        >>> layer = keras_tfm.layers.MultiHeadSelfAttention(num_heads=4, causal=True, position="rotary")
        >>> layer(keras.random.normal((2, 16, 32))).shape
        (2, 16, 32)
    """

    def __init__(
        self,
        num_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        window: int | None = None,
        position: Any = None,
        qk_norm: Any = None,
        logit_softcap: float | None = None,
        dropout: float = 0.0,
        use_bias: bool | dict[str, bool] = True,
        *,
        global_tokens: int = 0,
        qk_norm_scope: str = "head",
        scale: float | None = None,
        output_gate: str | None = None,
        sinks: str | None = None,
        kernel: str = "auto",
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(
            num_heads,
            num_key_value_heads,
            head_dim,
            qk_norm=qk_norm,
            qk_norm_scope=qk_norm_scope,
            logit_softcap=logit_softcap,
            scale=scale,
            dropout=dropout,
            use_bias=use_bias,
            output_gate=output_gate,
            sinks=sinks,
            kernel=kernel,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            seed=seed,
            **kwargs,
        )
        check_positive(window=window)
        if global_tokens < 0 or (global_tokens and (window is None or causal)):
            raise ValueError(
                f"global_tokens={global_tokens!r} must be 0 or more, and more only beside a window without causality; got "
                f"window={window!r}, causal={causal!r}."
            )
        positions_.check(position, where="attention")
        self.causal = causal
        self.window = window
        self.global_tokens = int(global_tokens)
        self.given(position=position)
        self.position = positions_.make(position, **self.sublayer_options("position"))
        if scale is not None and self.position is not None and self.position.scale(1) is not None:
            raise ValueError(f"scale={scale} and position={position!r}, which has a scale of its own: leave scale out.")

    def build(self, x_shape):
        width = check_hidden("x", x_shape)
        self._build_projections(width, width)
        if self.position is not None:
            self.position.check_heads(self.num_heads, self._head_dim)
            if not self.position.built:
                heads = (self.num_heads, self._head_dim)
                self.position.build((None, None, *((width,) if self.position.projected else heads)))

    def make_cache(self, batch: int, capacity: int, dtype: str | None = None, spare: int = 0) -> kv_cache.Cache:
        """An empty cache.

        Args:
            batch: Rows.
            capacity: Tokens that each row may come to; a windowed layer keeps no more than its window.
            dtype: Of keys and values. Default: the compute dtype. "int8" takes head_dim + 4 bytes a vector.
            spare: Tokens that a windowed layer keeps beyond its window, for as many to be dropped again.
        """
        if not self.causal:
            raise ValueError("A cache serves causal attention; this layer was built with causal=False.")
        if self.window is not None:
            capacity = min(capacity, self.window + spare)
        return kv_cache.create(batch, capacity, self._kv_heads, self._head_dim, dtype or self.compute_dtype)

    def call(
        self,
        x,
        padding_mask=None,
        attention_mask=None,
        segment_ids=None,
        positions=None,
        cache=None,
        return_scores=False,
        places=None,
        training=None,
    ):
        cache = release(cache)
        check_sequence(x, self.num_heads, padding_mask, None if cache else attention_mask, segment_ids, positions)
        check_places(places, x.shape[0], cache)
        padding_mask = backend.implicit_mask(x) if padding_mask is None else padding_mask
        scheme = self.position
        asks = x if places is None else at_places(x, places)
        # A scheme turns the queries of all tokens, for it may look at all positions; else only those asked for are made.
        query, (key, value) = self._queries(asks if scheme is None else x), self._keys_and_values(x)
        query_positions = key_positions = None
        sees_itself = False
        if cache is not None:
            self._check_cache(attention_mask, segment_ids)
            if positions is None:
                positions = kv_cache.next_positions(cache, padding_mask, keras.ops.shape(x)[1])
            query_positions = positions
        elif scheme is not None and positions is None:
            positions = default_positions(keras.ops.shape(x)[1], padding_mask, segment_ids)
        anew = segment_ids if self.global_tokens else None  # each segment has first tokens of its own
        if cache is None and self.window is not None and (padding_mask is not None or anew is not None):
            # Padding takes no room in a window, on either side or in the middle.
            query_positions = key_positions = default_positions(keras.ops.shape(x)[1], padding_mask, anew)
        if scheme is not None:
            query, key = scheme.rotate(query, key, positions)
        bias_positions = positions
        query_segment_ids = segment_ids
        if places is not None:
            query = query if scheme is None else at_places(query, places)
            positions = places if positions is None else at_places(positions, places)
            if self.causal or self.window is not None:
                key_positions = masks.positions(keras.ops.shape(x)[1]) if key_positions is None else key_positions
                query_positions = at_places(key_positions, places)
            query_segment_ids = None if segment_ids is None else at_places(segment_ids, places)
            if attention_mask is not None:
                attention_mask = at_places(attention_mask, places, len(attention_mask.shape) - 2)
        if cache is not None:
            cache, key, value, key_positions = kv_cache.update(
                cache, key, value, positions, padding_mask, ring=self.window is not None
            )
            sees_itself = padding_mask is None  # padding is not kept
            padding_mask, bias_positions = None, key_positions
            key, value = (tiles.cast(t, query.dtype) for t in (key, value))
        bias = None
        if scheme is not None:
            keys = tiles.whole(key) if scheme.projected else key  # others ask for their positions alone
            bias = scheme.bias(query, keys, positions, bias_positions, **self._projected(scheme, x))
        heads = tfm_ops.attention(
            query,
            key,
            value,
            causal=self.causal,
            window=self.window,
            global_tokens=self.global_tokens,
            padding_mask=padding_mask,
            segment_ids=None if segment_ids is None else (query_segment_ids, segment_ids),
            attention_mask=attention_mask,
            bias=bias,
            query_positions=query_positions,
            key_positions=key_positions,
            sees_itself=sees_itself,
            return_scores=return_scores,
            **self._score_options(training),
        )
        heads, scores = heads if return_scores else (heads, None)
        return pack(masked_as(self._combine_heads(heads, asks), x, places), cache, scores)

    def _projected(self, scheme: positions_.PositionScheme, x) -> dict[str, Any]:
        """Queries and keys of a position scheme's own vectors, (count, heads, head_dim), where it has some."""
        if not scheme.projected:
            return {}
        vectors = keras.ops.cast(scheme.vectors(), x.dtype)[None]
        key = self._normalized(self.key_norm, project(self.key, vectors))
        return {"position_query": self._queries(vectors)[0], "position_key": key[0]}

    def _score_options(self, training) -> dict[str, Any]:
        options = super()._score_options(training)
        if options["scale"] is None and self.position is not None:
            options["scale"] = self.position.scale(self._head_dim)
        return options

    def _check_cache(self, attention_mask, segment_ids) -> None:
        if not self.causal:
            raise ValueError("A cache serves causal attention; this layer was built with causal=False.")
        for name, value in (("attention_mask", attention_mask), ("segment_ids", segment_ids)):
            if value is not None:
                raise ValueError(f"{name} cannot be combined with cache; a cached row is one sequence of real tokens.")

    def compute_output_spec(
        self,
        x,
        padding_mask=None,
        attention_mask=None,
        segment_ids=None,
        positions=None,
        cache=None,
        return_scores=False,
        places=None,
        training=None,
    ):
        cache = release(cache)
        check_sequence(x, self.num_heads, padding_mask, None if cache else attention_mask, segment_ids, positions)
        check_places(places, x.shape[0], cache)
        keys = x.shape[1]
        if cache is not None:
            self._check_cache(attention_mask, segment_ids)
            slots = cache["positions"].shape[1]
            if self.window is not None and (x.shape[1] != 1 or padding_mask is not None):
                keys = None if x.shape[1] is None else slots + x.shape[1]
            else:
                keys = slots
            cache = keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, dtype=t.dtype), cache)
        asks = x if places is None else keras.KerasTensor((x.shape[0], places.shape[1], x.shape[2]), dtype=x.dtype)
        output, scores = self._output_specs(asks, keys, return_scores)
        return pack(output, cache, scores)
