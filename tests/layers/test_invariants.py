"""What must hold whatever the options: causality, padding, packing, windows, grouped heads."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, FLOATS, assert_close, fill_weights, gradients, normal, numpy, reset_seeds, weight_gradients
from keras import ops

from keras_tfm import layers
from keras_tfm.ops.kernels import KERNELS

pytestmark = pytest.mark.usefixtures("several_blocks", "flex_with_gradients")

BATCH, LENGTH, WIDTH = 2, 6, 8
X, OTHER, CONTEXT = (normal(BATCH, LENGTH, WIDTH, seed=seed) for seed in (1, 2, 3))
CUT = 3 if BACKEND == "jax" else 4  # of a sequence into parts: each length of part is compiled anew on JAX
RANDOM = {"dropout": 0.3, "attention_dropout": 0.3, "activation_dropout": 0.3, "drop_path": 0.3}
NOT_HERE = {"tensorflow": ("fused", "flex", "splash"), "jax": ("flex",), "torch": ("splash",)}[BACKEND]  # kernels

ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 3},
    "grouped": {"num_key_value_heads": 1},
    "rotary": {"position": "rotary"},
    "alibi": {"position": "alibi"},
    "relative": {"position": {"kind": "relative", "num_buckets": 8, "max_distance": 20}},
    "disentangled": {"position": {"kind": "disentangled", "num_buckets": 8, "max_distance": 20}},
    "qk_norm": {"qk_norm": "rms_norm"},
    "softcap": {"logit_softcap": 1.0},
    "sinks": {"sinks": "learned"},
    "gate": {"output_gate": "elementwise"},
    **{f"kernel {name}": {"kernel": name} for name in KERNELS if name not in NOT_HERE},
    "many": {
        "window": 4,
        "position": "rotary",
        "num_key_value_heads": 1,
        "qk_norm": "layer_norm",
        "qk_norm_scope": "each_head",
        "sinks": "off_by_one",
        "output_gate": "headwise",
    },
}
BLOCK: dict[str, dict[str, Any]] = {
    "post": {"norm_placement": "post"},
    "sandwich": {"norm_placement": "sandwich", "norm": "rms_norm", "gated": True, "layer_scale": 0.5},
    "parallel": {"parallel": True, "position": "alibi"},
    "shared norm": {"parallel": "shared_norm", "window": 3},
    "many": {
        "attention": {"qk_norm": "rms_norm", "qk_norm_scope": "all_heads", "sinks": "learned"},
        "position": "rotary",
        "num_key_value_heads": 1,
        "window": 3,
    },
}
NOT_CAUSAL = {"global": {"window": 1, "attention": {"global_tokens": 1}}}


def attention(options: dict[str, Any], **keywords: Any) -> keras.Layer:
    return layers.MultiHeadSelfAttention(2, **{"causal": True, **options}, **keywords)


def decoder(options: dict[str, Any], **keywords: Any) -> keras.Layer:
    return layers.TransformerDecoderBlock(2, 16, **options, **keywords)


def encoder(options: dict[str, Any], **keywords: Any) -> keras.Layer:
    return layers.TransformerEncoderBlock(2, 16, **options, **keywords)


CAUSAL = [("attention", name, options) for name, options in ATTENTION.items()] + [
    ("decoder", name, options) for name, options in BLOCK.items()
]
MAKERS = {"attention": attention, "decoder": decoder, "encoder": encoder}


def filled(layer: keras.Layer, *inputs: Any) -> keras.Layer:
    layer(*inputs)
    return fill_weights(layer)


def changed_at(x: np.ndarray, place: int) -> np.ndarray:
    """`x` with other tokens at one place."""
    result = x.copy()
    result[:, place] = OTHER[:, place]
    return result


# Causality -----------------------------------------------------------------------------------------------------------


def assert_causal(call, x: np.ndarray, tolerance: float = 1e-6) -> None:
    before = numpy(call(x))
    for place in (1, 4):
        after = numpy(call(changed_at(x, place)))
        assert_close(after[:, :place], before[:, :place], tolerance)
        assert np.abs(after[:, place] - before[:, place]).max() > 1e-2


@pytest.mark.parametrize("kind, name, options", CAUSAL, ids=lambda v: v if isinstance(v, str) else "")
def test_the_past_does_not_see_the_future(kind, name, options):
    layer = filled(MAKERS[kind](options), X)
    assert_causal(layer, X)
    if options.get("kernel") not in ("fused", "blockwise", "splash", "flex"):
        output, scores = layer(X, return_scores=True)
        assert_close(output, layer(X), 1e-5)
        assert np.all(numpy(scores)[..., ~np.tri(LENGTH, dtype=bool)] == 0)
        assert_causal(lambda x: layer(x, return_scores=True)[0], X)
    for padding in ([[1, 1, 1, 1, 1, 0], [1] * 6], [[0, 1, 1, 1, 1, 1], [1] * 6]):
        mask = np.array(padding, bool)
        assert_causal(lambda x, mask=mask: np.where(mask[:, :, None], numpy(layer(x, padding_mask=mask)), 0.0), X)


@pytest.mark.parametrize(
    "kind, name",
    [
        ("attention", "plain"),
        ("attention", "window"),
        ("attention", "many"),
        ("decoder", "post"),
        ("decoder", "parallel"),
        ("decoder", "many"),
    ],
)
def test_the_past_does_not_see_the_future_in_training(kind, name):
    """With every kind of dropout on, drawn alike: K#23038."""
    options = ATTENTION[name] if kind == "attention" else BLOCK[name]
    random = {"dropout": 0.3} if kind == "attention" else RANDOM
    layer = filled(MAKERS[kind]({**options, **random}), X)

    def train(x, **keywords):
        reset_seeds(layer, seed=3)
        return layer(x, training=True, **keywords)

    assert np.abs(numpy(train(X)) - numpy(layer(X))).max() > 1e-2
    assert_causal(train, X)
    assert_causal(lambda x: train(x, return_scores=True)[0], X)


