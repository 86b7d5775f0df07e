"""ViT (Dosovitskiy et al. 2021), as `transformers` stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.bert import POOLER, WITHOUT_POOLER
from keras_tfm.architectures.bert import WEIGHTS as BERT_WEIGHTS
from keras_tfm.architectures.stored import FIRST_POSITIONS, FIRST_VECTOR, LAYER_NORM, LINEAR, Weights, patches
from keras_tfm.config import TransformerConfig

LAYER = "encoder.layer.{i}."
RENAMED = {"query": "attention.attention.query", "key": "attention.attention.key", "value": "attention.attention.value"}


def _read_bias(config: Mapping[str, Any]) -> dict[str, Any]:
    if config.get("qkv_bias", True):
        return {}
    return {"attention": {"use_bias": dict.fromkeys(RENAMED, False)}}


def _write_bias(config: TransformerConfig) -> dict[str, Any]:
    use_bias = (config.attention or {}).get("use_bias", config.use_bias)
    return {"qkv_bias": use_bias.get("query", True) if isinstance(use_bias, dict) else use_bias}


def _read_pooler(config: Mapping[str, Any]) -> dict[str, Any]:
    width, activation = config.get("pooler_output_size"), config.get("pooler_act") or "tanh"
    if width not in (None, config["hidden_size"]) or activation != "tanh":
        raise ValueError(
            f"config.json says pooler_output_size={width}, pooler_act={activation!r}; only a pooler as wide as the model, "
            "with tanh, is implemented."
        )
    return {}


def _weights(config: TransformerConfig) -> Weights:
    assert config.patch_shape is not None, "the family's models read images"
    return {
        "patch_embedding.class_vector": ("embeddings.cls_token", FIRST_VECTOR),
        "patch_embedding.projection": ("embeddings.patch_embeddings.projection", patches(config.patch_shape)),
        "position_embedding": ("embeddings.position_embeddings", FIRST_POSITIONS),
        **{
            f"blocks.{{i}}.attention.{ours}": (LAYER + theirs, BERT_WEIGHTS[f"blocks.{{i}}.attention.{ours}"][1])
            for ours, theirs in RENAMED.items()
        },
        **{ours: BERT_WEIGHTS[ours] for ours in BERT_WEIGHTS if ours.endswith((".output_projection", ".up", ".down"))},
        "blocks.{i}.attention_residual.input_norm": (f"{LAYER}layernorm_before", LAYER_NORM),
        "blocks.{i}.feed_forward_residual.input_norm": (f"{LAYER}layernorm_after", LAYER_NORM),
        "final_norm": ("layernorm", LAYER_NORM),
        **POOLER,
    }


VIT = Architecture(
    model_type="vit",
    base="ViTModel",
    prefix="vit.",
    options={"kind": "encoder", "vocabulary_size": None, "norm": {"kind": "layer_norm"}, "pooler": True},
    sizes={
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_dim",
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "num_channels",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "norm.epsilon",
        "initializer_range": "initializer_range",
    },
    defaults={
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
    },
    rules=(
        Rule(("qkv_bias",), _read_bias, _write_bias),
        Rule(("pooler_output_size", "pooler_act"), _read_pooler, lambda config: {}),
    ),
    weights=_weights,
    heads={
        "ImageClassifier": Head(
            "ViTForImageClassification",
            {"head.logits": ("classifier", LINEAR)},
            {"pooling": "first"},
            changes=WITHOUT_POOLER,
        )
    },
    optional=("pooler",),
    unused=("embeddings.mask_token",),
    without_effect=frozenset({"encoder_stride"}),
)
