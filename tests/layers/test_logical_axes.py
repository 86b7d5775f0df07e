"""Every weight of every layer says what its dimensions are, for layouts to go by."""

from __future__ import annotations

import keras
import pytest
from helpers import fill_weights

from keras_tfm import layers

from .options import OPTIONS, argument_sets, build_layer, call, inputs, symbolic_inputs

KNOWN = {None, "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "positions", "classes", "experts"}


@pytest.mark.parametrize("layer", [name for name in OPTIONS if name != "PositionScheme"])
def test_every_weight_names_its_axes(layer):
    given = symbolic_inputs(inputs())
    for arguments in argument_sets(layer):
        made = build_layer(layer, arguments)
        call(made, given)  # builds it
        for weight in made.weights:
            axes = getattr(weight, "logical_axes", None)
            assert axes is not None, f"{weight.path} with {arguments}"
            assert len(axes) == len(weight.shape), f"{weight.path}: {axes} for {weight.shape}"
            assert set(axes) <= KNOWN, f"{weight.path}: {axes}"


def test_axes_mean_what_they_say():
    """Sizes chosen apart, so that an axis named wrongly has the wrong size."""
    sizes = {"embed": 24, "heads": 6, "kv_heads": 2, "head_dim": 5, "mlp": 7, "vocab": 11, "positions": 9, "classes": 3}
    sizes["experts"] = 4
    x = keras.Input((4, 24))
    options = {"num_key_value_heads": 2, "head_dim": 5, "gated": True, "layer_scale": 0.1}
    rich = {"qk_norm": "rms_norm", "sinks": "learned", "position": "relative"}
    block = layers.TransformerDecoderBlock(
        6, 7, cross_attention=True, norm_placement="sandwich", attention=rich, **options
    )
    block(x, x)
    experts = layers.MixtureOfExperts(4, 2, 7, use_bias=True, use_router_bias=True, shared_dim=7, shared_gate=True)
    experts(x)
    table, untied = layers.TokenEmbedding(11, 24), layers.TokenEmbedding(11, 24, tied=False)
    encoding, head, lm_head = (
        layers.PositionalEncoding("learned", max_length=9),
        layers.ClassificationHead(3),
        layers.MaskedLMHead(11),
    )
    for layer in (table, untied):
        layer.build()
    encoding(x), head(x), lm_head(x, token_embedding=table)
    seen = set()
    for layer in (block, experts, table, untied, encoding, head, lm_head):
        for weight in fill_weights(layer).weights:
            for axis, size in zip(weight.logical_axes, weight.shape, strict=True):
                square = layer is lm_head and weight.path.endswith(
                    ("hidden/kernel", "hidden/bias")
                )  # as wide as it is long
                assert axis is None or size == sizes[axis] or square, f"{weight.path}: {axis} is {size}"
                seen.add(axis)
    assert seen >= set(sizes)
