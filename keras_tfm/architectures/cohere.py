"""Cohere's Command R (2024), as `transformers` stores it: both branches behind one norm without biases, scaled logits."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import Tensor, Weights
from keras_tfm.config import TransformerConfig

NORM = {"kind": "layer_norm", "center": False}


def _weights(config: TransformerConfig) -> Weights:
    shape = (-1, config.head_dim or config.hidden_dim // config.num_heads)  # (heads, head_dim)
    norm = (Tensor("gamma", "weight", lambda array, ours: array.reshape(ours), lambda array: array.reshape(shape)),)
    return llama.LAYER_NORM_WEIGHTS | {ours: (theirs, norm) for ours, (theirs, _) in llama.QK_NORM.items()}


COHERE = Architecture(
    model_type="cohere",
    base="CohereModel",
    prefix="model.",
    options={
        **llama.OPTIONS,
        "norm": NORM,
        "parallel": "shared_norm",
        "feed_forward": {"use_bias": False},
    },
    sizes={
        **llama.sizes(rms_norm_eps="layer_norm_eps"),
        "logit_scale": "logit_scale",
    },
    defaults={
        **llama.DEFAULTS,
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
    },
    rules=(
        rope(500_000.0, interleaved=True),
        llama.head_dim(),
        llama.ATTENTION_BIAS,
        Rule(
            ("use_qk_norm",),
            lambda config: {
                "attention": {
                    "qk_norm": {**NORM, "epsilon": config.get("layer_norm_eps", 1e-5)},
                    "qk_norm_scope": "each_head",
                }
                if config.get("use_qk_norm")
                else {}
            },
            lambda config: {"use_qk_norm": bool((config.attention or {}).get("qk_norm"))},
        ),
    ),
    weights=_weights,
    output=llama.OUTPUT,
    heads=llama.heads("Cohere", "CausalLM"),
    without_effect=frozenset({"model_max_length"}),
)
