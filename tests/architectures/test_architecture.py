"""What is the same for every family: names, defaults, null and absence, and what a format has no word for."""

from __future__ import annotations

import pytest

import keras_tfm as tfm
from keras_tfm import TransformerConfig
from keras_tfm.architectures import FAMILIES

DECODER = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=32,
)


def read(family: str, **keys) -> TransformerConfig:
    return FAMILIES[family].read_config({"model_type": family, **DECODER, **keys})[0]


@pytest.mark.parametrize(
    ("family", "theirs", "ours", "written"),
    [
        ("phi", "gelu_new", "gelu_tanh", "gelu_new"),
        ("gemma", "gelu_pytorch_tanh", "gelu_tanh", "gelu_pytorch_tanh"),
        ("gemma", "gelu", "gelu_tanh", "gelu_pytorch_tanh"),  # the official files mean this
        ("llama", "gelu", "gelu", "gelu"),
        ("llama", "swish", "silu", "silu"),
    ],
)
def test_activations_are_written_by_their_usual_name(family, theirs, ours, written):
    config = read(family, hidden_act=theirs)
    assert config.activation == ours
    assert FAMILIES[family].write_config(config)["hidden_act"] == written


def test_null_and_absence_are_different_things():
    assert read("gemma2").logit_softcap == 30.0
    config = read("gemma2", final_logit_softcapping=None, attn_logit_softcapping=None)
    assert config.logit_softcap is config.attention["logit_softcap"] is None
    written = FAMILIES["gemma2"].write_config(config)
    assert written["final_logit_softcapping"] is written["attn_logit_softcapping"] is None


def test_null_is_no_other_value_of_an_option_that_is_not_implemented():
    assert read("gemma3_text", use_bidirectional_attention=None) == read("gemma3_text")
    with pytest.raises(
        ValueError, match="use_bidirectional_attention=True; for 'gemma3_text' only False is implemented"
    ):
        read("gemma3_text", use_bidirectional_attention=True)


def test_what_is_left_to_defaults_is_written_out():
    config = read("phi3").replace(norm="rms_norm", num_key_value_heads=None, head_dim=None, attention={"sinks": None})
    written = FAMILIES["phi3"].write_config(config)
    assert written["rms_norm_eps"] == 1e-6  # the layer's default, not the format's
    assert (written["num_key_value_heads"], written["head_dim"]) == (4, 6)
    gemma = read("gemma3_text", query_pre_attn_scalar=256, head_dim=256)
    attention = {name: value for name, value in gemma.attention.items() if name != "scale"}
    qk_norm = {"kind": "rms_norm", "offset": 1.0}
    written = FAMILIES["gemma3_text"].write_config(gemma.replace(attention={**attention, "qk_norm": qk_norm}))
    assert written["query_pre_attn_scalar"] == 256


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("gemma2", {"attention": {"scale": 0.3, "logit_softcap": 50.0, "use_bias": False}}, "attention"),
        ("gemma", {"embedding_scale": None}, "embedding_scale"),
        ("gemma", {"norm": "rms_norm"}, "norm"),
        ("qwen3", {"attention": {"qk_norm": {"kind": "rms_norm", "epsilon": 0.1}, "use_bias": False}}, "attention"),
        ("qwen3", {"attention": {"qk_norm": "layer_norm", "use_bias": False}}, "attention"),
        ("cohere", {"norm": "layer_norm"}, "norm"),
        ("stablelm", {"parallel": True}, "parallel"),
        ("llama", {"attention": {"use_bias": {"query": True, "key": False}}}, "attention"),
        ("llama", {"window": 4}, "window"),
        ("mistral", {"position": {"kind": "rotary", "interleaved": True}}, "position"),
    ],
)
def test_options_that_a_format_has_no_word_for_raise(family, changes, named):
    with pytest.raises(ValueError, match=f"The format of '{family}' cannot express.*{named}"):
        FAMILIES[family].write_config(read(family).replace(**changes))


def test_parts_that_only_some_heads_lack_must_be_there_for_the_others(tmp_path):
    config = read("phi", num_attention_heads=2, num_key_value_heads=2)
    model = tfm.CausalLM(tfm.Backbone(config.replace(head_bias=False)))
    with pytest.raises(ValueError, match="PhiForCausalLM cannot express head_bias=False; only True"):
        model.save_pretrained(tmp_path)
    tfm.TextClassifier(
        tfm.Backbone(config.replace(head_bias=False, tie_embeddings=True)),
        3,
        pooling="last",
        dropout=0.0,
        head={"use_bias": False},
    ).save_pretrained(tmp_path)
    assert tfm.TextClassifier.from_pretrained(tmp_path).backbone.token_embedding.bias is None
