"""A block asked for some tokens gives what it gives them among all, with the same gradients, and computes no more."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, numpy, weight_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tfm as tfm
from keras_tfm.layers import MultiHeadSelfAttention, Pooling, TransformerDecoderBlock, TransformerEncoderBlock

BATCH, LENGTH, WIDTH = 3, 7, 16
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(BATCH, LENGTH, WIDTH)).astype("float32")
CONTEXT = RANDOM.normal(size=(BATCH, 5, WIDTH)).astype("float32")
PLACES = np.array([[0, 6, 3], [2, 2, 0], [1, 0, 0]], "int32")
MASK = np.arange(LENGTH) < np.array([[7], [4], [2]])
SEGMENTS = np.array([[1, 1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]], "int32")
SOME = RANDOM.random((BATCH, LENGTH, LENGTH)) < 0.7

BLOCKS = {
    "post": dict(norm_placement="post"),
    "pre, grouped": dict(num_key_value_heads=2),
    "parallel": dict(parallel=True),
    "shared norm": dict(parallel="shared_norm", norm="rms_norm"),
    "sandwich, gated": dict(norm_placement="sandwich", gated=True, layer_scale=0.5),
    "rotary": dict(position="rotary"),
    "rotary, long": dict(
        position={"kind": "rotary", "scaling": {"kind": "dynamic", "factor": 2.0, "original_max_length": 4}}
    ),
    "alibi, window": dict(position="alibi", window=2),
    "window, global": dict(window=1, attention={"global_tokens": 1}),
    "relative": dict(position="relative"),
    "disentangled": dict(position="disentangled"),
    "gated output, sinks": dict(attention={"output_gate": "elementwise", "sinks": "learned", "qk_norm": "rms_norm"}),
    "experts": dict(feed_forward={"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2}),
}
MASKS = {
    "none": {},
    "padding": {"padding_mask": MASK},
    "segments": {"padding_mask": MASK, "segment_ids": SEGMENTS},
    "explicit": {"attention_mask": SOME},
    "by head": {"attention_mask": np.repeat(SOME[:, None], 4, 1)},
    "positions": {"positions": np.array([[3, 4, 5, 6, 8, 9, 10]], "int32")},
}


def picked(y, places=PLACES):
    return np.take_along_axis(numpy(y), places[:, :, None], axis=1)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    "kind, options",
    [(TransformerEncoderBlock, name) for name in BLOCKS]
    + [(TransformerDecoderBlock, name) for name in BLOCKS if "global" not in name],  # these see what comes after
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_some_tokens_of_a_block(kind, options, mask):
    block = kind(4, 24, **BLOCKS[options])
    block.build((None, None, WIDTH))
    fill_weights(block, 0.3)
    given = MASKS[mask]
    whole = block(X, **given)
    some = block(X, **given, places=PLACES)
    assert_close(some, picked(whole), tolerance=2e-5)
    symbols = {name: keras.Input(value.shape[1:], len(value), dtype=str(value.dtype)) for name, value in given.items()}
    spec = block(keras.Input((None, WIDTH), BATCH), **symbols, places=keras.Input((3,), BATCH, dtype="int32"))
    assert spec.shape == (BATCH, 3, WIDTH)


def test_cross_attention_and_scores():
    block = TransformerDecoderBlock(4, 24, cross_attention=True)
    given = {"segment_ids": SEGMENTS, "context_segment_ids": np.array([[1, 1, 2, 2, 3]] * 3, "int32")}
    block(X, CONTEXT)
    fill_weights(block, 0.3)
    whole, scores = block(X, CONTEXT, **given, return_scores=True)
    some, of_some = block(X, CONTEXT, **given, return_scores=True, places=PLACES)
    assert_close(some, picked(whole), tolerance=2e-5)
    for name in ("attention", "cross_attention"):
        expected = np.take_along_axis(numpy(scores[name]), PLACES[:, None, :, None], axis=2)
        assert_close(of_some[name], expected, tolerance=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, LENGTH - 1), min_size=2, max_size=2), min_size=BATCH, max_size=BATCH))
def test_any_places(places):
    layer = _attention()
    places = np.array(places, "int32")
    assert_close(
        layer(X, padding_mask=MASK, places=places), picked(layer(X, padding_mask=MASK), places), tolerance=2e-5
    )


def _attention(made=[]):  # noqa: B006
    if not made:
        layer = MultiHeadSelfAttention(4, causal=True, position="rotary", window=3)
        layer.build((None, None, WIDTH))
        made.append(fill_weights(layer, 0.3))
    return made[0]


def test_masks_of_keras_follow():
    embedded = keras.layers.Embedding(9, WIDTH, mask_zero=True)(np.array([[1, 2, 0], [3, 0, 0]]))
    block = TransformerEncoderBlock(4, 24)
    places = np.array([[1, 2], [0, 1]], "int32")
    some = block(embedded, places=places)
    assert numpy(some._keras_mask).tolist() == [[True, False], [True, False]]
    assert_close(Pooling("last")(some), numpy(some)[[0, 1], [0, 0]], tolerance=1e-6)
    assert_close(some, picked(block(embedded), places), tolerance=2e-5)


@pytest.mark.parametrize(
    ("places", "match"),
    [
        (np.zeros((BATCH, 2), "float32"), "integers"),
        (np.zeros((BATCH,), "int32"), r"\(3, n\) integers"),
        (np.zeros((2, 2), "int32"), r"\(3, n\) integers; got shape \(2, 2\)"),
    ],
)
def test_what_are_no_places(places, match):
    with pytest.raises(ValueError, match=match):
        TransformerEncoderBlock(4, 24)(X, places=places)


def test_no_places_beside_a_cache():
    block = TransformerDecoderBlock(4, 24)
    block(X)
    with pytest.raises(ValueError, match="cannot be combined with cache"):
        block(X, cache=block.make_cache(BATCH, 8), places=PLACES)


# Classifiers, whose heads read one token ------------------------------------------------------------------------------

SIZES = dict(num_layers=2, hidden_dim=16, num_heads=2, vocabulary_size=30, max_sequence_length=16, dropout=0.0)
IDS = RANDOM.integers(1, 30, (4, 9)).astype("int32")
REAL = np.arange(9) < np.array([[9], [5], [1], [0]])
MODELS = {
    "bert": lambda: tfm.TextClassifier(tfm.models.bert(**SIZES), 3),
    "first": lambda: tfm.TextClassifier(tfm.models.bert(**SIZES), 3, pooling="first"),
    "padding is token 0": lambda: tfm.TextClassifier(tfm.models.bert(**SIZES, mask_zero=True), 3, pooling="last"),
    "gpt": lambda: tfm.TextClassifier(tfm.models.gpt(**SIZES, window=3), 3),
    "experts": lambda: tfm.TextClassifier(
        tfm.models.gpt(
            **SIZES,
            feed_forward={"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2, "balance_loss": 0.1},
        ),
        3,
    ),
    "shared block": lambda: tfm.TextClassifier(tfm.models.bert(**SIZES, layer_groups=1), 3),
    "mean": lambda: tfm.TextClassifier(tfm.models.bert(**SIZES), 3, pooling="mean"),
}


class Whole(tfm.TextClassifier):
    """Computes all of the last block, for its head is its own."""

    def _apply_head(self, hidden, inputs, training):
        return super()._apply_head(hidden, inputs, training)


@pytest.mark.parametrize("inputs", ["tokens", "mask", "left", "segments"])
@pytest.mark.parametrize("name", MODELS)
def test_a_classifier_is_its_graph(name, inputs):
    model = fill_weights(MODELS[name](), 0.3)
    x = {"token_ids": IDS}
    if name == "padding is token 0":
        x["token_ids"] = IDS * REAL
    elif inputs == "mask":
        x["padding_mask"] = REAL
    elif inputs == "left":
        x["padding_mask"] = REAL[:, ::-1]
    elif inputs == "segments":
        if model.pooling not in ("first", "pooler"):
            pytest.skip("packed rows are pooled at first tokens")
        x["segment_ids"] = np.repeat(np.array([[1, 1, 1, 2, 2, 2, 3, 3, 3]], "int32"), 4, 0)
        x["segment_starts"] = np.repeat(np.array([[0, 3, 6]], "int32"), 4, 0)
    whole = Whole(model.backbone, 3, pooling=model.pooling, dropout=0.0)
    whole.head = model.head
    assert_close(model(x), whole(x), tolerance=1e-5)
    shape = (4, 3) if "segment_starts" in x else (4,)
    labels = RANDOM.integers(0, 3, shape).astype("int32")

    def loss(which):
        return lambda: (
            keras.ops.mean(
                keras.losses.sparse_categorical_crossentropy(labels, which(x, training=True), from_logits=True)
            )
            + sum(which.losses)
        )

    assert_close(weight_gradients(model, loss(model)), weight_gradients(model, loss(whole)))


def test_no_more_is_computed_than_is_read(monkeypatch):
    model = tfm.TextClassifier(tfm.models.bert(**SIZES), 3)
    shapes = []
    cls = type(model.backbone.blocks[0].feed_forward)
    plain = cls.call
    monkeypatch.setattr(cls, "call", lambda self, x, *a, **k: shapes.append(tuple(x.shape)) or plain(self, x, *a, **k))
    model({"token_ids": IDS, "padding_mask": REAL})
    assert shapes == [(4, 9, 16), (4, 1, 16)]


def test_recomputed_blocks_too():
    model = fill_weights(tfm.TextClassifier(tfm.models.bert(**SIZES), 3), 0.3)
    labels = np.array([0, 1, 2, 1], "int32")

    def loss():
        logits = model({"token_ids": IDS, "padding_mask": REAL}, training=True)
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))

    plain = weight_gradients(model, loss)
    model.backbone.recompute_blocks()
    assert_close(weight_gradients(model, loss), plain, tolerance=1e-6)


def test_images():
    model = fill_weights(tfm.ImageClassifier(tfm.models.vit("tiny", image_size=32, patch_size=8, num_layers=2), 3), 0.1)
    images = RANDOM.normal(size=(2, 32, 32, 3)).astype("float32")
    hidden = model.backbone(images)
    assert_close(model(images), model._apply_head(hidden, {"images": images}, False), tolerance=1e-5)
    if BACKEND != "torch":
        model.predict(images, verbose=0)


def test_states_at():
    backbone = fill_weights(tfm.models.gpt(**SIZES), 0.3)
    assert_close(
        backbone.states_at(IDS, PLACES[[0, 1, 2, 0]]), picked(backbone(IDS), PLACES[[0, 1, 2, 0]]), tolerance=1e-5
    )
    with pytest.raises(ValueError, match="two sequences"):
        tfm.models.transformer(**SIZES).states_at(IDS, PLACES)
