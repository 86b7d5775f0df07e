"""Token and token-type embeddings."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import FLOATS, assert_close, fill_weights, ids, normal, numpy, policy
from keras import ops

from keras_tfm.layers import Pooling, TokenEmbedding, TokenTypeEmbedding, TransformerEncoderBlock

TOKENS = ids(2, 6)


def test_embedding_and_tied_head_share_one_table():
    layer = TokenEmbedding(11, 8)
    layer.build()
    (table,) = (numpy(w) for w in fill_weights(layer).weights)
    assert_close(layer(TOKENS), table[TOKENS], 0)
    x = normal(2, 6, 8)
    assert_close(layer(x, reverse=True), x @ table.T)


def test_an_untied_head_has_a_table_of_its_own():
    layer = TokenEmbedding(11, 8, tied=False)
    layer.build()
    shapes = [tuple(w.shape) for w in fill_weights(layer).weights]
    assert shapes == [(11, 8), (8, 11)]
    x = normal(2, 6, 8)
    assert_close(layer(x, reverse=True), x @ numpy(layer.weights[1]))


def test_scale_is_for_embeddings_not_logits():
    layer = TokenEmbedding(11, 8, scale=8**0.5)
    layer.build()
    (table,) = (numpy(w) for w in fill_weights(layer).weights)
    assert_close(layer(TOKENS), table[TOKENS] * 8**0.5, 1e-6)
    x = normal(2, 6, 8)
    assert_close(layer(x, reverse=True), x @ table.T)


def test_mask_zero_attaches_the_mask():
    tokens = np.array([[3, 2, 0], [0, 1, 2]])
    embedded = TokenEmbedding(11, 8, mask_zero=True)(tokens)
    np.testing.assert_array_equal(numpy(embedded._keras_mask), tokens != 0)
    assert getattr(TokenEmbedding(11, 8)(tokens), "_keras_mask", None) is None


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_padding_does_not_matter_in_a_sequential_model(dtype):
    """Which hands ids over as floats, of the first layer's compute dtype, unless it begins with an Input."""
    with policy(dtype):
        embedding = TokenEmbedding(100, 32, mask_zero=True)
        model = keras.Sequential([embedding, TransformerEncoderBlock(4, 64), Pooling("mean")])
        padded, alone = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8]]), np.array([[1, 2, 3]])
        assert_close(
            numpy(model(padded))[0], numpy(model(alone))[0], FLOATS["bfloat16" if "bf" in dtype else "float32"]
        )
        floats = keras.Input((None,), dtype="float32")
        functional = keras.Model(floats, model.layers[-1](model.layers[-2](embedding(floats))))
        assert_close(functional(padded.astype("float32")), model(padded), FLOATS["bfloat16"])


def test_float_ids_have_the_mask_of_integers():
    layer, tokens = TokenEmbedding(5000, 8, mask_zero=True, dtype="mixed_float16"), np.array([[4999, 2049, 0]])
    floats = tokens.astype("float32")
    assert_close(layer(floats), layer(tokens), 0)  # float16 has no 2049
    for mask in (layer(floats)._keras_mask, layer.compute_mask(floats), layer.compute_mask(tokens)):
        np.testing.assert_array_equal(numpy(mask), tokens != 0)
    hidden = normal(3, 8)  # (batch, hidden_dim), as a decode step has
    assert getattr(layer(hidden, reverse=True), "_keras_mask", None) is None


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 2048), ("bfloat16", 256)])
def test_ids_in_a_float_too_coarse_for_them_raise(dtype, largest):
    ids_ = keras.Input((None,), dtype=dtype)
    TokenEmbedding(largest + 1, 8)(ids_)
    with pytest.raises(ValueError, match=rf"{dtype}.*up to {largest};.*{largest + 2}.*dtype='int32'"):
        TokenEmbedding(largest + 2, 8)(ids_)


@pytest.mark.filterwarnings("error")
def test_a_tied_head_takes_masked_states_quietly():
    layer = TokenEmbedding(11, 8, mask_zero=True)
    logits = layer(layer(np.array([[3, 2, 0]])), reverse=True)
    assert tuple(logits.shape) == (1, 3, 11)


@pytest.mark.parametrize("wrong", [-1, 11])
@pytest.mark.parametrize("kind", ["numpy", "eager"])
def test_ids_outside_the_vocabulary_raise(wrong, kind):
    tokens = np.array([[1, wrong, 3]], "int32")
    with pytest.raises(ValueError, match=r"token_ids must be from 0 to 10.*vocabulary_size.*got"):
        TokenEmbedding(11, 8)(tokens if kind == "numpy" else ops.convert_to_tensor(tokens))


def test_token_types_add_their_row():
    layer, x, types = TokenTypeEmbedding(3), normal(2, 6, 8), ids(2, 6) % 3
    layer.build(x.shape)
    (table,) = (numpy(w) for w in fill_weights(layer).weights)
    assert_close(layer(x, types), x + table[types])
    assert_close(layer(x), x + table[0])
    with pytest.raises(ValueError, match="token_type_ids must be from 0 to 2"):
        layer(x, types + 1)
