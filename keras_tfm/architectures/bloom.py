"""BLOOM (Scao et al. 2022), as `transformers` stores it."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.stored import (
    GROUPED_QUERY_KEY_VALUE,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    TOKEN_EMBEDDING,
)

BLOOM = Architecture(
    model_type="bloom",
    base="BloomModel",
    prefix="transformer.",
    options={
        "kind": "decoder",
        "position": "alibi",
        "embedding_norm": True,
        "norm": {"kind": "layer_norm"},
        "norm_placement": "pre",
        "activation": "gelu_tanh",
    },
    sizes={
        "vocab_size": "vocabulary_size",
        "hidden_size": "hidden_dim",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "seq_length": "max_sequence_length",
        "hidden_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "layer_norm_epsilon": "norm.epsilon",
        "initializer_range": "initializer_range",
        "tie_word_embeddings": "tie_embeddings",
    },
    defaults={
        "seq_length": None,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
    },
    older={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    expects={"apply_residual_connection_post_layernorm": False, "n_inner": None},
    rules=(Rule((), lambda config: {"intermediate_dim": 4 * config["hidden_size"]}, lambda config: {}),),
    weights={
        "token_embedding": ("word_embeddings", TOKEN_EMBEDDING),
        "embedding_norm": ("word_embeddings_layernorm", LAYER_NORM),
        tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")): (
            "h.{i}.self_attention.query_key_value",
            GROUPED_QUERY_KEY_VALUE,
        ),
        "blocks.{i}.attention.output_projection": ("h.{i}.self_attention.dense", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("h.{i}.input_layernorm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("h.{i}.mlp.dense_h_to_4h", LINEAR),
        "blocks.{i}.feed_forward.down": ("h.{i}.mlp.dense_4h_to_h", LINEAR),
        "blocks.{i}.feed_forward_residual.input_norm": ("h.{i}.post_attention_layernorm", LAYER_NORM),
        "final_norm": ("ln_f", LAYER_NORM),
    },
    output=llama.OUTPUT,
    heads=llama.heads("Bloom", tokens="classifier"),
    # How the training program computed; the numbers are the same.
    without_effect=frozenset(
        """
        attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add
        skip_bias_add_qkv slow_but_exact unk_token_id
        """.split()  # noqa: SIM905
    ),
)