@pytest.mark.parametrize("kind, name", [("attention", "rotary"), ("decoder", "many")])
def test_the_past_does_not_see_the_future_in_mixed_precision(kind, name):
    options = ATTENTION[name] if kind == "attention" else BLOCK[name]
    assert_causal(filled(MAKERS[kind](options, dtype="mixed_bfloat16"), X), X, 0)


def test_cross_attention_sees_all_of_the_context_and_the_past_of_x():
    block = filled(decoder({"cross_attention": True}), X, CONTEXT)
    assert_causal(lambda x: block(x, CONTEXT), X)
    moved = numpy(block(X, changed_at(CONTEXT, LENGTH - 1))) - numpy(block(X, CONTEXT))
    assert np.all(np.abs(moved).max(-1) > 1e-4)


def test_an_encoder_block_sees_the_future():
    block = filled(encoder({}), X)
    moved = numpy(block(changed_at(X, LENGTH - 1))) - numpy(block(X))
    assert np.all(np.abs(moved).max(-1) > 1e-4)


# Padding -------------------------------------------------------------------------------------------------------------

PADDED = [
    (kind, name)
    for kind in ("encoder", "decoder")
    for name in ("plain", "window", "grouped", "rotary", "alibi", "relative", "disentangled", "sinks", "gate")
]
PADDED += [("encoder", "post"), ("encoder", "global"), ("decoder", "parallel")]


@pytest.mark.parametrize("kind, name", PADDED)
def test_padding_does_not_matter(kind, name):
    """Rows of few tokens: alone, padded on the right, padded on the left, with anything in padded places."""
    attention_options = ATTENTION.get(name, {})
    options = {**BLOCK, **NOT_CAUSAL}.get(
        name, {**{k: v for k, v in attention_options.items() if k in ("window", "num_key_value_heads", "position")}}
    )
    rest = {k: v for k, v in attention_options.items() if k not in options}
    layer = filled(MAKERS[kind]({"attention": rest or None, **options}), X)
    alone = numpy(layer(X[:, :CUT]))
    for real in (slice(0, CUT), slice(LENGTH - CUT, LENGTH)):
        mask = np.zeros((BATCH, LENGTH), bool)
        mask[:, real] = True
        for filling in (0.0, 1e4):
            padded = np.full_like(X, filling)
            padded[:, real] = X[:, :CUT]
            output = numpy(layer(padded, padding_mask=mask))
            assert np.isfinite(output).all()
            assert_close(output[:, real], alone, 2e-5)


def test_padding_of_the_context_does_not_matter():
    block = filled(decoder({"cross_attention": True}), X, CONTEXT)
    alone = block(X, CONTEXT[:, :CUT])
    for real in (slice(0, CUT), slice(LENGTH - CUT, LENGTH), [0, 2, 3, 5][:CUT]):
        mask, padded = np.zeros((BATCH, LENGTH), bool), np.full_like(CONTEXT, 1e4)
        mask[:, real], padded[:, real] = True, CONTEXT[:, :CUT]
        assert_close(block(X, padded, context_padding_mask=mask), alone, 1e-5)


