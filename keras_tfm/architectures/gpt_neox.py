"""GPT-NeoX (Black et al. 2022) and Pythia (Biderman et al. 2023), as `transformers` stores them."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import (
    GROUPED_QUERY_KEY_VALUE,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    OUTPUT_EMBEDDING,
    TOKEN_EMBEDDING,
)

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    base="GPTNeoXModel",
    prefix="gpt_neox.",
    options={"kind": "decoder", "norm": {"kind": "layer_norm"}, "norm_placement": "pre"},
    sizes={
        "vocab_size": "vocabulary_size",
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_dim",
        "max_position_embeddings": "max_sequence_length",
        "hidden_act": "activation",
        "attention_bias": "attention.use_bias",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "dropout",
        "layer_norm_eps": "norm.epsilon",
        "initializer_range": "initializer_range",
        "use_parallel_residual": "parallel",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "hidden_act": "gelu",
        "attention_bias": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
    },
    rules=(rope(fraction=0.25, names={"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}),),
    weights={
        "token_embedding": ("embed_in", TOKEN_EMBEDDING),
        tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")): (
            "layers.{i}.attention.query_key_value",
            GROUPED_QUERY_KEY_VALUE,
        ),
        "blocks.{i}.attention.output_projection": ("layers.{i}.attention.dense", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("layers.{i}.input_layernorm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("layers.{i}.mlp.dense_h_to_4h", LINEAR),
        "blocks.{i}.feed_forward.down": ("layers.{i}.mlp.dense_4h_to_h", LINEAR),
        "blocks.{i}.feed_forward_residual.input_norm": ("layers.{i}.post_attention_layernorm", LAYER_NORM),
        "final_norm": ("final_layer_norm", LAYER_NORM),
    },
    output={"token_embedding": ("embed_out", OUTPUT_EMBEDDING)},
    heads=llama.heads("GPTNeoX", tokens="classifier"),
    unused=("layers.*.attention.bias", "layers.*.attention.masked_bias", "layers.*.attention.rotary_emb.inv_freq"),
    without_effect=frozenset({"is_decoder"}),
)
