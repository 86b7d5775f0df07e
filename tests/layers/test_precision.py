"""Low precision against float32, by value."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, normal, numpy
from keras import ops

from keras_tfm import layers
from keras_tfm.layers import norm

X, CONTEXT = normal(2, 6, 8, seed=1), normal(2, 5, 8, seed=2)
PADDING = np.array([[1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]], bool)
TOLERANCE = {"mixed_bfloat16": 2e-2, "mixed_float16": 2.5e-3}  # of the error, relative to the size of the output

LAYERS: dict[str, Any] = {
    "attention": lambda **k: layers.MultiHeadSelfAttention(
        2, causal=True, qk_norm="rms_norm", output_gate="elementwise", **k
    ),
    "rotary": lambda **k: layers.TransformerEncoderBlock(2, 16, position="rotary", norm="rms_norm", gated=True, **k),
    "alibi": lambda **k: layers.TransformerEncoderBlock(2, 16, position="alibi", norm_placement="post", **k),
    "relative": lambda **k: layers.TransformerEncoderBlock(2, 16, position="relative", **k),
    "disentangled": lambda **k: layers.TransformerEncoderBlock(2, 16, position="disentangled", **k),
    "sinks": lambda **k: layers.TransformerDecoderBlock(
        2, 16, attention={"sinks": "learned", "logit_softcap": 5.0}, window=3, **k
    ),
    "cross": lambda **k: layers.TransformerDecoderBlock(
        2, 16, True, num_key_value_heads=1, norm_placement="sandwich", layer_scale=0.5, **k
    ),
    "residual": lambda **k: layers.TransformerEncoderBlock(2, 16, norm_placement="residual", parallel=False, **k),
}
ALL, POLICIES = list(LAYERS), list(TOLERANCE)
if BACKEND == "jax":  # which compiles each layer anew for each dtype
    ALL, POLICIES = ["sinks", "cross"], ["mixed_bfloat16"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", ALL)
def test_mixed_precision_is_near_float32(name, policy):
    wide, narrow = LAYERS[name](), LAYERS[name](dtype=policy)
    given = (X, CONTEXT) if name == "cross" else (X,)
    outputs = []
    for layer in (wide, narrow):
        layer(*given)
        fill_weights(layer)
        outputs.append(layer(*given, padding_mask=PADDING))
    assert keras.backend.standardize_dtype(outputs[1].dtype) == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(w.dtype) for w in narrow.weights} == {"float32"}
    expected, rough = (numpy(output)[PADDING].astype(np.float64) for output in outputs)
    error = np.sqrt(np.mean((rough - expected) ** 2) / np.mean(expected**2))
    assert 0 < error < TOLERANCE[policy]


@pytest.mark.parametrize("policy", TOLERANCE)
@pytest.mark.parametrize("kind", ["layer_norm", "rms_norm"])
def test_norm_statistics_are_float32(kind, policy):
    """Squares of 500 overflow float16; sums of 5000 numbers stall in bfloat16."""
    x = 500 * normal(2, 3, 5000) + (100 if kind == "layer_norm" else 0)
    x = numpy(ops.cast(x, policy.removeprefix("mixed_")))
    assert_close(norm.make(kind, dtype=policy)(x), norm.make(kind)(x.astype("float32")), TOLERANCE[policy])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("position", [None, "rotary", "alibi"])
def test_scores_of_10_000_give_no_nan(policy, position):
    layer = layers.MultiHeadSelfAttention(2, causal=True, position=position, dtype=policy, use_bias=False)
    layer.build((None, 6, 8))
    eye = np.eye(8).reshape(8, 2, 4)
    for projection in (layer.query, layer.key):
        projection.kernel.assign(70 * eye)
    layer.value.kernel.assign(eye)
    layer.output_projection.kernel.assign(np.eye(8).reshape(2, 4, 8))
    x = np.sign(X)
    output = numpy(layer(x, padding_mask=PADDING))
    assert np.isfinite(output).all()
    if position is None:
        _, scores = layer(x, padding_mask=PADDING, return_scores=True)
        assert np.isfinite(numpy(scores)).all()
        assert numpy(scores)[PADDING[:, None].repeat(2, 1)].sum(-1) == pytest.approx(1.0)


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_stay_finite_and_near(policy):
    from helpers import gradients

    results = []
    for dtype in ("float32", policy):
        layer = layers.TransformerDecoderBlock(2, 16, position="rotary", dtype=dtype)
        layer(X)
        fill_weights(layer)
        results.append(gradients(lambda x, layer=layer: layer(x, padding_mask=PADDING), X)[1][0])
    assert np.isfinite(results[1]).all()
    error = np.sqrt(np.mean((results[1] - results[0]) ** 2) / np.mean(results[0] ** 2))
    assert error < 2 * TOLERANCE[policy]


@pytest.mark.parametrize("policy", TOLERANCE)
def test_learned_weights_of_scores_are_not_rounded(policy):
    """Sinks are logits: they enter the softmax in float32."""
    layer = layers.MultiHeadSelfAttention(2, sinks="learned", dtype=policy)
    layer(X)
    fill_weights(layer)
    seen = []
    from keras_tfm.ops.kernels import KERNELS

    with pytest.MonkeyPatch.context() as patch:
        for module in KERNELS.values():
            patch.setattr(
                module, "attend", lambda request, real=module.attend: seen.append(request.sinks) or real(request)
            )
        layer(X)
    np.testing.assert_array_equal(numpy(ops.convert_to_tensor(seen[0])).astype("float32"), numpy(layer.sink_logits))


def test_pooling_and_logits_in_low_precision():
    pooled = layers.Pooling("mean", dtype="bfloat16")(np.full((1, 1000, 4), 1.0, "float32"))
    assert_close(pooled, np.ones((1, 4)), 1e-3)
    wide, narrow = layers.TokenEmbedding(11, 8), layers.TokenEmbedding(11, 8, dtype="mixed_bfloat16")
    for layer in (wide, narrow):
        layer.build()
        fill_weights(layer)
    assert_close(narrow(X, reverse=True), wide(X, reverse=True), 5e-2)
