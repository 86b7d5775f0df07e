"""KerasHub's backbones as data: what their attributes mean in config.json's terms, and where their layers lie.

Each entry leads to a family of this package, so a model that came from KerasHub can be written as any other of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Change = Callable[[np.ndarray], np.ndarray]
Layers = Mapping[str, str | tuple[str, Change]]


def two_rows_before(array: np.ndarray) -> np.ndarray:
    """KerasHub leaves out the two rows of a position table that the published models keep for padding."""
    return np.pad(array, ((2, 0), (0, 0)))


def heads_second(array: np.ndarray) -> np.ndarray:
    """(heads, width, head_dim) to (width, heads, head_dim)."""
    return array.transpose(1, 0, 2)


def without(**options: bool) -> dict[str, bool] | None:
    """Those of the options that are off; None where all are on."""
    return {name: False for name, value in options.items() if not value} or None


@dataclass(frozen=True)
class HubFamily:
    """A KerasHub backbone.

    Attributes:
        model_type: The family that it belongs to.
        sizes: Key of that family's config.json to the backbone's attribute, or to a function of the backbone.
        layers: Our layer's path, with {i} for the block, to theirs, or to several, of which the first that is there
            counts ("a|b"); a second item changes each array on the way. Weights of a layer go over in order.
        fixed: Further keys of config.json.
        fields: Of our config, functions of the backbone, for what config.json has no word for.
        zeros: Our layers or weights that KerasHub does without, as if they were zero.
    """

    model_type: str
    sizes: Mapping[str, str | Callable[[Any], Any]]
    layers: Layers
    fixed: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()


def _block(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{{i}}.{mine}": f"{theirs}.{{i}}.{name}" for mine, name in names.items()}


def _generic(norm: str, cross: bool = False) -> dict[str, str]:
    """KerasHub's TransformerEncoder and TransformerDecoder, `norm` being the place of ours."""
    names = {
        "feed_forward.up": "_feedforward_intermediate_dense",
        "feed_forward.down": "_feedforward_output_dense",
        f"feed_forward_residual.{norm}": "_feedforward_layer_norm",
    }
    for part, theirs in (("attention", "_self_attention_layer"), ("cross_attention", "_cross_attention_layer")):
        if part == "attention" or cross:
            names |= {f"{part}.{name}": f"{theirs}._{name}_dense" for name in ("query", "key", "value")}
            names |= {
                f"{part}.output_projection": f"{theirs}._output_dense",
                f"{part}_residual.{norm}": f"{theirs}_norm",
            }
    return names


BERT_SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "num_segments",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "dropout",
}
SEPARATE = {
    "token_embedding.table": "token_embedding",
    "position_embedding": "position_embedding",
    "token_type_embedding": "segment_embedding",
    "embedding_norm": "embeddings_layer_norm",
    "pooler": "pooled_dense",
}
JOINED = {
    "token_embedding.table": "embeddings.token_embedding",
    "position_embedding": "embeddings.position_embedding",
    "embedding_norm": "embeddings_layer_norm",
}
LLAMA_SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_query_heads",
    "num_key_value_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_dim",
    "rms_norm_eps": "layer_norm_epsilon",
    "rope_theta": "rope_max_wavelength",
}
LLAMA_LAYERS = {
    "token_embedding.table": "token_embedding",
    "final_norm": "layer_norm",
    **_block(
        "blocks",
        "transformer_layers",
        {
            **{f"attention.{name}": f"_self_attention_layer._{name}_dense" for name in ("query", "key", "value")},
            "attention.output_projection": "_self_attention_layer._output_dense",
            "attention_residual.input_norm": "_self_attention_layernorm",
            "feed_forward.gate": "_feedforward_gate_dense",
            "feed_forward.up": "_feedforward_intermediate_dense",
            "feed_forward.down": "_feedforward_output_dense",
            "feed_forward_residual.input_norm": "_feedforward_layernorm",
        },
    ),
}


def _llama_scaling(backbone: Any) -> dict[str, Any] | None:
    """Llama 3's bands, or linear scaling."""
    layer = backbone.transformer_layers[0]
    if getattr(layer, "rope_frequency_adjustment_factor", None):
        return {
            "rope_type": "llama3",
            "factor": layer.rope_frequency_adjustment_factor,
            "low_freq_factor": layer.rope_low_freq_factor,
            "high_freq_factor": layer.rope_high_freq_factor,
            "original_max_position_embeddings": layer.rope_pretraining_sequence_length,
        }
    factor = getattr(layer, "rope_position_scaling_factor", None) or getattr(layer, "rope_scaling_factor", 1.0)
    return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}


