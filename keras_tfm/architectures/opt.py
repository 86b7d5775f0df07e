"""OPT (Zhang et al. 2022), as `transformers` stores it."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.stored import (
    EMBEDDING,
    INTO_HEADS,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    TOKEN_EMBEDDING,
)


def _read_width(config):
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
        "position_embedding": ("decoder.embed_positions", EMBEDDING),
        "blocks.{i}.attention.query": ("decoder.layers.{i}.self_attn.q_proj", INTO_HEADS),
        "blocks.{i}.attention.key": ("decoder.layers.{i}.self_attn.k_proj", INTO_HEADS),
        "blocks.{i}.attention.value": ("decoder.layers.{i}.self_attn.v_proj", INTO_HEADS),
        "blocks.{i}.attention.output_projection": ("decoder.layers.{i}.self_attn.out_proj", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("decoder.layers.{i}.self_attn_layer_norm", LAYER_NORM),
        "blocks.{i}.attention_residual.output_norm": ("decoder.layers.{i}.self_attn_layer_norm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("decoder.layers.{i}.fc1", LINEAR),
        "blocks.{i}.feed_forward.down": ("decoder.layers.{i}.fc2", LINEAR),
        "blocks.{i}.feed_forward_residual.input_norm": ("decoder.layers.{i}.final_layer_norm", LAYER_NORM),
        "blocks.{i}.feed_forward_residual.output_norm": ("decoder.layers.{i}.final_layer_norm", LAYER_NORM),
        "final_norm": ("decoder.final_layer_norm", LAYER_NORM),
    },
    output=llama.OUTPUT,
    heads=llama.heads("OPT", "CausalLM", "TextClassifier", "QuestionAnswerer"),
    without_effect=frozenset({"activation_dropout"}),
)
