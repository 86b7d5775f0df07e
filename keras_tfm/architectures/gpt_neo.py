"""GPT-Neo (Black et al. 2021), as `transformers` stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import gpt2, llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.layer_types import FULL, SLIDING, sliding, window, write_types
from keras_tfm.architectures.stored import (
    EMBEDDING,
    INTO_HEADS,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    TOKEN_EMBEDDING,
)
from keras_tfm.config import TransformerConfig

# Types of blocks by their name for it.
TYPES = {"global": FULL, "local": SLIDING}


def _read_types(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("attention_types") or [[["global", "local"], 12]]
    names = [name for part, times in given for name in list(part) * times]
    if unknown := sorted(set(names) - set(TYPES)):
        raise ValueError(f"config.json has attention_types {unknown}; implemented are {sorted(TYPES)}.")
    if len(names) != config["num_layers"]:
        raise ValueError(f"config.json has num_layers={config['num_layers']}, and attention_types for {len(names)}.")
    return sliding([TYPES[name] for name in names], config.get("window_size", 256))


def _write_types(config: TransformerConfig) -> dict[str, Any]:
    names = {theirs: name for name, theirs in TYPES.items()}
    layers = [names[kind] for kind in write_types(config)]
    return {"attention_types": [[layers, 1]], "attention_layers": layers, "window_size": window(config) or 256}


GPT_NEO = Architecture(
    model_type="gpt_neo",
    base="GPTNeoModel",
    prefix="transformer.",
    options={
        "kind": "decoder",
        "norm": {"kind": "layer_norm"},
        "norm_placement": "pre",
        "attention": {"scale": 1.0, "use_bias": {"query": False, "key": False, "value": False, "output": True}},
    },
    sizes={
        "vocab_size": "vocabulary_size",
        "hidden_size": "hidden_dim",
        "num_layers": "num_layers",
        "num_heads": "num_heads",
        "max_position_embeddings": "max_sequence_length",
        "activation_function": "activation",
        "resid_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "layer_norm_epsilon": "norm.epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "activation_function": "gelu_new",
        "resid_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    rules=(
        gpt2.inner("intermediate_size", "hidden_size"),
        Rule(("attention_types", "attention_layers", "window_size"), _read_types, _write_types),
    ),
    weights={
        "token_embedding": ("wte", TOKEN_EMBEDDING),
        "position_embedding": ("wpe", EMBEDDING),
        "blocks.{i}.attention.query": ("h.{i}.attn.attention.q_proj", INTO_HEADS),
        "blocks.{i}.attention.key": ("h.{i}.attn.attention.k_proj", INTO_HEADS),
        "blocks.{i}.attention.value": ("h.{i}.attn.attention.v_proj", INTO_HEADS),
        "blocks.{i}.attention.output_projection": ("h.{i}.attn.attention.out_proj", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("h.{i}.ln_1", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("h.{i}.mlp.c_fc", LINEAR),
        "blocks.{i}.feed_forward.down": ("h.{i}.mlp.c_proj", LINEAR),
        "blocks.{i}.feed_forward_residual.input_norm": ("h.{i}.ln_2", LAYER_NORM),
        "final_norm": ("ln_f", LAYER_NORM),
    },
    output=llama.OUTPUT,
    heads=llama.heads("GPTNeo", tokens="classifier"),
    unused=("h.*.attn.attention.bias", "h.*.attn.attention.masked_bias"),
    without_effect=(gpt2.GPT2.without_effect - {"embd_pdrop"}) | {"embed_dropout"},
)