def test_padding_gets_no_gradient():
    layer, mask = filled(attention({"position": "rotary"}), X), np.array([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    real = ops.convert_to_tensor(mask[:, :, None])
    _, (grad,) = gradients(lambda x: ops.where(real, layer(x, padding_mask=mask), 0.0), X)
    assert np.all(grad[~mask] == 0)
    assert np.all(np.abs(grad[mask]).max(-1) > 0)


# Packing -------------------------------------------------------------------------------------------------------------

SEGMENTS = np.repeat([7, 2], [CUT, LENGTH - CUT])[None].repeat(BATCH, 0).astype("int32")


PACKED = [
    ("decoder", "rotary"),
    ("encoder", "post"),
    ("encoder", "window"),
    ("encoder", "global"),
    ("decoder", "alibi"),
    ("decoder", "relative"),
    ("encoder", "disentangled"),
    ("encoder", "grouped"),
]


@pytest.mark.parametrize(
    "kind, name", PACKED[:1] if BACKEND == "jax" else PACKED
)  # on JAX, gradients compile for seconds
def test_packed_is_separate(kind, name):
    layer = filled(MAKERS[kind]({**ATTENTION, **BLOCK, **NOT_CAUSAL}[name]), X)
    weights = normal(BATCH, LENGTH, WIDTH, seed=9)

    def weighted(part=slice(None), **keywords):
        return lambda x: layer(x, **keywords) * ops.convert_to_tensor(weights[:, part] / cosines(x.shape))

    def cosines(shape):  # what `gradients` weighs outputs by
        return np.cos(np.arange(np.prod(shape))).reshape(shape).astype("float32")

    output, (grad,) = gradients(weighted(segment_ids=SEGMENTS), X)
    output = output * cosines(X.shape) / weights
    for part in (slice(0, CUT), slice(CUT, LENGTH)):
        assert_close(output[:, part], layer(X[:, part]), 2e-5)
        _, (alone,) = gradients(weighted(part), X[:, part])
        assert_close(grad[:, part], alone, 5e-5)


def test_packed_is_separate_in_weight_gradients():
    layer = filled(decoder({"position": "rotary"}), X)
    weights = ops.convert_to_tensor(normal(BATCH, LENGTH, WIDTH, seed=9))
    packed = weight_gradients(layer, lambda: ops.sum(layer(X, segment_ids=SEGMENTS) * weights))
    parts = [
        weight_gradients(layer, lambda part=part: ops.sum(layer(X[:, part]) * weights[:, part]))
        for part in (slice(0, CUT), slice(CUT, LENGTH))
    ]
    assert len(packed) == len(layer.trainable_weights) > 0
    for path, grad in packed.items():
        assert_close(grad, parts[0][path] + parts[1][path], 5e-5)


def test_packed_is_separate_across_a_context():
    """Each target segment reads the source segment of its own id, wherever it lies."""
    block = filled(decoder({"cross_attention": True}), X, CONTEXT)
    context_segments = np.array([[2, 2, 2, 7, 7, 7]] * BATCH, "int32")
    packed = numpy(block(X, CONTEXT, segment_ids=SEGMENTS, context_segment_ids=context_segments))
    assert_close(packed[:, :CUT], block(X[:, :CUT], CONTEXT[:, 3:]), 1e-5)
    assert_close(packed[:, CUT:], block(X[:, CUT:], CONTEXT[:, :3]), 1e-5)


# Windows, heads, masks, positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_window_over_everything_is_no_window(kind):
    full, windowed = (filled(MAKERS[kind]({"window": window, "position": "rotary"}), X) for window in (None, LENGTH))
    assert_close(windowed(X), full(X), 1e-6)
    narrow = filled(MAKERS[kind]({"window": 2, "position": "rotary"}), X)
    assert np.abs(numpy(narrow(X)) - numpy(full(X))).max() > 1e-3


@pytest.mark.parametrize("cls", [layers.MultiHeadSelfAttention, layers.MultiHeadCrossAttention])
def test_grouped_heads_are_repeated_ordinary_ones(cls):
    inputs = (X,) if cls is layers.MultiHeadSelfAttention else (X, CONTEXT)
    grouped, full = (filled(cls(4, heads), *inputs) for heads in (2, None))
    for name in ("query", "key", "value", "output_projection"):
        for ours, theirs in zip(getattr(grouped, name).weights, getattr(full, name).weights, strict=True):
            values = numpy(ours)
            axis = values.ndim - 2
            theirs.assign(np.repeat(values, 2, axis=axis) if name in ("key", "value") else values)
    assert_close(grouped(*inputs), full(*inputs), 1e-5)


def test_as_many_kv_heads_as_heads_is_ordinary():
    ordinary, same = (filled(layers.MultiHeadSelfAttention(2, heads, causal=True), X) for heads in (None, 2))
    np.testing.assert_array_equal(numpy(ordinary(X)), numpy(same(X)))


def test_words_and_masks_say_the_same():
    """Causality, padding and segments in words, and as one attention_mask."""
    layer, loose = filled(attention({}), X), filled(attention({"causal": False}), X)
    padding = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
    mask = np.tri(LENGTH, dtype=bool) & padding[:, None] & (SEGMENTS[:, :, None] == SEGMENTS[:, None])
    expected = layer(X, padding_mask=padding, segment_ids=SEGMENTS)
    assert_close(loose(X, attention_mask=mask), expected, 1e-6)
    assert_close(loose(X, attention_mask=np.repeat(mask[:, None], 2, 1)), expected, 1e-6)


@pytest.mark.parametrize("name", ["rotary", "alibi", "relative", "disentangled"])
def test_only_position_differences_matter(name):
    layer = filled(attention(ATTENTION[name]), X)
    places = np.arange(LENGTH, dtype="int32")[None]
    expected = numpy(layer(X))
    assert_close(layer(X, positions=places), expected, 1e-6)
    assert_close(layer(X, positions=places + 9), expected, 1e-4)
    assert np.abs(numpy(layer(X, positions=places * 2)) - expected).max() > 1e-3


def test_position_schemes_are_blind_to_order_without_one():
    """Without positions, a permutation of the tokens permutes the outputs: the schemes above do something."""
    layer, order = filled(encoder({}), X), np.array([3, 0, 5, 1, 4, 2])
    assert_close(numpy(layer(X))[:, order], layer(X[:, order]), 1e-5)
    rotary = filled(encoder({"position": "rotary"}), X)
    assert np.abs(numpy(rotary(X))[:, order] - numpy(rotary(X[:, order]))).max() > 1e-3


@pytest.mark.parametrize("kind", ["attention", "encoder"])
def test_scores_are_of_the_outputs(kind):
    layer = filled(MAKERS[kind]({"sinks": "learned"} if kind == "attention" else {}), X)
    output, scores = layer(X, return_scores=True)
    assert tuple(scores.shape) == (BATCH, 2, LENGTH, LENGTH)
    total = numpy(scores).sum(-1)
    assert np.all(total < 1) if kind == "attention" else np.allclose(total, 1, atol=FLOATS["float32"])
    assert_close(output, layer(X), 1e-5)


def test_cross_scores_come_by_name():
    block = filled(decoder({"cross_attention": True}), X, CONTEXT[:, :4])
    _, scores = block(X, CONTEXT[:, :4], return_scores=True)
    assert {name: tuple(s.shape) for name, s in scores.items()} == {
        "attention": (2, 2, 6, 6),
        "cross_attention": (2, 2, 6, 4),
    }
    assert np.all(numpy(scores["attention"])[..., ~np.tri(6, dtype=bool)] == 0)
    assert_close(numpy(scores["cross_attention"]).sum(-1), np.ones((2, 2, 6)))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_keeps_the_expectation(rate):
    """Over many samples, dropout of a linear path averages out; the same row 800 times is as many draws."""
    layer = filled(layers.MultiHeadSelfAttention(2, dropout=rate, causal=True), X)
    many = np.repeat(X[:1], 800, 0)
    reset_seeds(layer)
    draws = numpy(layer(many, training=True))
    error = draws.std(0) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(0) - numpy(layer(X[:1]))[0]) < 5 * error + 1e-4)
    assert error.min() > 0


def test_the_dropouts_of_one_block_draw_independently():
    """A seed makes a block reproducible; it must not make its two branches drop the same elements."""
    block = layers.TransformerEncoderBlock(2, 16, dropout=0.5, seed=1)
    ones = np.ones((8, 32, 8), "float32")
    first, second = (
        numpy(part.dropout_layer(ones, training=True))
        for part in (block.attention_residual, block.feed_forward_residual)
    )
    assert 0.4 < (first == second).mean() < 0.6
