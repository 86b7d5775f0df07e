"""Blocks that differ by their place: config.json's words for them and ours, both ways."""

from __future__ import annotations

import pytest

from keras_tfm import TransformerConfig
from keras_tfm.architectures import FAMILIES
from keras_tfm.architectures.layer_types import FULL, SLIDING, pattern, read_types, sliding

DECODER = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=32,
)


def read(family: str, **keys) -> TransformerConfig:
    config, unknown = FAMILIES[family].read_config({"model_type": family, **DECODER, **keys})
    assert not unknown
    return config


def windows(config: TransformerConfig) -> list[int | None]:
    return [config.block(index).get("window", config.window) for index in range(config.num_layers)]


def test_patterns_are_as_short_as_they_can_be():
    assert pattern([{}, {}]) == {}
    assert pattern([{"window": 4}] * 3) == {"layer_pattern": [{"window": 4}]}
    assert pattern([{"window": 4}, {}] * 3) == {"layer_pattern": [{"window": 4}, {}]}
    assert pattern([{"window": 4}, {}, {"window": 4}]) == {"layer_pattern": [{"window": 4}, {}]}
    assert pattern([{}, {"window": 4}, {"window": 4}]) == {"layer_pattern": [{}, {"window": 4}, {"window": 4}]}
    assert sliding([FULL, FULL], 4) == {}


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ([FULL, "linear_attention"], r"layers of the types \['linear_attention'\]; implemented are"),
        ([FULL], "num_hidden_layers=2, and layer_types for 1"),
        ([FULL, SLIDING], "layers of the type 'sliding_attention', and no window for them"),
    ],
)
def test_types_that_cannot_be_read_raise(types, message):
    with pytest.raises(ValueError, match=message):
        read_types({"num_hidden_layers": 2, "layer_types": types}, None, lambda index: FULL)


def test_windows_where_files_say_nothing_of_types():
    assert windows(read("qwen2", sliding_window=4, max_window_layers=4)) == [None] * 6
    assert windows(read("qwen2", sliding_window=4, max_window_layers=4, use_sliding_window=True)) == [None] * 4 + [4, 4]
    assert windows(read("gemma2", sliding_window=4)) == [4, None] * 3
    assert windows(read("gemma3_text", sliding_window=4)) == [4] * 5 + [None]
    assert windows(read("gemma3_text", sliding_window=4, sliding_window_pattern=2)) == [4, None] * 3
    assert windows(read("mistral")) == [4096] * 6
    assert windows(read("mistral", sliding_window=None)) == [None] * 6


def test_gemma_3s_rotary_bases_by_older_and_newer_names():
    older = read(
        "gemma3_text", rope_theta=5e5, rope_local_base_freq=100.0, rope_scaling={"rope_type": "linear", "factor": 8.0}
    )
    newer = read(
        "gemma3_text",
        rope_parameters={
            FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        },
    )
    assert older == newer
    assert older.position["base"] == 5e5
    assert older.position["scaling"] == {"kind": "linear", "factor": 8.0}
    assert older.block(0)["position"] == {"kind": "rotary", "base": 100.0, "fraction": 1.0}
    assert read("gemma3_text").position["base"] == 1e6


def test_written_configs_list_every_block():
    written = FAMILIES["gemma3_text"].write_config(read("gemma3_text", sliding_window=4))
    assert written["layer_types"] == [SLIDING] * 5 + [FULL]
    assert (written["sliding_window"], written["sliding_window_pattern"]) == (4, 6)
    assert (written["rope_theta"], written["rope_local_base_freq"]) == (1e6, 1e4)
    written = FAMILIES["qwen3"].write_config(
        read("qwen3", sliding_window=4, max_window_layers=4, use_sliding_window=True)
    )
    assert written["layer_types"] == [FULL] * 4 + [SLIDING] * 2
    assert (written["use_sliding_window"], written["max_window_layers"]) == (True, 4)
    written = FAMILIES["smollm3"].write_config(read("smollm3"))
    assert written["no_rope_layers"] == [1, 1, 1, 0, 1, 1]
    assert written["layer_types"] == [FULL] * 6


def test_one_pattern_may_be_spelled_in_many_ways():
    config = read("gemma2", sliding_window=4)
    same = [
        {"layer_pattern": [{"window": 4}, {}] * 3},
        {"layer_pattern": [{"window": 4}, {"window": None}]},
        {"layer_pattern": [{}, {"window": None}], "window": 4},
        {"layer_pattern": [{"window": 4, "num_heads": 4, "attention": {"sinks": None}}, {}]},
    ]
    for changes in same:
        written = FAMILIES["gemma2"].write_config(config.replace(**changes))
        assert written["layer_types"] == [SLIDING, FULL] * 3


@pytest.mark.parametrize(
    ("family", "layer_pattern"),
    [
        ("gemma2", [{"window": 4}, {"window": 5}]),
        ("gemma2", [{"window": 4}, {"position": None}]),
        ("qwen2", [{"gated": False}, {}]),
        ("mistral", [{"window": 4}, {}]),
        ("smollm3", [{"attention": {"sinks": "learned"}}, {}]),
    ],
)
def test_a_pattern_that_a_format_has_no_word_for_raises(family, layer_pattern):
    config = read(family).replace(layer_pattern=layer_pattern)
    with pytest.raises(ValueError, match=f"The format of '{family}' cannot express.*layer_pattern"):
        FAMILIES[family].write_config(config)
