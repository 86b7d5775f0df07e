"""OLMo 2 (OLMo et al. 2024), as `transformers` stores it: Llama with norms after the layers, and of all heads together."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import RMS_NORM

OLMO2 = Architecture(
    model_type="olmo2",
    base="Olmo2Model",
    prefix="model.",
    options={**llama.OPTIONS, "norm_placement": "residual", "feed_forward": {"use_bias": False}},
    sizes=llama.SIZES,
    defaults=llama.DEFAULTS | {"rms_norm_eps": 1e-5},
    rules=(rope(), llama.head_dim(), llama.ATTENTION_BIAS, llama.qk_norm(1e-5, qk_norm_scope="all_heads")),
    weights={
        **{ours: stored for ours, stored in llama.WEIGHTS.items() if not ours.endswith("input_norm")},
        **llama.QK_NORM,
        "blocks.{i}.attention_residual.residual_norm": ("layers.{i}.post_attention_layernorm", RMS_NORM),
        "blocks.{i}.feed_forward_residual.residual_norm": ("layers.{i}.post_feedforward_layernorm", RMS_NORM),
    },
    output=llama.OUTPUT,
    heads=llama.heads("Olmo2", "CausalLM", "TextClassifier"),
)
