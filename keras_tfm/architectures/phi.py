"""Phi-1, Phi-1.5 and Phi-2 (Gunasekar et al. 2023), as `transformers` stores them: both branches behind one norm."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import LAYER_NORM, LINEAR, OUT_OF_HEADS, OUTPUT_EMBEDDING, Tensor

PHI = Architecture(
    model_type="phi",
    base="PhiModel",
    prefix="model.",
    options={
        "kind": "decoder",
        "norm": {"kind": "layer_norm"},
        "norm_placement": "pre",
        "parallel": "shared_norm",
        "head_bias": True,
    },
    sizes={
        **llama.sizes(rms_norm_eps="layer_norm_eps"),
        "resid_pdrop": "dropout",
    },
    defaults={**llama.DEFAULTS, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "resid_pdrop": 0.0},
    rules=(
        rope(fraction=0.5),
        llama.head_dim(),
        Rule(
            ("qk_layernorm",),
            lambda config: {
                "attention": {"qk_norm": {"kind": "layer_norm", "epsilon": config.get("layer_norm_eps", 1e-5)}}
                if config.get("qk_layernorm")
                else {}
            },
            lambda config: {"qk_layernorm": bool((config.attention or {}).get("qk_norm"))},
        ),
    ),
    weights={
        **llama.LAYER_NORM_WEIGHTS,
        "blocks.{i}.attention.output_projection": ("layers.{i}.self_attn.dense", OUT_OF_HEADS),
        "blocks.{i}.attention.query_norm": ("layers.{i}.self_attn.q_layernorm", LAYER_NORM),
        "blocks.{i}.attention.key_norm": ("layers.{i}.self_attn.k_layernorm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("layers.{i}.mlp.fc1", LINEAR),
        "blocks.{i}.feed_forward.down": ("layers.{i}.mlp.fc2", LINEAR),
        "final_norm": ("final_layernorm", LAYER_NORM),
    },
    output={"token_embedding": ("lm_head", (*OUTPUT_EMBEDDING, Tensor("bias", "bias")))},
    heads=llama.heads("Phi", "CausalLM", "TextClassifier", "TokenClassifier", head_bias=False),
    optional=("head_bias",),
    without_effect=frozenset({"embd_pdrop"}),  # the dropout of embeddings is that of the residual stream here
)
