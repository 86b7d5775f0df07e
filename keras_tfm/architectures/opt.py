"""OPT (Zhang et al. 2022), as `transformers` stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.bart import stack
from keras_tfm.architectures.stored import TOKEN_EMBEDDING


def _read_width(config: Mapping[str, Any]) -> dict[str, Any]:
    width = config.get("word_embed_proj_dim") or config["hidden_size"]
    if width != config["hidden_size"]:
        raise ValueError(
            f"config.json says word_embed_proj_dim={width}, hidden_size={config['hidden_size']} (OPT 350m): projections "
            "around the blocks are not implemented."
        )
    return {"hidden_dim": width}


# In the 350m model norms follow the branches; old files could lack the last norm of the others.
NORM_PLACEMENT = Rule(
    ("do_layer_norm_before", "_remove_final_layer_norm", "layer_norm_elementwise_affine"),
    lambda config: {
        "norm_placement": "pre" if config.get("do_layer_norm_before", True) else "post",
        "final_norm": config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm"),
        "norm": {} if config.get("layer_norm_elementwise_affine", True) else {"center": False, "scale": False},
    },
    lambda config: {
        "do_layer_norm_before": config.norm_placement == "pre",
        "_remove_final_layer_norm": config.norm_placement == "pre" and not config.has_final_norm,
        "layer_norm_elementwise_affine": isinstance(config.norm, str) or config.norm.get("scale", True),
    },
)

OPT = Architecture(
    model_type="opt",
    base="OPTModel",
    prefix="model.",
    options={
        "kind": "decoder",
        "position": {"kind": "learned", "offset": 2},
        "norm": {"kind": "layer_norm", "epsilon": 1e-5},
    },
    sizes={
        "vocab_size": "vocabulary_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "ffn_dim": "intermediate_dim",
        "max_position_embeddings": "max_sequence_length",
        "activation_function": "activation",
        "enable_bias": "use_bias",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "init_std": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "activation_function": "relu",
        "enable_bias": True,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "init_std": 0.02,
        "tie_word_embeddings": True,
    },
    expects={"layerdrop": 0.0},
    rules=(
        Rule(
            ("hidden_size", "word_embed_proj_dim"),
            _read_width,
            lambda config: {"hidden_size": config.hidden_dim, "word_embed_proj_dim": config.hidden_dim},
        ),
        NORM_PLACEMENT,
    ),
    weights={
        "token_embedding": ("decoder.embed_tokens", TOKEN_EMBEDDING),
        **stack("", "decoder", "final_layer_norm"),
    },
    output=llama.OUTPUT,
    heads=llama.heads("OPT", "CausalLM", "TextClassifier", "QuestionAnswerer"),
    without_effect=frozenset({"activation_dropout"}),
)
