"""gpt-oss (OpenAI 2025), as `transformers` stores it: experts with clipped gates, sinks, windows in every other block."""

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.layer_types import FULL, SLIDING, read_types, sliding, window, write_types
from keras_tfm.architectures.mixtral import TRAINING
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import INTERLEAVED, VECTOR, Tensor, router
from keras_tfm.config import TransformerConfig


def _read_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config.get("sliding_window", 128)
    return sliding(read_types(config, size, lambda index: FULL if index % 2 else SLIDING), size)


def _write_windows(config: TransformerConfig) -> dict[str, Any]:
    return {"layer_types": write_types(config), "sliding_window": window(config) or 128}


EXPERTS = "blocks.{i}.feed_forward"
DOWN = (Tensor("expert_down", "experts.down_proj"), Tensor("expert_down_bias", "experts.down_proj_bias"))

GPT_OSS = Architecture(
    model_type="gpt_oss",
    base="GptOssModel",
    prefix="model.",
    options={
        **llama.OPTIONS,
        "activation": "quick_gelu",
        "attention": {"sinks": "learned"},
        "feed_forward": {"kind": "mixture_of_experts", "use_router_bias": True, "up_offset": 1.0},
    },
    sizes={
        **{theirs: ours for theirs, ours in llama.SIZES.items() if ours != "activation"},
        "num_local_experts": "feed_forward.num_experts",
        "num_experts_per_tok": "feed_forward.top_k",
        "swiglu_limit": "feed_forward.clip",
    },
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 4,
        "swiglu_limit": 7.0,
    },
    rules=(
        rope(150_000.0),
        llama.head_dim(64),
        llama.bias("attention_bias", "attention", default=True),
        Rule(("layer_types", "sliding_window"), _read_windows, _write_windows),
    ),
    expects={"hidden_act": "silu", "swiglu_alpha": 1.702},
    weights={
        **llama.without_feed_forward(llama.WEIGHTS),
        "blocks.{i}.attention.sink_logits": ("layers.{i}.self_attn.sinks", VECTOR),
        EXPERTS: ("layers.{i}.mlp", (*router("router"), *DOWN)),
        (f"{EXPERTS}.expert_gate", f"{EXPERTS}.expert_up"): ("layers.{i}.mlp.experts.gate_up_proj", INTERLEAVED),
        (f"{EXPERTS}.expert_gate_bias", f"{EXPERTS}.expert_up_bias"): (
            "layers.{i}.mlp.experts.gate_up_proj_bias",
            INTERLEAVED,
        ),
    },
    output=llama.OUTPUT,
    heads=llama.heads("GptOss", "CausalLM", "TextClassifier", "TokenClassifier"),
    without_effect=TRAINING,
)
