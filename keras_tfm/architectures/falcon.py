"""Falcon (Almazrouei et al. 2023), as `transformers` stores it.

Not the RW models: they round ALiBi to bfloat16 at absolute positions, so that no penalty by distance gives their numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import gpt2, llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.bloom import BLOOM
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import LAYER_NORM, Weights
from keras_tfm.config import TransformerConfig


def _read_block(config: Mapping[str, Any]) -> dict[str, Any]:
    new = bool(config.get("new_decoder_architecture"))
    parallel = config.get("parallel_attn", True)
    norms = config.get("num_ln_in_parallel_attn") or (2 if new else 1)
    if (new and not parallel) or (norms == 2 and not new):
        raise ValueError(
            f"config.json says new_decoder_architecture={new}, parallel_attn={parallel}, num_ln_in_parallel_attn={norms}; "
            "that is no model of this family."
        )
    one_key = config.get("multi_query", True) and not new
    return {
        "num_key_value_heads": 1 if one_key else config.get("num_kv_heads") or config["num_attention_heads"],
        "parallel": norms == 2 or ("shared_norm" if parallel else False),
    }


def _write_block(config: TransformerConfig) -> dict[str, Any]:
    groups = config.num_key_value_heads or config.num_heads
    new = config.parallel is True or groups not in (1, config.num_heads)
    return {
        "new_decoder_architecture": new,
        "multi_query": new or groups == 1,
        "num_kv_heads": groups,
        "parallel_attn": bool(config.parallel),
        "num_ln_in_parallel_attn": 2 if config.parallel is True else 1 if new else None,
    }


def _weights(config: TransformerConfig) -> Weights:
    first, second = (
        ("ln_attn", "ln_mlp") if config.parallel is True else ("input_layernorm", "post_attention_layernorm")
    )
    return {
        **BLOOM.weights_of(config),
        "blocks.{i}.attention_residual.input_norm": (f"h.{{i}}.{first}", LAYER_NORM),
        "blocks.{i}.feed_forward_residual.input_norm": (f"h.{{i}}.{second}", LAYER_NORM),
    }


FALCON = Architecture(
    model_type="falcon",
    base="FalconModel",
    prefix="transformer.",
    options={"kind": "decoder", "norm": {"kind": "layer_norm"}, "norm_placement": "pre"},
    sizes={
        "vocab_size": "vocabulary_size",
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "max_position_embeddings": "max_sequence_length",
        "activation": "activation",
        "bias": "use_bias",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "layer_norm_epsilon": "norm.epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "max_position_embeddings": 2048,
        "activation": "gelu",
        "bias": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    older={"n_embed": "hidden_size"},
    expects={"alibi": False},
    rules=(
        rope(),
        gpt2.inner("ffn_hidden_size", "hidden_size"),
        Rule(
            ("new_decoder_architecture", "multi_query", "num_kv_heads", "parallel_attn", "num_ln_in_parallel_attn"),
            _read_block,
            _write_block,
        ),
    ),
    weights=_weights,
    output=llama.OUTPUT,
    heads=llama.heads("Falcon", tokens="classifier"),
    without_effect=frozenset({"apply_residual_connection_post_layernorm"}),
)
