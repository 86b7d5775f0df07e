"""Phi-3 and Phi-4 (Abdin et al. 2024), as `transformers` stores them: Llama with fused projections, and LongRoPE."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, setting
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import QUERY_KEY_VALUE, TWO_LINEAR

FUSED = {
    tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")): (
        "layers.{i}.self_attn.qkv_proj",
        QUERY_KEY_VALUE,
    ),
    ("blocks.{i}.feed_forward.gate", "blocks.{i}.feed_forward.up"): ("layers.{i}.mlp.gate_up_proj", TWO_LINEAR),
}
APART = {f"blocks.{{i}}.{part}" for part in ("attention.query", "attention.key", "attention.value")} | {
    f"blocks.{{i}}.{part}" for part in ("feed_forward.gate", "feed_forward.up")
}

PHI3 = Architecture(
    model_type="phi3",
    base="Phi3Model",
    prefix="model.",
    options={**llama.OPTIONS, "use_bias": False},
    sizes={**llama.SIZES, "resid_pdrop": "dropout"},
    defaults={**llama.DEFAULTS, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "resid_pdrop": 0.0},
    rules=(rope(), llama.head_dim(), setting("sliding_window", "window")),
    weights={**{ours: stored for ours, stored in llama.WEIGHTS.items() if ours not in APART}, **FUSED},
    output=llama.OUTPUT,
    heads=llama.heads("Phi3", "CausalLM", "TextClassifier", "TokenClassifier"),
    expects={"attention_bias": False, "mlp_bias": False, "lm_head_bias": False, "full_attn_mod": 1},
    # The dropout of embeddings is that of the residual stream here; the other is in official files, and read by none.
    without_effect=frozenset({"embd_pdrop", "interpolate_factor"}),
)