def _t5_block(side: str) -> dict[str, str]:
    names = {
        "feed_forward.gate": "input_projector",  # behind the activation; KerasHub's "gate" is the linear one
        "feed_forward.up": "gate_projector|input_projector",
        "feed_forward.down": "output_projector",
        "feed_forward_residual.input_norm": "layer_norm",
    }
    parts = {"attention": "self_attention"} | ({"cross_attention": "cross_attention"} if side == "decoder" else {})
    for ours, theirs in parts.items():
        names |= {f"{ours}.{name}": f"{theirs}.{name}_projector" for name in ("query", "key", "value")}
        names |= {
            f"{ours}.output_projection": f"{theirs}.output_projector",
            f"{ours}_residual.input_norm": f"{theirs}_layer_norm",
        }
    return _block("decoder_blocks" if side == "decoder" else "blocks", f"{side}_transformer_layers", names)


def _t5_activation(backbone: Any) -> str:
    """By our name: KerasHub's "gelu" is exact, its `gelu_approximate`, which published gated models have, is not."""
    given = backbone.activation
    name = given if isinstance(given, str) else getattr(given, "__name__", str(given))
    return "gelu_tanh" if name == "gelu_approximate" else name


def _bart_side(side: str) -> dict[str, Any]:
    ours = "decoder_" if side == "decoder" else ""
    return {
        f"{ours}position_embedding": (f"{side}_position_embedding", two_rows_before),
        f"{ours}embedding_norm": f"{side}_embeddings_layer_norm",
        **_block(f"{ours}blocks", f"{side}_transformer_layers", _generic("output_norm", cross=side == "decoder")),
    }


POST = _block("blocks", "transformer_layers", _generic("output_norm"))
PRE = _block("blocks", "transformer_layers", _generic("input_norm"))
WITHOUT_TYPES = {key: name for key, name in BERT_SIZES.items() if name != "num_segments"}
JOINED_WITH_PADDING: Layers = {**JOINED, "position_embedding": ("embeddings.position_embedding", two_rows_before)}

