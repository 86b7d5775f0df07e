"""The transformer block. Encoders and decoders are two settings of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_tfm.layers.base import (
    Layer,
    check_choice,
    check_hidden,
    check_options,
    check_positive,
    check_rate,
    clone_initializer,
    derived_seed,
    pack,
    release,
    serialize,
)
from keras_tfm.layers.feed_forward import FeedForward
from keras_tfm.layers.mixture_of_experts import MixtureOfExperts
from keras_tfm.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_tfm.layers.residual import Residual
from keras_tfm.ops import backend
from keras_tfm.ops.places import at_places, masked_as

FEED_FORWARDS: dict[str, type] = {"feed_forward": FeedForward, "mixture_of_experts": MixtureOfExperts}


class TransformerBlock(Layer):
    """Self-attention and a feed-forward layer, each on the residual stream: what encoder and decoder blocks share.

    Args:
        num_heads: Query heads.
        intermediate_dim: Width inside the feed-forward layer.
        norm: "layer_norm", "rms_norm", a dict of options with a "kind", or a layer as pattern.
        norm_placement: "pre", "post", "sandwich", "residual" or "none": see `Residual`. Or a dict over "attention",
            "cross_attention" and "feed_forward", each "pre" where it has no entry (ModernBERT's first block has
            {"attention": "none"}).
        dropout: Of the residual branches, and of attention weights unless `attention_dropout` says otherwise.
        num_key_value_heads, head_dim, window, position: Of self-attention: see `MultiHeadSelfAttention`.
        activation, gated: Of the feed-forward layer: see `FeedForward`.
        use_bias: In all projections of attention and feed-forward.
        attention_dropout: Of attention weights. Default: dropout.
        activation_dropout: Inside the feed-forward layer.
        drop_path: Rate of stochastic depth (Huang et al. 2016).
        layer_scale: Initial gain of each branch (Touvron et al. 2021); None for none.
        parallel: True: attention and feed-forward read the same input and add up, each behind its own norm (GPT-NeoX);
            "shared_norm": behind one (GPT-J). Needs norm_placement="pre".
        attention: A dict of further options of `MultiHeadSelfAttention`, or a layer in its place.
        feed_forward: A dict of further options of `FeedForward`, or of `MixtureOfExperts` with {"kind":
            "mixture_of_experts", ...}, or a layer in its place.
        kernel_initializer: Of all projections.
        seed: An int, for reproducible dropout.
    """

    causal = False
    branches: tuple[str, ...] = ("attention", "feed_forward")

    def __init__(
        self,
        num_heads: int,
        intermediate_dim: int,
        norm: Any = "layer_norm",
        norm_placement: str | dict[str, str] = "pre",
        dropout: float = 0.0,
        *,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        window: int | None = None,
        position: Any = None,
        activation: str | Callable = "gelu",
        gated: bool = False,
        use_bias: bool = True,
        attention_dropout: float | None = None,
        activation_dropout: float = 0.0,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        parallel: bool | str = False,
        attention: Any = None,
        feed_forward: Any = None,
        kernel_initializer: Any = "glorot_uniform",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_heads=num_heads, intermediate_dim=intermediate_dim)
        check_rate(dropout=dropout, attention_dropout=attention_dropout)
        check_rate(activation_dropout=activation_dropout, drop_path=drop_path)
        check_choice("parallel", parallel, (False, True, "shared_norm"))
        for part in norm_placement if isinstance(norm_placement, dict) else ():
            check_choice("norm_placement", part, self.branches)
        if parallel and norm_placement != "pre":
            raise ValueError(
                f"parallel={parallel!r} adds both branches to one input: norm_placement must be 'pre'; "
                f"got {norm_placement!r}."
            )
        self._check_given(
            "attention",
            attention,
            num_key_value_heads=num_key_value_heads,
            head_dim=head_dim,
            window=window,
            position=position,
            attention_dropout=attention_dropout,
            use_bias=None if use_bias else False,
        )
        self._check_given(
            "feed_forward",
            feed_forward,
            activation=None if activation == "gelu" else activation,
            gated=gated or None,
            activation_dropout=activation_dropout or None,
            use_bias=None if use_bias else False,
        )
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.norm = serialize(norm)
        self.norm_placement = norm_placement
        self.dropout = dropout
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.window = window
        self.position = serialize(position) if not isinstance(position, keras.layers.Layer) else position
        self.activation = activation
        self.gated = gated
        self.use_bias = use_bias
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.drop_path = drop_path
        self.layer_scale = layer_scale
        self.parallel = parallel
        self.kernel_initializer = kernel_initializer
        self.seed = seed
        self.supports_masking = True
        self.given(attention=attention, feed_forward=feed_forward)
        self.attention = self._attention(
            "attention", attention, MultiHeadSelfAttention, causal=self.causal, window=window, position=position
        )
        options = dict(feed_forward) if isinstance(feed_forward, dict) else feed_forward
        kind = options.pop("kind", "feed_forward") if isinstance(options, dict) else "feed_forward"
        check_choice("feed_forward", kind, FEED_FORWARDS)
        self.feed_forward = self._part(
            "feed_forward",
            options,
            FEED_FORWARDS[kind],
            intermediate_dim=intermediate_dim,
            activation=activation,
            gated=gated,
            dropout=activation_dropout,
            use_bias=use_bias,
        )
        if self.causal and not getattr(self.attention, "causal", True):
            raise ValueError(
                f"{type(self).__name__} is causal; its attention says causal=False. An encoder block looks both ways."
            )
        self.attention_residual = self._residual("attention")
        self.feed_forward_residual = self._residual("feed_forward", "none" if parallel == "shared_norm" else None)

    # Parts -----------------------------------------------------------------------------------------------------------

    @staticmethod
    def _check_given(name: str, part: Any, **options: Any) -> None:
        """A part that brings its own options must not be given them by the block too: one would be ignored."""
        if isinstance(part, dict):
            twice = [option for option, value in options.items() if value is not None and option in part]
            if twice:
                raise ValueError(f"{twice} are given to the block and again in {name}; give each once.")
        if isinstance(part, keras.layers.Layer):
            clashing = [option for option, value in options.items() if value is not None]
            if clashing:
                raise ValueError(
                    f"{name} is a layer, which brings its own options; {clashing} would have no effect here."
                )

    def _part(self, name: str, given: Any, cls: type, **defaults: Any) -> keras.layers.Layer:
        """A sub-layer: the caller's own, or one made from the block's arguments and the caller's dict of options."""
        if isinstance(given, keras.layers.Layer):
            return given
        if given is not None and not isinstance(given, dict):
            raise ValueError(f"{name} must be None, a dict of options of {cls.__name__}, or a layer; got {given!r}.")
        check_options(name, given or {}, cls)
        initializer = clone_initializer(self.kernel_initializer)
        defaults["seed"] = derived_seed(self.seed, name)
        return cls(**{"kernel_initializer": initializer, **self.sublayer_options(name), **defaults, **(given or {})})

    def _attention(self, name: str, given: Any, cls: type, **defaults: Any) -> keras.layers.Layer:
        dropout = self.dropout if self.attention_dropout is None else self.attention_dropout
        shared = {
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
        }
        return self._part(name, given, cls, **shared, use_bias=self.use_bias, dropout=dropout, **defaults)

    def _residual(self, branch: str, norm_placement: str | None = None) -> Residual:
        name, placement = f"{branch}_residual", self.norm_placement
        if isinstance(placement, dict):
            placement = placement.get(branch, "pre")
        return Residual(
            self.norm,
            norm_placement or placement,
            dropout=self.dropout,
            drop_path=self.drop_path,
            layer_scale=self.layer_scale,
            seed=derived_seed(self.seed, name),
            **self.sublayer_options(name),
        )

    def build(self, x_shape):
        width = check_hidden("x", x_shape)
        if isinstance(self.attention, MultiHeadSelfAttention):
            self.attention.check_width(width)
        self._widths = (("x", width),)
        for part in (self.attention_residual, self.attention, self.feed_forward_residual, self.feed_forward):
            if not part.built:
                part.build(x_shape)

    # Calling ---------------------------------------------------------------------------------------------------------

    def make_cache(self, batch: int, capacity: int, dtype: str | None = None, spare: int = 0) -> dict[str, Any]:
        """An empty cache of this block: see `MultiHeadSelfAttention.make_cache`."""
        return {"attention": self.attention.make_cache(batch, capacity, dtype, spare)}

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
        padding_mask = backend.implicit_mask(x) if padding_mask is None else padding_mask
        asked = places if self._is_per_token() else None
        y, attended, cache, scores = self._attend(
            x, padding_mask, attention_mask, segment_ids, positions, cache, return_scores, asked, training
        )
        y = self._feed_forward(y, attended, padding_mask, training)
        return pack(masked_as(y if places is asked else at_places(y, places), x, places), cache, scores)

    def _is_per_token(self) -> bool:
        """Whether what comes after the keys and values is computed for each token by itself."""
        return isinstance(self.attention, MultiHeadSelfAttention) and not isinstance(
            self.feed_forward, MixtureOfExperts
        )

    def _attend(self, x, padding_mask, attention_mask, segment_ids, positions, cache, return_scores, places, training):
        """The self-attention branch. Gives the stream, what the feed-forward branch reads, cache and scores."""
        entered = self.attention_residual.enter(x)
        options = {
            name: value
            for name, value in (
                ("attention_mask", attention_mask),
                ("segment_ids", segment_ids),
                ("positions", positions),
                ("places", places),
            )
            if value is not None
        }
        if cache is not None:
            options["cache"] = cache["attention"]
        if return_scores:
            options["return_scores"] = True
        result = self.attention(entered, padding_mask=padding_mask, training=training, **options)
        result = list(result) if isinstance(result, tuple) else [result]
        branch = result.pop(0)
        cache = {**cache, "attention": result.pop(0)} if cache is not None else None
        scores = result.pop(0) if return_scores else None
        if places is not None:
            x = at_places(x, places)
            entered = at_places(entered, places) if self.parallel == "shared_norm" else entered
        reads = (
            entered
            if self.parallel == "shared_norm"
            else self.feed_forward_residual.enter(x)
            if self.parallel
            else None
        )
        return self.attention_residual.leave(x, branch, training=training), reads, cache, scores

    def _feed_forward(self, x, reads, padding_mask, training):
        reads = self.feed_forward_residual.enter(x) if reads is None else reads
        options = {"padding_mask": padding_mask} if isinstance(self.feed_forward, MixtureOfExperts) else {}
        branch = self.feed_forward(reads, **options, training=training)
        return self.feed_forward_residual.leave(x, branch, training=training)

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
        options = {"padding_mask": padding_mask, "attention_mask": attention_mask, "segment_ids": segment_ids}
        output, cache, scores = self._attention_specs(
            x, release(cache), return_scores, places, positions=positions, **options
        )
        return pack(keras.KerasTensor(output.shape, dtype=self.compute_dtype), cache, scores)

    def _attention_specs(self, x, cache, return_scores, places, **options):
        """Specs of self-attention's output, of the cache and of the scores, the options checked on the way."""
        check_hidden("x", x)
        options = {name: value for name, value in options.items() if value is not None}
        if cache is not None:
            options["cache"] = cache["attention"]
        if return_scores:
            options["return_scores"] = True
        if places is not None and self._is_per_token():
            options["places"] = places
        result = self.attention.compute_output_spec(x, **options)
        result = list(result) if isinstance(result, tuple) else [result]
        output = result.pop(0)
        if places is not None:
            output = keras.KerasTensor((x.shape[0], places.shape[1], x.shape[2]), dtype=output.dtype)
        if cache is not None:
            specs = keras.tree.map_structure(lambda t: keras.KerasTensor(t.shape, dtype=t.dtype), cache)
            cache = {**specs, "attention": result.pop(0)}
        return output, cache, (result.pop(0) if return_scores else None)
