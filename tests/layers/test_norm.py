"""Normalizations by name, options or pattern."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy
from keras import ops

from keras_tfm import layers
from keras_tfm.layers import norm

X = normal(2, 6, 8)


def test_names_have_the_usual_epsilons():
    assert norm.make("layer_norm").epsilon == 1e-5
    assert norm.make("rms_norm").epsilon == 1e-6
    centred = X - X.mean(-1, keepdims=True)
    assert_close(norm.make("layer_norm")(X), centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5), 1e-5)
    assert_close(norm.make("rms_norm")(X), X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-6), 1e-5)


def test_options_and_patterns():
    made = norm.make({"kind": "rms_norm", "epsilon": 0.5}, name="n", dtype="mixed_bfloat16")
    assert (type(made), made.epsilon, made.name, made.dtype_policy.name) == (
        layers.RMSNormalization,
        0.5,
        "n",
        "mixed_bfloat16",
    )
    assert norm.make({"epsilon": 0.5}).epsilon == 0.5
    pattern = keras.layers.LayerNormalization(epsilon=0.25, center=False)
    copies = [norm.make(pattern, name=name) for name in ("a", "b")]
    assert copies[0] is not copies[1] is not pattern
    assert all((copy.epsilon, copy.center) == (0.25, False) for copy in copies)


@pytest.mark.parametrize(
    "given", [keras.layers.LayerNormalization(epsilon=0.25), keras.layers.GroupNormalization(2)], ids=["layer", "group"]
)
def test_a_layer_as_pattern_gives_every_norm_of_a_block(given):
    from keras_tfm.layers import TransformerEncoderBlock

    block = TransformerEncoderBlock(2, 16, norm=given)
    block(X)
    norms = [block.attention_residual.input_norm, block.feed_forward_residual.input_norm]
    assert all(type(made) is type(given) and made.epsilon == given.epsilon for made in norms)
    assert norms[0] is not norms[1]


def test_an_offset_adds_to_the_scale():
    layer = norm.make({"kind": "rms_norm", "offset": 1.0})
    normalized = numpy(layer(X))
    np.testing.assert_array_equal(numpy(layer.scale), np.zeros(8))  # starts as the identity
    assert_close(normalized, norm.make("rms_norm")(X), 1e-6)
    scale = 0.3 * normal(8)
    layer.scale.assign(scale)
    assert_close(layer(X), normalized * (1 + scale), 1e-6)


def test_an_offset_is_added_before_any_rounding():
    """1 + 0.001 is 1 in bfloat16: weights near zero would be lost in it."""
    layers_ = [norm.make({"kind": "rms_norm", "offset": 1.0}, dtype=dtype) for dtype in ("float32", "mixed_bfloat16")]
    x = numpy(ops.cast(X, "bfloat16"))
    for layer in layers_:
        layer.build(X.shape)
        layer.scale.assign(np.linspace(0.001, 0.003, 8))
    wide, narrow = (layer(x) for layer in layers_)
    np.testing.assert_array_equal(numpy(narrow), numpy(ops.cast(wide, "bfloat16")))


@pytest.mark.parametrize("scope", ["head", "each_head", "all_heads"])
def test_queries_and_keys_are_normalized_as_the_scope_says(scope):
    """4 heads of queries and 2 of keys: OLMo 2's statistics and weights span them, Command R+'s are each head's own."""
    layer = layers.MultiHeadSelfAttention(4, 2, 5, qk_norm="layer_norm", qk_norm_scope=scope, use_bias=False)
    layer(X)
    fill_weights(layer)
    for project, norm_, made in (
        (layer.query, layer.query_norm, layer._queries(X)),
        (layer.key, layer.key_norm, layer._keys_and_values(X)[0]),
    ):
        heads = np.einsum("btd,dnh->btnh", X, numpy(project.kernel))
        over = (-2, -1) if scope == "all_heads" else -1
        centred = heads - heads.mean(over, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(over, keepdims=True) + 1e-5)
        gamma, beta = (numpy(w).reshape((5,) if scope == "head" else (-1, 5)) for w in (norm_.gamma, norm_.beta))
        assert_close(made, expected * gamma + beta, 1e-5)


def test_a_scope_without_a_norm_is_refused():
    with pytest.raises(ValueError, match="qk_norm_scope='all_heads' says how qk_norm works; give qk_norm too"):
        layers.MultiHeadSelfAttention(2, qk_norm_scope="all_heads")


@pytest.mark.parametrize("given", ["rms_norm", {"kind": "layer_norm", "axis": -1}, keras.layers.LayerNormalization()])
def test_weights_of_each_heads_own_are_a_layer_norms(given):
    with pytest.raises(ValueError, match=r"Weights of each head's own need 'layer_norm'.*got"):
        layers.MultiHeadSelfAttention(2, qk_norm=given, qk_norm_scope="each_head")
