"""Qwen3-MoE (Yang et al. 2025), as `transformers` stores it: Qwen3 with a mixture of experts."""

from keras_tfm.architectures import llama, qwen2_moe
from keras_tfm.architectures.architecture import Architecture
from keras_tfm.architectures.mixtral import TRAINING
from keras_tfm.architectures.rotary import rope

KEYS = {
    "num_experts": ("num_experts", 128),
    "num_experts_per_tok": ("top_k", 8),
    "norm_topk_prob": ("normalize", False),
    "moe_intermediate_size": ("intermediate_dim", 768),
}

QWEN3_MOE = Architecture(
    model_type="qwen3_moe",
    base="Qwen3MoeModel",
    prefix="model.",
    options={**llama.OPTIONS, "feed_forward": {"use_bias": False}},
    sizes=llama.SIZES,
    defaults={**llama.DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768},
    rules=(
        rope(),
        llama.head_dim(),
        llama.ATTENTION_BIAS,
        llama.qk_norm(),
        qwen2_moe.blocks(KEYS, slides=lambda config, index: True),
    ),
    weights=qwen2_moe.WEIGHTS | llama.QK_NORM,
    output=llama.OUTPUT,
    heads=llama.heads("Qwen3Moe", question_prefix="transformer."),
    unused=llama.UNUSED,
    older=qwen2_moe.OLDER,
    without_effect=TRAINING,
)
