"""Qwen2 and Qwen2.5 (Yang et al. 2024), as `transformers` stores them: Llama with biases of queries, keys and values."""

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.layer_types import FULL, SLIDING, read_types, sliding, window, windows, write_types
from keras_tfm.architectures.rotary import rope
from keras_tfm.config import TransformerConfig


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    types = read_types(config, size, lambda index: SLIDING if size is not None and index >= first else FULL)
    return sliding(types, size)


def _write(config: TransformerConfig) -> dict[str, Any]:
    every = windows(config)
    return {
        "layer_types": write_types(config),
        "use_sliding_window": any(every),
        "sliding_window": window(config),
        "max_window_layers": next((index for index, size in enumerate(every) if size), len(every)),
    }


WINDOWS = Rule(("layer_types", "use_sliding_window", "sliding_window", "max_window_layers"), _read, _write)

QWEN2 = Architecture(
    model_type="qwen2",
    base="Qwen2Model",
    prefix="model.",
    options={
        **llama.OPTIONS,
        "attention": {"use_bias": {"query": True, "key": True, "value": True, "output": False}},
        "feed_forward": {"use_bias": False},
    },
    sizes=llama.SIZES,
    defaults={**llama.DEFAULTS, "max_position_embeddings": 32768},
    rules=(rope(), llama.head_dim(), WINDOWS),
    expects={"use_mrope": False},
    weights=llama.WEIGHTS,
    output=llama.OUTPUT,
    heads=llama.heads("Qwen2", question_prefix="transformer."),
    unused=llama.UNUSED,
)
