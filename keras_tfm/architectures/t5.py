"""T5, T5 v1.1 and FLAN-T5 (Raffel et al. 2020; Chung et al. 2022), as `transformers` stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures.architecture import Architecture, Head, Rule, read_activation, write_activation
from keras_tfm.architectures.stored import (
    EMBEDDING,
    INTO_HEADS,
    LINEAR,
    OUT_OF_HEADS,
    OUTPUT_EMBEDDING,
    RMS_NORM,
    TOKEN_EMBEDDING,
    Layout,
    Weights,
)
from keras_tfm.config import TransformerConfig

SIZES = {
    "vocab_size": "vocabulary_size",
    "d_model": "hidden_dim",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "intermediate_dim",
    "n_positions": "max_sequence_length",
    "relative_attention_num_buckets": "position.num_buckets",
    "relative_attention_max_distance": "position.max_distance",
    "layer_norm_epsilon": "norm.epsilon",
}
DEFAULTS = {
    "num_decoder_layers": None,
    "d_kv": 64,
    "n_positions": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
}


def _read_feed_forward(config: Mapping[str, Any]) -> dict[str, Any]:
    gate, _, activation = config.get("feed_forward_proj", "relu").rpartition("-")
    if gate not in ("", "gated"):
        raise ValueError(f"config.json says feed_forward_proj={config['feed_forward_proj']!r}; it is ACT or gated-ACT.")
    if gate and activation == "gelu":  # which has always meant the approximation
        activation = "gelu_new"
    # Where the two others are there too, they are what counts.
    return {
        "gated": bool(config.get("is_gated_act", gate)),
        "activation": read_activation(config.get("dense_act_fn", activation)),
    }


def _write_feed_forward(config: TransformerConfig) -> dict[str, Any]:
    activation = write_activation(config.activation)
    gated = "gated-gelu" if activation == "gelu_new" else f"gated-{activation}"
    return {
        "feed_forward_proj": gated if config.gated else activation,
        "dense_act_fn": activation,
        "is_gated_act": config.gated,
    }


FEED_FORWARD = Rule(("feed_forward_proj", "dense_act_fn", "is_gated_act"), _read_feed_forward, _write_feed_forward)
DROPOUT = Rule(
    ("dropout_rate",),
    lambda config: {"dropout": (rate := config.get("dropout_rate", 0.1)), "activation_dropout": rate},
    lambda config: {"dropout_rate": config.dropout},
)
# Version 1.0 has one table for everything and scales what the head reads; later ones have a head of their own.
# `transformers` from version 5 on says the one apart from the other.
OUTPUT_SCALE = Rule(
    ("tie_word_embeddings", "scale_decoder_outputs"),
    lambda config: {
        "tie_embeddings": (tied := config.get("tie_word_embeddings") is not False),
        "logit_scale": config["d_model"] ** -0.5 if config.get("scale_decoder_outputs", tied) else None,
    },
    lambda config: {
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale is not None,
    },
)


def _weights(config: TransformerConfig) -> Weights:
    names: dict[str | tuple[str, ...], tuple[str, Layout]] = {"token_embedding": ("shared", TOKEN_EMBEDDING)}
    for ours, theirs, feed_forward in (("", "encoder", 1), ("decoder_", "decoder", 2)):
        block = f"{theirs}.block.{{i}}.layer"
        attentions = [("attention", f"{block}.0.SelfAttention", f"{block}.0")]
        if theirs == "decoder":
            attentions.append(("cross_attention", f"{block}.1.EncDecAttention", f"{block}.1"))
        for part, module, layer in attentions:
            names |= {
                f"{ours}blocks.{{i}}.{part}.query": (f"{module}.q", INTO_HEADS),
                f"{ours}blocks.{{i}}.{part}.key": (f"{module}.k", INTO_HEADS),
                f"{ours}blocks.{{i}}.{part}.value": (f"{module}.v", INTO_HEADS),
                f"{ours}blocks.{{i}}.{part}.output_projection": (f"{module}.o", OUT_OF_HEADS),
                f"{ours}blocks.{{i}}.{part}_residual.input_norm": (f"{layer}.layer_norm", RMS_NORM),
                # One for the stack; the first block keeps it.
                f"{ours}blocks.{{i}}.{part}.position": (f"{module}.relative_attention_bias", EMBEDDING),
            }
        module = f"{block}.{feed_forward}.DenseReluDense"
        names |= {
            f"{ours}blocks.{{i}}.feed_forward.gate": (f"{module}.wi_0", LINEAR),
            f"{ours}blocks.{{i}}.feed_forward.up": (f"{module}.wi_1" if config.gated else f"{module}.wi", LINEAR),
            f"{ours}blocks.{{i}}.feed_forward.down": (f"{module}.wo", LINEAR),
            f"{ours}blocks.{{i}}.feed_forward_residual.input_norm": (f"{block}.{feed_forward}.layer_norm", RMS_NORM),
            f"{ours}final_norm": (f"{theirs}.final_layer_norm", RMS_NORM),
        }
    return names


T5 = Architecture(
    model_type="t5",
    base="T5Model",
    prefix="",
    options={
        "kind": "encoder_decoder",
        "position": {"kind": "relative"},
        "norm": {"kind": "rms_norm"},
        "norm_placement": "pre",
        "use_bias": False,
        "attention": {"scale": 1.0},
    },
    sizes=SIZES,
    defaults=DEFAULTS,
    expects={"is_encoder_decoder": True, "is_decoder": False},
    rules=(FEED_FORWARD, DROPOUT, OUTPUT_SCALE),
    weights=_weights,
    copies={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")},
    output={"token_embedding": ("lm_head", OUTPUT_EMBEDDING)},
    heads={"Seq2SeqLM": Head("T5ForConditionalGeneration")},
    unused=("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",),
    without_effect=frozenset({"initializer_factor", "output_past"}),
)
