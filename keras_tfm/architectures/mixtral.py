"""Mixtral (Jiang et al. 2024), as `transformers` stores it: Mistral with a mixture of experts in every block."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, setting
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import experts

# Losses that their training adds on request; here `balance_loss` of the layer is what one asks for.
TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef"})

MIXTRAL = Architecture(
    model_type="mixtral",
    base="MixtralModel",
    prefix="model.",
    options={**llama.OPTIONS, "use_bias": False, "feed_forward": {"kind": "mixture_of_experts"}},
    sizes={
        **llama.SIZES,
        "num_local_experts": "feed_forward.num_experts",
        "num_experts_per_tok": "feed_forward.top_k",
    },
    defaults={
        **llama.DEFAULTS,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "rms_norm_eps": 1e-5,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    rules=(rope(), llama.head_dim(), setting("sliding_window", "window")),
    expects={"router_jitter_noise": 0.0},
    weights={
        **llama.without_feed_forward(llama.WEIGHTS),
        "blocks.{i}.feed_forward": ("layers.{i}.block_sparse_moe", experts("w1", "w3", "w2")),
    },
    output=llama.OUTPUT,
    heads=llama.heads("Mixtral"),
    unused=llama.UNUSED,
    without_effect=TRAINING,
)
