"""ModernBERT (Warner et al. 2024), as `transformers` stores it: windows and rotary bases by block, fused projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures.architecture import Architecture, Head, Rule, read_activation
from keras_tfm.architectures.layer_types import FULL, SLIDING, pattern, read_types, window, windows, write_types
from keras_tfm.architectures.llama import ATTENTION_BIAS, bias
from keras_tfm.architectures.rotary import read_rope, write_rope
from keras_tfm.architectures.stored import (
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    OUTPUT_EMBEDDING,
    QUERY_KEY_VALUE,
    TOKEN_EMBEDDING,
    TWO_LINEAR,
    VECTOR,
)
from keras_tfm.config import TransformerConfig

BASES = {FULL: ("global_rope_theta", 160_000.0), SLIDING: ("local_rope_theta", 10_000.0)}


def _position(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The rotary embedding of the blocks of a type."""
    key, base = BASES[kind]
    parameters = (config.get("rope_parameters") or {}).get(kind) or config.get("rope_scaling") or {}
    return read_rope(parameters, config, config.get(key) or base)


def _read_blocks(config: Mapping[str, Any]) -> dict[str, Any]:
    every = config.get("global_attn_every_n_layers") or 3
    size = config.get("local_attention", 128) // 2  # theirs counts both sides
    types = read_types(config, size, lambda index: SLIDING if index % every else FULL)
    slides = {"window": size, "position": _position(config, SLIDING)}
    blocks: list[dict[str, Any]] = [dict(slides) if kind == SLIDING else {} for kind in types]
    blocks[0]["norm_placement"] = {"attention": "none"}  # it follows the norm of the embeddings
    return {"position": _position(config, FULL), **pattern(blocks)}


def _write_blocks(config: TransformerConfig) -> dict[str, Any]:
    slides = next((index for index, size in enumerate(windows(config)) if size), None)
    positions = {FULL: config.position}
    if slides is not None:
        positions[SLIDING] = config.block(slides).get("position", config.position)
    rope = {kind: write_rope(position) for kind, position in positions.items()}
    return {
        "layer_types": write_types(config),
        "local_attention": 2 * (window(config) or 64),
        "rope_parameters": rope,
        **{BASES[kind][0]: parameters["rope_theta"] for kind, parameters in rope.items()},
    }


def _said(config: TransformerConfig, key: str, default: Any) -> Any:
    """What config.json says of the heads, which a model keeps beside its own config."""
    return (config.metadata or {}).get(key, default)


def _hidden(config: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_dim": config.hidden_dim,
        "activation": read_activation(_said(config, "classifier_activation", "gelu")),
        "use_bias": {"hidden": _said(config, "classifier_bias", False)},
        "norm": config.norm,
    }


def _masked(config: TransformerConfig) -> dict[str, Any]:
    return {
        "activation": read_activation(_said(config, "classifier_activation", "gelu")),
        "use_bias": _said(config, "classifier_bias", False),
        "output_bias": _said(config, "decoder_bias", True),
    }


HEAD = {"head.hidden": ("head.dense", LINEAR), "head.norm": ("head.norm", LAYER_NORM)}
CLASSIFIER = {**HEAD, "head.logits": ("classifier", LINEAR)}
POOLINGS = {"cls": "first", "mean": "mean"}
UNTIED = {"tie_embeddings": True}

MODERNBERT = Architecture(
    model_type="modernbert",
    base="ModernBertModel",
    prefix="model.",
    options={
        "kind": "encoder",
        "norm": {"kind": "layer_norm"},
        "norm_placement": "pre",
        "embedding_norm": True,
        "gated": True,
    },
    sizes={
        "vocab_size": "vocabulary_size",
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_dim",
        "max_position_embeddings": "max_sequence_length",
        "hidden_activation": "activation",
        "embedding_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "mlp_dropout": "activation_dropout",
        "norm_eps": "norm.epsilon",
        "norm_bias": "norm.center",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu",
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
        "mlp_dropout": 0.0,
        "norm_eps": 1e-5,
        "norm_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    rules=(
        ATTENTION_BIAS,
        bias("mlp_bias", "feed_forward"),
        Rule(
            (
                *("layer_types", "global_attn_every_n_layers", "local_attention", "sliding_window"),
                *("rope_parameters", "rope_scaling", "global_rope_theta", "local_rope_theta"),
            ),
            _read_blocks,
            _write_blocks,
        ),
    ),
    weights={
        "token_embedding": ("embeddings.tok_embeddings", TOKEN_EMBEDDING),
        "embedding_norm": ("embeddings.norm", LAYER_NORM),
        tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")): (
            "layers.{i}.attn.Wqkv",
            QUERY_KEY_VALUE,
        ),
        "blocks.{i}.attention.output_projection": ("layers.{i}.attn.Wo", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("layers.{i}.attn_norm", LAYER_NORM),
        ("blocks.{i}.feed_forward.gate", "blocks.{i}.feed_forward.up"): ("layers.{i}.mlp.Wi", TWO_LINEAR),
        "blocks.{i}.feed_forward.down": ("layers.{i}.mlp.Wo", LINEAR),
        "blocks.{i}.feed_forward_residual.input_norm": ("layers.{i}.mlp_norm", LAYER_NORM),
        "final_norm": ("final_norm", LAYER_NORM),
    },
    output={"token_embedding": ("decoder", OUTPUT_EMBEDDING)},
    heads={
        "TextClassifier": Head(
            "ModernBertForSequenceClassification",
            CLASSIFIER,
            {"pooling": lambda config: POOLINGS[_said(config, "classifier_pooling", "cls")], "head": _hidden},
            UNTIED,
        ),
        "TokenClassifier": Head("ModernBertForTokenClassification", CLASSIFIER, {"head": _hidden}, UNTIED),
        "QuestionAnswerer": Head("ModernBertForQuestionAnswering", CLASSIFIER, {"head": _hidden}, UNTIED),
        "MaskedLM": Head("ModernBertForMaskedLM", {**HEAD, "head.bias": ("decoder.bias", VECTOR)}, {"head": _masked}),
    },
    unused=("decoder.weight",),
    without_effect=frozenset(  # on the backbone: some are read for the heads, and others say how to train
        """
        classifier_activation classifier_bias classifier_pooling decoder_bias deterministic_flash_attn
        initializer_cutoff_factor layer_norm_eps position_embedding_type reference_compile repad_logits_with_grad
        sparse_pred_ignore_index sparse_prediction
        """.split()  # noqa: SIM905
    ),
)
