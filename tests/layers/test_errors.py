"""What cannot be meant raises ValueError that names the argument, the value and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from helpers import normal
from keras import ops

from keras_tfm.layers import (
    ClassificationHead,
    DisentangledBias,
    Dropout,
    DropPath,
    FeedForward,
    MaskedLMHead,
    MultiHeadCrossAttention,
    MultiHeadSelfAttention,
    Pooling,
    PositionalEncoding,
    RelativePositionBias,
    Residual,
    RotaryEmbedding,
    TokenEmbedding,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)

X, CONTEXT = normal(2, 6, 8), normal(2, 5, 8)


def attention(**options: Any) -> MultiHeadSelfAttention:
    return MultiHeadSelfAttention(2, **options)


def encoder(**options: Any) -> TransformerEncoderBlock:
    return TransformerEncoderBlock(2, 16, **options)


def decoder(**options: Any) -> TransformerDecoderBlock:
    return TransformerDecoderBlock(2, 16, **options)


# Constructors --------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "no heads": (lambda: MultiHeadSelfAttention(0), "num_heads must be a positive integer; got 0"),
    "half a head": (lambda: MultiHeadSelfAttention(2.5), "num_heads must be a positive integer; got 2.5"),
    "a flag for a number": (lambda: MultiHeadSelfAttention(True), "num_heads must be a positive integer; got True"),
    "kv heads": (lambda: MultiHeadSelfAttention(4, 3), "num_key_value_heads must divide num_heads=4; got 3"),
    "kv heads of a block": (
        lambda: encoder(num_key_value_heads=4),
        "num_key_value_heads must divide num_heads=2; got 4",
    ),
    "head_dim": (lambda: attention(head_dim=-4), "head_dim must be a positive integer; got -4"),
    "window": (lambda: attention(window=0), "window must be a positive integer; got 0"),
    "global tokens without a window": (
        lambda: attention(global_tokens=2),
        "global_tokens=2 .*beside a window.*window=None",
    ),
    "causal global tokens": (
        lambda: attention(global_tokens=2, window=3, causal=True),
        "global_tokens=2 .*without causality.*causal=True",
    ),
    "softcap": (lambda: attention(logit_softcap=-1.0), "logit_softcap must be positive; got -1.0"),
    "dropout of attention": (lambda: attention(dropout=-0.1), "dropout must be between 0 and 1; got -0.1"),
    "dropout of feed-forward": (lambda: FeedForward(16, dropout=1.1), "dropout must be between 0 and 1; got 1.1"),
    "dropout of a block": (lambda: encoder(dropout=-0.1), r"\bdropout must be between 0 and 1; got -0.1"),
    "attention_dropout": (
        lambda: encoder(attention_dropout=-0.1),
        "attention_dropout must be between 0 and 1; got -0.1",
    ),
    "activation_dropout": (
        lambda: encoder(activation_dropout=-0.1),
        "activation_dropout must be between 0 and 1; got -0.1",
    ),
    "drop_path": (lambda: encoder(drop_path=2.0), "drop_path must be between 0 and 1; got 2.0"),
    "rate": (lambda: Dropout(-0.5), "rate must be between 0 and 1; got -0.5"),
    "rate of paths": (lambda: DropPath(1.5), "rate must be between 0 and 1; got 1.5"),
    "norm": (
        lambda: encoder(norm="layernorm"),
        "norm must be one of .*'rms_norm'.*got 'layernorm'.*Did you mean 'layer_norm'",
    ),
    "norm of the head": (lambda: MaskedLMHead(11, norm="layernorm"), "norm must be one of.*Did you mean 'layer_norm'"),
    "norm option": (
        lambda: encoder(norm={"kind": "rms_norm", "epsilom": 1}),
        "norm does not take the option 'epsilom'.*'epsilon'",
    ),
    "norm_placement": (
        lambda: Residual(norm_placement="prenorm"),
        "norm_placement must be one of .*'sandwich'.*got 'prenorm'",
    ),
    "qk_norm": (lambda: attention(qk_norm="rmsnorm"), "norm must be one of.*got 'rmsnorm'.*Did you mean 'rms_norm'"),
    "position": (
        lambda: attention(position="rotery"),
        "position must be one of .*'alibi'.*got 'rotery'.*Did you mean 'rotary'",
    ),
    "position option": (
        lambda: attention(position={"kind": "rotary", "bass": 1}),
        "position does not take the option 'bass'.*'base'",
    ),
    "position elsewhere": (
        lambda: encoder(position="sinusoidal"),
        r"position='sinusoidal'.*embedding.*\['rotary', 'alibi', 'relative', 'disentangled'\]",
    ),
    "position of another kind": (
        lambda: attention(position=keras.layers.Dense(2)),
        "position must be a PositionScheme.*Dense",
    ),
    "output_gate": (
        lambda: attention(output_gate="elementwize"),
        "output_gate must be one of.*Did you mean 'elementwise'",
    ),
    "sinks": (lambda: attention(sinks="learnt"), "sinks must be one of.*got 'learnt'.*Did you mean 'learned'"),
    "kernel": (lambda: attention(kernel="flash"), "kernel must be one of .*'reference'.*got 'flash'"),
    "use_bias": (
        lambda: attention(use_bias={"querry": True}),
        "use_bias must be one of.*got 'querry'.*Did you mean 'query'",
    ),
    "activation": (lambda: FeedForward(16, "gleu"), "activation='gleu'.*'gelu'"),
    "activation of a block": (lambda: encoder(activation="gleu"), "activation='gleu'.*'gelu'"),
    "activation of a head": (lambda: ClassificationHead(3, 4, activation="tahn"), "activation='tahn'.*'tanh'"),
    "intermediate_dim": (lambda: FeedForward(0), "intermediate_dim must be a positive integer; got 0"),
    "num_classes": (lambda: ClassificationHead(0), "num_classes must be a positive integer; got 0"),
    "vocabulary_size": (lambda: TokenEmbedding(0, 8), "vocabulary_size must be a positive integer; got 0"),
    "pooling": (lambda: Pooling("average"), "kind must be one of .*'mean'.*got 'average'"),
    "attention option": (
        lambda: encoder(attention={"qknorm": "rms_norm"}),
        "attention does not take the option 'qknorm'.*'qk_norm'",
    ),
    "feed_forward option": (
        lambda: encoder(feed_forward={"gate": True}),
        "feed_forward does not take the option 'gate'.*'gated'",
    ),
    "cross_attention option": (
        lambda: decoder(cross_attention={"window": 3}),
        "cross_attention does not take the option 'window'",
    ),
    "attention of another kind": (
        lambda: encoder(attention=7),
        "attention must be None, a dict .*MultiHeadSelfAttention.*got 7",
    ),
    "parallel": (
        lambda: encoder(parallel="shared"),
        "parallel must be one of.*got 'shared'.*Did you mean 'shared_norm'",
    ),
    "parallel post-norm": (
        lambda: encoder(parallel=True, norm_placement="post"),
        "parallel=True.*norm_placement must be 'pre'; got 'post'",
    ),
    "norm_placement of a branch": (
        lambda: encoder(norm_placement={"cross_attention": "post"}),
        "norm_placement must be one of .*'feed_forward'.*got 'cross_attention'",
    ),
    "norm_placement in a branch": (
        lambda: encoder(norm_placement={"attention": "prenorm"}),
        "norm_placement must be one of .*'sandwich'.*got 'prenorm'",
    ),
    "norm_placement without cross-attention": (
        lambda: TransformerDecoderBlock(2, 16, norm_placement={"cross_attention": "post"}),
        "norm_placement names cross_attention",
    ),
    "parallel cross-attention": (lambda: decoder(parallel=True, cross_attention=True), "parallel.*cross_attention"),
    "a layer and its options": (
        lambda: encoder(attention=attention(), window=3, head_dim=4),
        r"attention is a layer.*\['head_dim', 'window'\]",
    ),
    "a layer and its dropout": (
        lambda: encoder(feed_forward=FeedForward(16), activation_dropout=0.1),
        "feed_forward is a layer.*activation_dropout",
    ),
    "a layer and its gate": (
        lambda: encoder(feed_forward=FeedForward(16), gated=True),
        "feed_forward is a layer.*gated",
    ),
    "a layer and its activation": (
        lambda: encoder(feed_forward=FeedForward(16), activation="relu"),
        "feed_forward is a layer.*activation",
    ),
    "layers and their biases": (
        lambda: encoder(feed_forward=FeedForward(16), attention=attention(), use_bias=False),
        "layer.*use_bias",
    ),
    "an option given twice": (
        lambda: encoder(window=3, attention={"window": 4}),
        "window.*attention|attention.*window",
    ),
    "a decoder that looks ahead": (
        lambda: decoder(attention=attention()),
        "TransformerDecoderBlock is causal.*causal=False",
    ),
    "cross options without cross-attention": (lambda: decoder(cross_attention=7), "cross_attention.*got 7"),
    "odd buckets": (lambda: DisentangledBias(9), "num_buckets must be even.*num_buckets=9, max_distance=512"),
    "buckets of nothing": (lambda: DisentangledBias(64, 17), "max_distance beyond the exact ones.*max_distance=17"),
    "no terms": (lambda: DisentangledBias(terms=[]), r"terms must be a list.*got \[\]"),
    "unknown terms": (lambda: DisentangledBias(terms=["c2p"]), "terms must be one of.*got 'c2p'"),
    "fraction": (lambda: RotaryEmbedding(fraction=0.0), "fraction must be above 0 and at most 1; got 0.0"),
    "base": (lambda: RotaryEmbedding(base=1.0), "base must be above 1; got 1.0"),
    "scaling": (lambda: RotaryEmbedding(scaling={"kind": "ntk"}), "scaling kind='ntk'.*'yarn'"),
    "encoding": (lambda: PositionalEncoding("sine"), "kind must be one of.*got 'sine'"),
    "table without rows": (lambda: PositionalEncoding("learned"), "kind='learned' needs max_length"),
    "rows without table": (
        lambda: PositionalEncoding(max_length=5),
        "kind='sinusoidal'.*max_length must be None; got 5",
    ),
    "base of a table": (
        lambda: PositionalEncoding("learned", 5, base=50.0),
        "base and interleaved belong to kind='sinusoidal'",
    ),
    "negative offset": (lambda: PositionalEncoding("learned", 5, offset=-1), "offset.*-1"),
    "initializer without table": (
        lambda: PositionalEncoding(embeddings_initializer="zeros"),
        "embeddings_initializer.*learned",
    ),
    "buckets": (lambda: RelativePositionBias(32, 8), "max_distance must exceed.*max_distance=8, num_buckets=32"),
    "hidden activation without hidden layer": (
        lambda: ClassificationHead(3, activation="relu"),
        "activation.*hidden_dim",
    ),
}


UNKNOWN = {
    "misspelt": (lambda: TransformerEncoderBlock(num_head=2, intermediate_dim=16), "'num_head'.*'num_heads'"),
    "misspelt and missing": (
        lambda: TransformerEncoderBlock(2, intermidiate_dim=16),
        "Did you mean 'intermediate_dim'",
    ),
    "another library's": (lambda: TransformerDecoderBlock(2, 16, dropout_rate=0.1), "Did you mean 'dropout'"),
    "another library's sizes": (lambda: TokenEmbedding(vocab_size=5, embed_dim=8), "'vocabulary_size'.*'hidden_dim'"),
    "like no other": (lambda: Dropout(0.1, wibble=1), "'wibble'.*'rate', 'seed', .*'dtype'"),
    "two": (lambda: FeedForward(16, activaton="relu", gate=True), "'activaton', 'gate'.*'activation'.*'gated'"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_arguments_are_named_with_the_nearest(case):
    make, message = UNKNOWN[case]
    with pytest.raises(ValueError, match=f"(?s)has no argument .*{message}"):
        make()


def test_missing_arguments_name_the_class():
    with pytest.raises(TypeError, match="TransformerEncoderBlock: missing a required argument: 'intermediate_dim'"):
        TransformerEncoderBlock(2)


def test_constructors_of_others_take_what_they_like():
    class Mine(TransformerEncoderBlock):
        def __init__(self, heads, **kwargs):
            self.note = kwargs.pop("note")
            super().__init__(heads, 16, **kwargs)

    assert Mine(2, note="x").note == "x"


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case):
    make, message = BAD_ARGUMENTS[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


# Calls ---------------------------------------------------------------------------------------------------------------


def cached(layer: Any, **options: Any) -> Any:
    layer(X)
    return layer(X, cache=layer.make_cache(2, 8), **options)


SEGMENTS = np.zeros((2, 6), "int32")
BAD_CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "width": (lambda: MultiHeadSelfAttention(3)(X), "width 8 is not divisible by num_heads=3.*head_dim"),
    "width of a block": (
        lambda: TransformerEncoderBlock(3, 16)(X),
        "width 8 is not divisible by num_heads=3.*head_dim",
    ),
    "width of a symbolic block": (
        lambda: TransformerEncoderBlock(3, 16)(keras.Input((None, 8))),
        "width 8 is not divisible by num_heads=3",
    ),
    "rank": (lambda: encoder()(X[0]), r"x must be \(batch, length, width\).*\(6, 8\)"),
    "rank of attention": (lambda: attention()(X[None]), r"x must be \(batch, length, width\).*\(1, 2, 6, 8\)"),
    "rank of context": (
        lambda: decoder(cross_attention=True)(X, CONTEXT[0]),
        r"context must be \(batch, length, width\).*\(5, 8\)",
    ),
    "unknown width": (lambda: encoder()(keras.Input((6, None))), "x must be .* with a known width"),
    "padding_mask rank": (
        lambda: encoder()(X, padding_mask=np.ones((2, 1, 6), bool)),
        r"padding_mask must have shape \(2, 6\); got \(2, 1, 6\)",
    ),
    "padding_mask shape": (
        lambda: encoder()(X, padding_mask=np.ones((2, 5), bool)),
        r"padding_mask must have shape \(2, 6\); got \(2, 5\)",
    ),
    "padding_mask batch": (
        lambda: encoder()(X, padding_mask=np.ones((3, 6), bool)),
        r"padding_mask must have shape \(2, 6\); got \(3, 6\)",
    ),
    "padding_mask dtype": (
        lambda: encoder()(X, padding_mask=np.ones((2, 6), "float32")),
        r"padding_mask must be boolean or 0/1 integers, true = a token; got float32\.(?!.*bias)",
    ),
    "attention_mask rank": (
        lambda: encoder()(X, attention_mask=np.ones((6, 6), bool)),
        r"attention_mask must have shape \(2, 6, 6\) or \(2, 2, 6, 6\); got \(6, 6\)",
    ),
    "attention_mask shape": (
        lambda: encoder()(X, attention_mask=np.ones((2, 6, 5), bool)),
        r"attention_mask must have shape .*got \(2, 6, 5\)",
    ),
    "attention_mask dtype": (
        lambda: encoder()(X, attention_mask=np.zeros((2, 6, 6), "float32")),
        "attention_mask must be boolean.*may attend.*float32.*position(?!.*bias)",
    ),
    "attention_mask of scores": (
        lambda: encoder()(X, attention_mask=np.zeros((2, 6, 6)) - 1e9),
        "attention_mask must be boolean.*position",
    ),
    "attention_mask of tokens": (
        lambda: encoder()(X, attention_mask=np.ones((2, 6), bool)),
        r"attention_mask of shape \(2, 6\) tells tokens from padding.*padding_mask",
    ),
    "context mask dtype": (
        lambda: decoder(cross_attention=True)(X, CONTEXT, context_padding_mask=np.ones((2, 5), "float32")),
        "context_padding_mask must be boolean.*a token.*float32",
    ),
    "context mask dtype, symbolic": (
        lambda: decoder(cross_attention=True)(
            keras.Input((6, 8)), keras.Input((5, 8)), context_padding_mask=keras.Input((5,))
        ),
        "context_padding_mask must be boolean.*a token.*float32",
    ),
    "a mask of no kind": (
        lambda: encoder()(X, mask=np.ones((2, 6), bool)),
        "TransformerEncoderBlock has no argument 'mask'.*padding_mask or attention_mask",
    ),
    "a mask where none is needed": (
        lambda: FeedForward(8)(X, mask=np.ones((2, 6), bool)),
        "FeedForward.*none is needed",
    ),
    "another width": (lambda: called_twice(encoder(), X, X[..., :6]), r"width 8; got width 6, shape \(2, 6, 6\)"),
    "another width, symbolic": (
        lambda: called_twice(encoder(), X, keras.Input((6, 12))),
        r"built for x of width 8; got width 12, shape \(None, 6, 12\)",
    ),
    "another width of attention": (lambda: called_twice(attention(), X, X[..., :6]), "width 8; got width 6"),
    "another width of context": (
        lambda: called_twice(MultiHeadCrossAttention(2), X, X, context=CONTEXT[..., :6]),
        "built for context of width 8; got width 6",
    ),
    "another width of a block's context": (
        lambda: called_twice(decoder(cross_attention=True), X, X, context=CONTEXT[..., :6]),
        "built for context of width 8; got width 6",
    ),
    "segment_ids": (
        lambda: encoder()(X, segment_ids=SEGMENTS[:, :5]),
        r"segment_ids.* must have shape \(2, 6\); got \(2, 5\)",
    ),
    "segment_ids dtype": (
        lambda: encoder()(X, segment_ids=SEGMENTS.astype("float32")),
        "segment_ids.*integers.*float32",
    ),
    "positions": (
        lambda: encoder(position="rotary")(X, positions=np.arange(5)[None]),
        r"positions must have shape \(2, 6\).*\(1, 5\)",
    ),
    "positions of rank 1": (
        lambda: encoder(position="rotary")(X, positions=np.arange(6)),
        r"positions must have shape \(2, 6\).*\(6,\)",
    ),
    "context_padding_mask": (
        lambda: decoder(cross_attention=True)(X, CONTEXT, context_padding_mask=np.ones((2, 6), bool)),
        r"padding_mask must have shape \(2, 5\); got \(2, 6\)",
    ),
    "context batch": (lambda: decoder(cross_attention=True)(X, CONTEXT[:1]), "(context|batch).*1"),
    "context without cross-attention": (lambda: decoder()(X, CONTEXT), "cross_attention=False.*no context"),
    "context mask without cross-attention": (
        lambda: decoder()(X, context_padding_mask=np.ones((2, 5), bool)),
        "cross_attention=False",
    ),
    "no context": (lambda: decoder(cross_attention=True)(X), "attends to a context"),
    "no context, symbolic": (lambda: decoder(cross_attention=True)(keras.Input((6, 8))), "attends to a context"),
    "no context for attention": (lambda: MultiHeadCrossAttention(2)(X), "needs context"),
    "half the segments": (
        lambda: MultiHeadCrossAttention(2)(X, CONTEXT, segment_ids=SEGMENTS),
        "segment_ids and context_segment_ids go together",
    ),
    "half the segments of a block": (
        lambda: decoder(cross_attention=True)(X, CONTEXT, context_segment_ids=SEGMENTS[:, :5]),
        "segment_ids and context_segment_ids go together",
    ),
    "segments that a context does not share": (
        lambda: decoder(cross_attention=True)(X, CONTEXT, segment_ids=SEGMENTS),
        "segment_ids and context_segment_ids go together",
    ),
    "cache with segments": (
        lambda: cached(attention(causal=True), segment_ids=SEGMENTS),
        "segment_ids cannot be combined with cache",
    ),
    "cache with a mask": (
        lambda: cached(decoder(), attention_mask=np.ones((2, 6, 6), bool)),
        "attention_mask cannot be combined with cache",
    ),
    "cache of an encoder": (lambda: cached(encoder()), "A cache serves causal attention.*causal=False"),
    "cache without context": (lambda: built_cross().make_cache(2, 8), "make_cache needs it"),
    "too long for the cache": (lambda: cached_longer(), "capacity.*5|5.*capacity"),
    "odd heads": (
        lambda: attention(position="rotary", head_dim=3)(X),
        r"head_dim \* fraction must be even and positive; got 3",
    ),
    "factors of longrope": (
        lambda: attention(
            position={
                "kind": "rotary",
                "scaling": {"kind": "longrope", "short_factor": [1.0], "long_factor": [1.0], "original_max_length": 4},
            }
        )(X),
        "short_factor needs 2 numbers.*got 1",
    ),
    "odd sinusoids": (lambda: PositionalEncoding()(X[..., :7]), "even width; got 7"),
    "heads of a shared bias": (lambda: shared_by_other_heads(), "2 heads.*4"),
    "too long for learned positions": (lambda: PositionalEncoding("learned", 5)(X), "6 tokens.*max_length=5"),
    "too long, symbolic": (lambda: PositionalEncoding("learned", 5)(keras.Input((6, 8))), "6 tokens.*max_length=5"),
    "mask too short for pooling": (
        lambda: Pooling()(X, padding_mask=np.ones((2, 5), bool)),
        r"padding_mask must have shape \(2, 6\).*\(2, 5\)",
    ),
}


def called_twice(layer: Any, first: Any, second: Any, context: Any = None) -> Any:
    layer(first, **({} if context is None else {"context": CONTEXT}))
    return layer(second, **({} if context is None else {"context": context}))


def built_cross() -> TransformerDecoderBlock:
    block = decoder(cross_attention=True)
    block(X, CONTEXT)
    return block


def cached_longer() -> Any:
    layer = attention(causal=True)
    layer(X)
    return layer(X, cache=layer.make_cache(2, 5))


def shared_by_other_heads() -> Any:
    shared = RelativePositionBias(8, 20)
    MultiHeadSelfAttention(2, position=shared)(X)
    return MultiHeadSelfAttention(4, position=shared)(X)


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(case):
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


SYMBOLIC_MASKS = {
    "padding_mask": keras.KerasTensor((None, 5), dtype="bool"),
    "attention_mask": keras.KerasTensor((None, 6, 5), dtype="bool"),
    "segment_ids": keras.KerasTensor((None, 5), dtype="int32"),
}


@pytest.mark.parametrize("name", SYMBOLIC_MASKS)
def test_bad_masks_raise_while_a_functional_model_is_made(name):
    with pytest.raises(ValueError, match=name):
        encoder()(keras.Input((6, 8)), **{name: SYMBOLIC_MASKS[name]})


def test_nothing_is_built_before_the_error():
    block = TransformerEncoderBlock(3, 16)
    with pytest.raises(ValueError, match="not divisible"):
        block(ops.convert_to_tensor(X))
    assert not block.weights
