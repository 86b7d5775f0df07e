"""SmolLM3 (Hugging Face 2025), as `transformers` stores it: Llama, of which every fourth block goes without positions."""

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.layer_types import FULL, SLIDING, pattern, read_types, window, write_types
from keras_tfm.architectures.rotary import rope
from keras_tfm.config import TransformerConfig


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    every, size = config.get("no_rope_layer_interval", 4), config.get("sliding_window")
    # A list of ones and zeros; the ones, whatever its name, are blocks that have positions.
    turns = config.get("no_rope_layers") or [(index + 1) % every for index in range(config["num_hidden_layers"])]
    slides = config.get("use_sliding_window") and size is not None
    types = read_types(config, size, lambda index: SLIDING if slides and not turns[index] else FULL)
    return pattern(
        [
            ({} if turn else {"position": None}) | ({"window": size} if kind == SLIDING else {})
            for turn, kind in zip(turns, types, strict=False)
        ]
    )


def _write(config: TransformerConfig) -> dict[str, Any]:
    turns = [config.block(index).get("position", config.position) is not None for index in range(config.num_layers)]
    return {
        "no_rope_layers": [int(turn) for turn in turns],
        "layer_types": write_types(config),
        "use_sliding_window": window(config) is not None,
        "sliding_window": window(config),
    }


SMOLLM3 = Architecture(
    model_type="smollm3",
    base="SmolLM3Model",
    prefix="model.",
    options=llama.OPTIONS,
    sizes=llama.SIZES,
    defaults={
        **llama.DEFAULTS,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    rules=(
        rope(2_000_000.0),
        llama.head_dim(),
        llama.ATTENTION_BIAS,
        llama.bias("mlp_bias", "feed_forward"),
        Rule(
            ("no_rope_layers", "no_rope_layer_interval", "layer_types", "use_sliding_window", "sliding_window"),
            _read,
            _write,
        ),
    ),
    weights=llama.WEIGHTS,
    output=llama.OUTPUT,
    heads=llama.heads("SmolLM3", question_prefix="transformer."),
    without_effect=frozenset({"max_window_layers"}),  # in the official file; layer_types tell
)
