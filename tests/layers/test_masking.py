"""Keras's implicit masks: `TokenEmbedding(mask_zero=True)` is all a model needs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy
from keras import ops

from keras_tfm import layers

TOKENS = np.array([[1, 2, 3, 4, 0, 0], [0, 0, 1, 2, 3, 5]], "int32")
MASK = TOKENS != 0
WIDTH = 8


def blocks() -> list[keras.Layer]:
    return [
        layers.TransformerEncoderBlock(2, 16, position="rotary", name="first"),
        layers.TransformerEncoderBlock(2, 16, norm_placement="post", dropout=0.1, name="second"),
        layers.TransformerDecoderBlock(2, 16, window=3, name="third"),
    ]


@pytest.mark.parametrize("pooling, dtype", [("mean", "float32"), ("last", "float32"), ("mean", "mixed_bfloat16")])
def test_a_model_of_masked_tokens_is_one_with_explicit_masks(pooling, dtype):
    embedding, pool = layers.TokenEmbedding(11, WIDTH, mask_zero=True), layers.Pooling(pooling)
    parts = [type(part).from_config({**part.get_config(), "dtype": dtype}) for part in blocks()]
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.PositionalEncoding()(embedding(token_ids))  # float32 states into blocks of any policy
    for part in parts:
        x = part(x)
    model = keras.Model(token_ids, pool(x))
    for part in [embedding, *parts]:
        fill_weights(part)

    plain = layers.TokenEmbedding(11, WIDTH)
    plain.build()
    plain.table.embeddings.assign(embedding.table.embeddings)
    x = layers.PositionalEncoding()(plain(TOKENS), padding_mask=MASK)
    for part in parts:
        x = part(x, padding_mask=MASK)
    expected = numpy(pool(x, padding_mask=MASK))
    assert_close(model(TOKENS), expected, 1e-5)

    x = layers.PositionalEncoding()(plain(TOKENS))
    for part in parts:
        x = part(x)
    assert np.abs(numpy(pool(x)) - expected).max() > 1e-2  # the mask matters here


def embedded(**options) -> object:
    return layers.TokenEmbedding(11, WIDTH, mask_zero=True, **options)(TOKENS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.TransformerEncoderBlock(2, 16),
        lambda: layers.TransformerDecoderBlock(2, 16),
        lambda: layers.MultiHeadSelfAttention(2),
        lambda: layers.FeedForward(16),
        lambda: layers.PositionalEncoding(),
        lambda: layers.PositionalEncoding("learned", max_length=6),
        lambda: layers.TokenTypeEmbedding(),
        lambda: layers.Dropout(0.5),
        lambda: layers.DropPath(0.5),
        lambda: layers.LayerScale(),
        lambda: layers.ClassificationHead(3),
    ],
    ids=lambda make: type(make()).__name__,
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_masks_flow_through(make, dtype):
    layer = make()
    layer = type(layer).from_config({**layer.get_config(), "dtype": dtype})
    np.testing.assert_array_equal(numpy(layer(embedded())._keras_mask), MASK)


def test_an_explicit_mask_wins():
    block, x = fill_weights(layers.TransformerEncoderBlock(2, 16)), embedded()
    block(x)
    other = np.roll(MASK, 1, axis=1)
    assert_close(block(x, padding_mask=other), block(ops.convert_to_tensor(numpy(x)), padding_mask=other), 1e-6)


def test_a_context_brings_its_own_mask():
    block = layers.TransformerDecoderBlock(2, 16, True)
    x, context = normal(2, 6, WIDTH), embedded()
    block(x, context)
    fill_weights(block)
    values = ops.convert_to_tensor(numpy(context))
    expected = numpy(block(x, values, context_padding_mask=MASK))
    assert_close(block(x, context), expected, 1e-6)
    assert np.abs(numpy(block(x, values)) - expected).max() > 1e-3


def test_the_mask_of_x_is_not_the_contexts():
    """keras-io#1964: cross-attention that was given the target's mask."""
    block = layers.TransformerDecoderBlock(2, 16, True)
    x, context = embedded(), normal(2, 6, WIDTH)
    block(x, context)
    fill_weights(block)
    values = ops.convert_to_tensor(numpy(x))
    assert_close(block(x, context), block(values, context, padding_mask=MASK), 1e-6)


def test_scores_and_caches_do_not_disturb_the_mask():
    block, x = layers.TransformerDecoderBlock(2, 16), embedded()
    output, _ = block(x, return_scores=True)
    np.testing.assert_array_equal(numpy(output._keras_mask), MASK)


def test_masks_reach_keras_losses():
    """A masked sequence model under `fit`: padded places count for nothing."""
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.TransformerEncoderBlock(2, 16)(layers.TokenEmbedding(11, WIDTH, mask_zero=True)(token_ids))
    model = keras.Model(token_ids, layers.ClassificationHead(3)(x))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    labels = TOKENS % 3
    first = model.evaluate(TOKENS, labels, verbose=0)
    second = model.evaluate(TOKENS, np.where(MASK, labels, 2 - labels), verbose=0)
    assert first == pytest.approx(second, rel=1e-6)
