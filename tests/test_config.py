"""`TransformerConfig` accepts what fits, survives JSON, and says what does not fit."""

import json

import pytest

from keras_tfm import TransformerConfig

SMALL = dict(kind="decoder", vocabulary_size=11, hidden_dim=8, num_layers=2, num_heads=2, intermediate_dim=16)


def test_survives_json():
    config = TransformerConfig(
        **SMALL, position={"kind": "rotary", "base": 500.0}, norm={"kind": "rms_norm", "epsilon": 1e-3}
    )
    assert TransformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.replace(num_layers=3).num_layers == 3
    assert config.position_kind == "rotary"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(kind="coder"), ["kind", "coder"]),
        (dict(hidden_dim=9), ["hidden_dim=9", "num_heads=2", "head_dim"]),
        (dict(num_key_value_heads=3), ["num_key_value_heads", "num_heads=2", "3"]),
        (dict(num_layers=0), ["num_layers", "0"]),
        (dict(dropout=1.5), ["dropout", "1.5"]),
        (dict(position="learned"), ["learned", "max_sequence_length"]),
        (dict(attention_position="alibi"), ["rotary", "attention_position='alibi'", "either"]),
        (dict(position=None, attention_position="sinusoidal"), ["attention_position='sinusoidal'", "position"]),
        (dict(num_decoder_layers=2), ["num_decoder_layers", "encoder_decoder"]),
        (dict(pooler=True), ["pooler", "encoder"]),
        (dict(token_type_vocabulary_size=2), ["token_type_vocabulary_size", "encoder"]),
        (dict(num_head=4), ["num_head", "num_heads"]),
        (dict(layer_pattern=[{"window": 4}, {"windows": 4}]), ["layer_pattern", "'windows'"]),
        (dict(layer_pattern=[{"window": 4}, {}], layer_groups=1), ["layer_pattern", "layer_groups", "either"]),
    ],
)
def test_says_what_does_not_fit(changes, words):
    with pytest.raises(ValueError) as error:
        TransformerConfig.from_dict({**SMALL, "position": "rotary", **changes})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("placement", "expected"), [("pre", True), ("sandwich", True), ("post", False)])
def test_final_norm_follows_the_placement(placement, expected):
    config = TransformerConfig(**SMALL, position="rotary", norm_placement=placement)
    assert config.has_final_norm is expected
    assert config.replace(final_norm=not expected).has_final_norm is not expected


def test_a_pattern_repeats_and_adds_to_what_all_blocks_have():
    config = TransformerConfig(
        **SMALL,
        position="rotary",
        attention={"qk_norm": "rms_norm", "scale": 0.5},
        layer_pattern=[{"window": 4}, {"attention": {"scale": 0.25}}],
    ).replace(num_layers=3)
    assert [config.block(index) for index in range(3)] == [
        {"window": 4},
        {"attention": {"qk_norm": "rms_norm", "scale": 0.25}},
        {"window": 4},
    ]
    assert config.replace(layer_pattern=None).block(0) == {}
