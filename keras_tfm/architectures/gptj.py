"""GPT-J (Wang & Komatsuzaki 2021), as `transformers` stores it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import gpt2, llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.stored import (
    INTO_HEADS,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    OUTPUT_EMBEDDING,
    TOKEN_EMBEDDING,
    Tensor,
)
from keras_tfm.config import TransformerConfig


def _read_rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    head_dim = config["n_embd"] // config["n_head"]
    rotary_dim = config.get("rotary_dim", 64)
    if rotary_dim is None:  # frequencies are then those of the whole stream, which no other model has
        raise ValueError("config.json says rotary_dim=null, which is not implemented.")
    return {"position": {"kind": "rotary", "interleaved": True, "fraction": rotary_dim / head_dim}}


def _write_rotary(config: TransformerConfig) -> dict[str, Any]:
    position = config.position if isinstance(config.position, dict) else {"kind": config.position}
    fraction = position.get("fraction", 1.0)
    return {"rotary_dim": round(fraction * config.hidden_dim / config.num_heads)}


GPTJ = Architecture(
    model_type="gptj",
    base="GPTJModel",
    prefix="transformer.",
    options={
        "kind": "decoder",
        "norm": {"kind": "layer_norm"},
        "norm_placement": "pre",
        "parallel": "shared_norm",
        "attention": {"use_bias": False},
        "head_bias": True,
    },
    sizes=gpt2.SIZES,
    defaults=gpt2.DEFAULTS | {"resid_pdrop": 0.0, "attn_pdrop": 0.0, "tie_word_embeddings": False},
    rules=(gpt2.inner("n_inner", "n_embd"), Rule(("rotary_dim",), _read_rotary, _write_rotary)),
    weights={
        "token_embedding": ("wte", TOKEN_EMBEDDING),
        "blocks.{i}.attention.query": ("h.{i}.attn.q_proj", INTO_HEADS),
        "blocks.{i}.attention.key": ("h.{i}.attn.k_proj", INTO_HEADS),
        "blocks.{i}.attention.value": ("h.{i}.attn.v_proj", INTO_HEADS),
        "blocks.{i}.attention.output_projection": ("h.{i}.attn.out_proj", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("h.{i}.ln_1", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("h.{i}.mlp.fc_in", LINEAR),
        "blocks.{i}.feed_forward.down": ("h.{i}.mlp.fc_out", LINEAR),
        "final_norm": ("ln_f", LAYER_NORM),
    },
    output={"token_embedding": ("lm_head", (*OUTPUT_EMBEDDING, Tensor("bias", "bias")))},
    heads=llama.heads("GPTJ", "CausalLM", "TextClassifier", "QuestionAnswerer", head_bias=False),
    optional=("head_bias",),
    unused=(*gpt2.GPT2.unused, "h.*.attn.embed_positions"),
    without_effect=gpt2.GPT2.without_effect | {"rotary", "scale_attn_weights"},
)
