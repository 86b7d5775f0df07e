"""Mistral (Jiang et al. 2023), as `transformers` stores it: Llama with a sliding window."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, setting
from keras_tfm.architectures.rotary import rope

MISTRAL = Architecture(
    model_type="mistral",
    base="MistralModel",
    prefix="model.",
    options={**llama.OPTIONS, "use_bias": False},
    sizes=llama.SIZES,
    defaults={**llama.DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 4096 * 32},
    rules=(rope(), llama.head_dim(), setting("sliding_window", "window", 4096)),
    weights=llama.WEIGHTS,
    output=llama.OUTPUT,
    heads=llama.heads("Mistral"),
    unused=llama.UNUSED,
)
