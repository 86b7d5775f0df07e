"""Gemma 3's text models (Gemma Team 2025), as `transformers` stores them: two rotary bases, a window in most blocks."""

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Head, Rule, setting
from keras_tfm.architectures.gemma import EMBEDDING_SCALE, NORM, OPTIONS
from keras_tfm.architectures.gemma2 import DEFAULTS, SCALE, SIZES, WEIGHTS, WITHOUT_EFFECT
from keras_tfm.architectures.layer_types import FULL, SLIDING, pattern, read_types, window, write_types
from keras_tfm.architectures.rotary import read_rope, write_rope
from keras_tfm.config import TransformerConfig

# Of older files; newer ones have "rope_parameters" by layer type.
THETA = {FULL: ("rope_theta", 1_000_000.0), SLIDING: ("rope_local_base_freq", 10_000.0)}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    every, size = config.get("sliding_window_pattern", 6), config.get("sliding_window", 4096)
    types = read_types(config, size, lambda index: SLIDING if (index + 1) % every else FULL)
    sizes = {"max_position_embeddings": config.get("max_position_embeddings", 131_072)}
    given = dict(config.get("rope_parameters") or {})
    given[FULL] = {**(given.get(FULL) or {}), **(config.get("rope_scaling") or {})}
    position = {
        kind: read_rope({"rope_theta": config.get(key, base), **(given.get(kind) or {})}, sizes)
        for kind, (key, base) in THETA.items()
    }
    local = {"window": size, "position": position[SLIDING]}
    return {"position": position[FULL], **pattern([local if kind == SLIDING else {} for kind in types])}


def _write(config: TransformerConfig) -> dict[str, Any]:
    types = write_types(config)
    position = {SLIDING: config.position, FULL: config.position}
    for index, kind in enumerate(types):
        position[kind] = config.block(index).get("position", config.position)
    rope = {kind: write_rope(given) for kind, given in position.items()}
    scaling = {name: value for name, value in rope[FULL].items() if name != "rope_theta"}
    return {
        "layer_types": types,
        "sliding_window": window(config) or 4096,
        "sliding_window_pattern": [*types, FULL].index(FULL) + 1,
        "rope_parameters": rope,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        **{key: rope[kind]["rope_theta"] for kind, (key, _) in THETA.items()},
    }


GEMMA3_TEXT = Architecture(
    model_type="gemma3_text",
    base="Gemma3TextModel",
    prefix="model.",
    options={**OPTIONS, "norm_placement": "sandwich"},
    sizes=SIZES,
    defaults=DEFAULTS | {"max_position_embeddings": 131_072},
    rules=(
        llama.head_dim(256),
        llama.ATTENTION_BIAS,
        llama.qk_norm(norm=NORM),
        EMBEDDING_SCALE,
        SCALE,
        setting("final_logit_softcapping", "logit_softcap"),
        Rule(
            (
                *("layer_types", "sliding_window", "sliding_window_pattern", "rope_parameters", "rope_scaling"),
                *(key for key, _ in THETA.values()),
            ),
            _read,
            _write,
        ),
    ),
    expects={"use_bidirectional_attention": False, "attn_logit_softcapping": None},
    weights=WEIGHTS | llama.QK_NORM,
    output=llama.OUTPUT,
    heads={
        "CausalLM": Head("Gemma3ForCausalLM"),
        "TextClassifier": llama.heads("Gemma3Text")["TextClassifier"],
    },
    without_effect=WITHOUT_EFFECT | {"_sliding_window_pattern"},
)
