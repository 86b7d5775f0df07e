"""BART (Lewis et al. 2020), as `transformers` stores it.

Its names and sizes are those of mBART, Pegasus, Marian and M2M100, which take the tables from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.stored import (
    EMBEDDING,
    INTO_HEADS,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    OUTPUT_EMBEDDING,
    TOKEN_EMBEDDING,
    Tensor,
    Weights,
)

OPTIONS = {"kind": "encoder_decoder", "norm": {"kind": "layer_norm", "epsilon": 1e-5}}
LEARNED = {"position": {"kind": "learned", "offset": 2}, "embedding_norm": True}
SINUSOIDAL = {"position": {"kind": "sinusoidal", "interleaved": False}}
POST = {"norm_placement": "post", "final_norm": False}
PRE = {"norm_placement": "pre", "final_norm": True}
SIZES = {
    "vocab_size": "vocabulary_size",
    "d_model": "hidden_dim",
    "encoder_layers": "num_layers",
    "decoder_layers": "num_decoder_layers",
    "max_position_embeddings": "max_sequence_length",
    "activation_function": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "init_std": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
}
DEFAULTS = {
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "tie_word_embeddings": True,
}


def _both(key: str, ours: str) -> Rule:
    """A size that config.json gives for the encoder and the decoder apart."""
    keys = (f"encoder_{key}", f"decoder_{key}")

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        encoder, decoder = (config[key] for key in keys)
        if encoder != decoder:
            raise ValueError(
                f"config.json says {keys[0]}={encoder}, {keys[1]}={decoder}; only equal ones are implemented."
            )
        return {ours: encoder}

    return Rule(keys, read, lambda config: dict.fromkeys(keys, getattr(config, ours)))


def rules(scale_embedding: bool = False) -> tuple[Rule, ...]:
    """Those of BART, given what it means if config.json says nothing of scale_embedding."""
    return (
        _both("attention_heads", "num_heads"),
        _both("ffn_dim", "intermediate_dim"),
        Rule(
            ("scale_embedding",),
            lambda config: {
                "embedding_scale": config["d_model"] ** 0.5 if config.get("scale_embedding", scale_embedding) else None
            },
            lambda config: {"scale_embedding": config.embedding_scale is not None},
        ),
    )


def attention(ours: str, theirs: str) -> Weights:
    """Names of an attention layer and its norm, wherever that is placed."""
    return {
        f"{ours}.query": (f"{theirs}.q_proj", INTO_HEADS),
        f"{ours}.key": (f"{theirs}.k_proj", INTO_HEADS),
        f"{ours}.value": (f"{theirs}.v_proj", INTO_HEADS),
        f"{ours}.output_projection": (f"{theirs}.out_proj", OUT_OF_HEADS),
        f"{ours}_residual.input_norm": (f"{theirs}_layer_norm", LAYER_NORM),
        f"{ours}_residual.output_norm": (f"{theirs}_layer_norm", LAYER_NORM),
    }


def stack(ours: str, theirs: str, final_norm: str = "layer_norm") -> Weights:
    """Names of an encoder or a decoder, with what only some have."""
    block, layer = f"{ours}blocks.{{i}}", f"{theirs}.layers.{{i}}"
    return {
        f"{ours}position_embedding": (f"{theirs}.embed_positions", EMBEDDING),
        f"{ours}embedding_norm": (f"{theirs}.layernorm_embedding", LAYER_NORM),
        **attention(f"{block}.attention", f"{layer}.self_attn"),
        **attention(f"{block}.cross_attention", f"{layer}.encoder_attn"),
        f"{block}.feed_forward.up": (f"{layer}.fc1", LINEAR),
        f"{block}.feed_forward.down": (f"{layer}.fc2", LINEAR),
        f"{block}.feed_forward_residual.input_norm": (f"{layer}.final_layer_norm", LAYER_NORM),
        f"{block}.feed_forward_residual.output_norm": (f"{layer}.final_layer_norm", LAYER_NORM),
        f"{ours}final_norm": (f"{theirs}.{final_norm}", LAYER_NORM),
    }


BART = Architecture(
    model_type="bart",
    base="BartModel",
    prefix="model.",
    options=OPTIONS | LEARNED | POST | {"head_bias": True},
    sizes=SIZES,
    defaults=DEFAULTS,
    expects={"is_encoder_decoder": True, "is_decoder": False},
    rules=rules(),
    weights={"token_embedding": ("shared", TOKEN_EMBEDDING), **stack("", "encoder"), **stack("decoder_", "decoder")},
    copies={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")},
    output={
        "token_embedding": ("lm_head", OUTPUT_EMBEDDING),
        "token_embedding.bias": ("final_logits_bias", (Tensor("", "", write=lambda bias: bias[None]),)),
    },
    heads={"Seq2SeqLM": Head("BartForConditionalGeneration")},
    # LayerDrop (Fan et al. 2020) skips blocks in training only; the others told an older program one family from another.
    without_effect=frozenset(
        """
        encoder_layerdrop decoder_layerdrop num_hidden_layers add_bias_logits add_final_layer_norm classif_dropout
        extra_pos_embeddings force_bos_token_to_be_generated normalize_before normalize_embedding output_past save_step
        static_position_embeddings
        """.split()  # noqa: SIM905
    ),
)
