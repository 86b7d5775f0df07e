"""Normalizations by name, options or pattern."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import assert_close, normal

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
        keras.layers.RMSNormalization,
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
