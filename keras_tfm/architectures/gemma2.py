"""Gemma 2 (Gemma Team 2024), as `transformers` stores it: norms on both sides, soft caps, windows in every other block."""

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule, setting
from keras_tfm.architectures.gemma import EMBEDDING_SCALE, GEMMA, OPTIONS
from keras_tfm.architectures.layer_types import FULL, SLIDING, read_types, sliding, window, write_types
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import RMS_NORM
from keras_tfm.config import TransformerConfig


def _read_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config.get("sliding_window", 4096)
    return sliding(read_types(config, size, lambda index: FULL if index % 2 else SLIDING), size)


def _scalar(config: TransformerConfig) -> int:
    scale = (config.attention or {}).get("scale")
    return config.head_dim or config.hidden_dim // config.num_heads if scale is None else round(scale**-2)


SIZES = llama.sizes(hidden_act="hidden_activation")
DEFAULTS = {**GEMMA.defaults, "hidden_activation": GEMMA.defaults["hidden_act"], "num_key_value_heads": 4}
SCALE = Rule(
    ("query_pre_attn_scalar",),
    lambda config: {"attention": {"scale": config.get("query_pre_attn_scalar", 256) ** -0.5}},
    lambda config: {"query_pre_attn_scalar": _scalar(config)},
)
WEIGHTS = {
    **llama.WEIGHTS,
    "blocks.{i}.attention_residual.residual_norm": ("layers.{i}.post_attention_layernorm", RMS_NORM),
    "blocks.{i}.feed_forward_residual.input_norm": ("layers.{i}.pre_feedforward_layernorm", RMS_NORM),
    "blocks.{i}.feed_forward_residual.residual_norm": ("layers.{i}.post_feedforward_layernorm", RMS_NORM),
}
# Keys of the official files: the activation is hidden_activation's.
WITHOUT_EFFECT = frozenset({"hidden_act", "cache_implementation"})

GEMMA2 = Architecture(
    model_type="gemma2",
    base="Gemma2Model",
    prefix="model.",
    options={**OPTIONS, "norm_placement": "sandwich"},
    sizes=SIZES,
    defaults=DEFAULTS,
    rules=(
        rope(),
        llama.head_dim(256),
        llama.ATTENTION_BIAS,
        EMBEDDING_SCALE,
        SCALE,
        setting("attn_logit_softcapping", "attention.logit_softcap", 50.0),
        setting("final_logit_softcapping", "logit_softcap", 30.0),
        Rule(
            ("layer_types", "sliding_window"),
            _read_windows,
            lambda config: {"layer_types": write_types(config), "sliding_window": window(config) or 4096},
        ),
    ),
    expects={"use_bidirectional_attention": False},
    weights=WEIGHTS,
    output=llama.OUTPUT,
    heads=llama.heads("Gemma2", "CausalLM", "TextClassifier", "TokenClassifier"),
    without_effect=WITHOUT_EFFECT,
)