HUB_FAMILIES: dict[str, HubFamily] = {
    "BertBackbone": HubFamily("bert", BERT_SIZES, {**SEPARATE, **POST}, {"hidden_act": "gelu_new"}),
    "RobertaBackbone": HubFamily(
        "roberta",
        {**WITHOUT_TYPES, "max_position_embeddings": lambda backbone: backbone.max_sequence_length + 2},
        {**JOINED_WITH_PADDING, **POST},
        {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1},
        {"pooler": lambda backbone: False},
        zeros=("token_type_embedding",),
    ),
    "DistilBertBackbone": HubFamily(
        "distilbert",
        {
            "vocab_size": "vocabulary_size",
            "dim": "hidden_dim",
            "n_layers": "num_layers",
            "n_heads": "num_heads",
            "hidden_dim": "intermediate_dim",
            "max_position_embeddings": "max_sequence_length",
            "dropout": "dropout",
            "attention_dropout": "dropout",
        },
        {**JOINED, **POST},
    ),
    "AlbertBackbone": HubFamily(
        "albert",
        {**BERT_SIZES, "embedding_size": "embedding_dim", "num_hidden_groups": "num_groups"},
        {
            **SEPARATE,
            "embedding_projection": "embeddings_projection",
            **{ours: theirs.replace(".{i}.", ".{i}.0.") for ours, theirs in POST.items()},
        },
        {"hidden_act": "gelu_new", "inner_group_num": 1},
    ),
    "GPT2Backbone": HubFamily(
        "gpt2",
        {
            "vocab_size": "vocabulary_size",
            "n_embd": "hidden_dim",
            "n_layer": "num_layers",
            "n_head": "num_heads",
            "n_inner": "intermediate_dim",
            "n_positions": "max_sequence_length",
            "resid_pdrop": "dropout",
            "attn_pdrop": "dropout",
        },
        {
            "token_embedding.table": "token_embedding",
            "position_embedding": "position_embedding",
            "final_norm": "layer_norm",
            **PRE,
        },
    ),
    "OPTBackbone": HubFamily(
        "opt",
        {
            "vocab_size": "vocabulary_size",
            "hidden_size": "hidden_dim",
            "num_hidden_layers": "num_layers",
            "num_attention_heads": "num_heads",
            "ffn_dim": "intermediate_dim",
            "max_position_embeddings": "max_sequence_length",
            "word_embed_proj_dim": "hidden_dim",
            "dropout": "dropout",
            "attention_dropout": "dropout",
        },
        {
            "token_embedding.table": "embeddings.token_embedding",
            "position_embedding": ("embeddings.position_embedding", two_rows_before),
            "final_norm": "layer_norm",
            **PRE,
        },
    ),
    "LlamaBackbone": HubFamily(
        "llama",
        {**LLAMA_SIZES, "tie_word_embeddings": "tie_word_embeddings", "rope_scaling": _llama_scaling},
        LLAMA_LAYERS,
    ),
    "MistralBackbone": HubFamily(
        "mistral",
        {
            **LLAMA_SIZES,
            "head_dim": "head_dim",
            "sliding_window": "sliding_window",
            "rope_scaling": _llama_scaling,
        },
        LLAMA_LAYERS,
        {"tie_word_embeddings": False},
    ),
    "QwenBackbone": HubFamily(
        "qwen2",
        {
            **LLAMA_SIZES,
            "tie_word_embeddings": "tie_word_embeddings",
            "use_sliding_window": "use_sliding_window_attention",
            "sliding_window": "sliding_window_size",
            "rope_scaling": _llama_scaling,
        },
        LLAMA_LAYERS,
        {"max_window_layers": 0},
    ),
    "GemmaBackbone": HubFamily(
        "gemma",
        {
            **{key: name for key, name in LLAMA_SIZES.items() if key != "rope_theta"},
            "head_dim": "head_dim",
            "intermediate_size": lambda backbone: backbone.intermediate_dim // 2,  # theirs counts gate and up together
        },
        {
            "token_embedding.table": "token_embedding",
            "final_norm": "layer_norm",
            **{
                f"blocks.{{i}}.attention.{name}": (f"transformer_layers.{{i}}.attention.{name}_dense", heads_second)
                for name in ("query", "key", "value")
            },
            **_block(
                "blocks",
                "transformer_layers",
                {
                    "attention.output_projection": "attention.output_dense",
                    "attention_residual.input_norm": "pre_attention_norm",
                    "feed_forward.gate": "gating_ffw",
                    "feed_forward.up": "gating_ffw_2",
                    "feed_forward.down": "ffw_linear",
                    "feed_forward_residual.input_norm": "pre_ffw_norm",
                },
            ),
        },
    ),
    "T5Backbone": HubFamily(
        "t5",
        {
            "vocab_size": "vocabulary_size",
            "d_model": "hidden_dim",
            "num_layers": "num_layers",
            "num_decoder_layers": "num_layers",
            "num_heads": "num_heads",
            "d_ff": "intermediate_dim",
            "d_kv": lambda backbone: backbone.key_value_dim or backbone.hidden_dim // backbone.num_heads,
            "dropout_rate": "dropout",
            "layer_norm_epsilon": "layer_norm_epsilon",
            "tie_word_embeddings": "tie_embedding_weights",
            "feed_forward_proj": lambda backbone: "gated-gelu" if backbone.use_gated_activation else "relu",
        },
        {
            "token_embedding.table": "token_embedding",
            "final_norm": "encoder_layer_norm",
            "decoder_final_norm": "decoder_layer_norm",
            **_t5_block("encoder"),
            **_t5_block("decoder"),
        },
        fields={"activation": _t5_activation},
    ),
    "BartBackbone": HubFamily(
        "bart",
        {
            "vocab_size": "vocabulary_size",
            "d_model": "hidden_dim",
            **{
                f"{side}_{key}": name
                for side in ("encoder", "decoder")
                for key, name in (
                    ("layers", "num_layers"),
                    ("attention_heads", "num_heads"),
                    ("ffn_dim", "intermediate_dim"),
                )
            },
            "max_position_embeddings": "max_sequence_length",
            "dropout": "dropout",
            "attention_dropout": "dropout",
        },
        {"token_embedding.table": "token_embedding", **_bart_side("encoder"), **_bart_side("decoder")},
        zeros=("token_embedding.bias",),
    ),
}
HUB_FAMILIES["ViTBackbone"] = HubFamily(
    "vit",
    {
        "hidden_size": "hidden_dim",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "mlp_dim",
        "hidden_dropout_prob": "dropout_rate",
        "attention_probs_dropout_prob": "attention_dropout",
        "layer_norm_eps": "layer_norm_epsilon",
        "image_size": lambda backbone: backbone.get_layer("vit_patching_and_embedding").image_size,
        "patch_size": "patch_size",
        "num_channels": lambda backbone: backbone.get_layer("vit_patching_and_embedding").num_channels,
    },
    {
        "patch_embedding.class_vector": "vit_patching_and_embedding.class_token",
        "patch_embedding.projection": "vit_patching_and_embedding.patch_embedding",
        "position_embedding": "vit_patching_and_embedding.position_embedding",
        "final_norm": "vit_encoder.layer_norm",
        **_block(
            "blocks",
            "vit_encoder.encoder_layers",
            {
                **{f"attention.{name}": f"mha._{name}_dense" for name in ("query", "key", "value")},
                "attention.output_projection": "mha._output_dense",
                "attention_residual.input_norm": "layer_norm_1",
                "feed_forward.up": "mlp.dense_1",
                "feed_forward.down": "mlp.dense_2",
                "feed_forward_residual.input_norm": "layer_norm_2",
            },
        ),
    },
    fields={
        "pooler": lambda backbone: False,
        "activation_dropout": lambda backbone: backbone.dropout_rate,
        "attention": lambda backbone: without(use_bias=backbone.use_mha_bias),
        "feed_forward": lambda backbone: without(use_bias=backbone.use_mlp_bias),
        "patch_embedding": lambda backbone: without(
            class_token=backbone.use_class_token, use_bias=backbone.use_patch_bias
        ),
    },
)
HUB_FAMILIES["Llama3Backbone"] = HUB_FAMILIES["LlamaBackbone"]
