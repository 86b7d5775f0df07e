"""Qwen3 (Yang et al. 2025), as `transformers` stores it: Llama with normalized queries and keys."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture
from keras_tfm.architectures.qwen2 import WINDOWS
from keras_tfm.architectures.rotary import rope

QWEN3 = Architecture(
    model_type="qwen3",
    base="Qwen3Model",
    prefix="model.",
    options={**llama.OPTIONS, "feed_forward": {"use_bias": False}},
    sizes=llama.SIZES,
    defaults={**llama.DEFAULTS, "max_position_embeddings": 32768},
    rules=(rope(), llama.head_dim(128), llama.ATTENTION_BIAS, llama.qk_norm(), WINDOWS),
    weights=llama.WEIGHTS | llama.QK_NORM,
    output=llama.OUTPUT,
    heads=llama.heads("Qwen3", question_prefix="transformer."),
    unused=llama.UNUSED,
)
