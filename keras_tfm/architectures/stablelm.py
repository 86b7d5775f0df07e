"""StableLM (Bellagente et al. 2024), as `transformers` stores it: Llama with layer norms, and heads that turn in part."""

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.rotary import rope
from keras_tfm.config import TransformerConfig


def _read_bias(config: Mapping[str, Any]) -> dict[str, Any]:
    biased = bool(config.get("use_qkv_bias"))
    return {"attention": {"use_bias": {"query": biased, "key": biased, "value": biased, "output": False}}}


def _write_bias(config: TransformerConfig) -> dict[str, Any]:
    bias = (config.attention or {}).get("use_bias", config.use_bias)
    return {"use_qkv_bias": bias.get("query", True) if isinstance(bias, dict) else bias}


STABLELM = Architecture(
    model_type="stablelm",
    base="StableLmModel",
    prefix="model.",
    options={**llama.OPTIONS, "norm": {"kind": "layer_norm"}, "feed_forward": {"use_bias": False}},
    sizes={**llama.sizes(rms_norm_eps="layer_norm_eps"), "hidden_dropout": "dropout"},
    defaults={
        **llama.DEFAULTS,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "layer_norm_eps": 1e-5,
        "hidden_dropout": 0.0,
    },
    rules=(
        rope(fraction=0.25),
        Rule(("use_qkv_bias",), _read_bias, _write_bias),
        Rule(
            ("use_parallel_residual",),
            lambda config: {"parallel": "shared_norm" if config.get("use_parallel_residual") else False},
            lambda config: {"use_parallel_residual": bool(config.parallel)},
        ),
    ),
    expects={"qk_layernorm": False},  # theirs is a list of norms, a tensor for each head
    weights=llama.LAYER_NORM_WEIGHTS,
    output=llama.OUTPUT,
    heads=llama.heads("StableLm", "CausalLM", "TextClassifier", "TokenClassifier"),
)
