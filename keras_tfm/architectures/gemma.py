"""Gemma (Gemma Team 2024), as `transformers` stores it: Llama with scaled embeddings and norms whose weights add to one."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.rotary import rope

NORM = {"kind": "rms_norm", "offset": 1.0}
OPTIONS = {**llama.OPTIONS, "norm": NORM, "feed_forward": {"use_bias": False}}
EMBEDDING_SCALE = Rule((), lambda config: {"embedding_scale": config["hidden_size"] ** 0.5}, lambda config: {})

GEMMA = Architecture(
    model_type="gemma",
    base="GemmaModel",
    prefix="model.",
    options=OPTIONS,
    sizes=llama.SIZES,
    defaults={
        **llama.DEFAULTS,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    rules=(
        rope(),
        llama.head_dim(256),
        llama.ATTENTION_BIAS,
        EMBEDDING_SCALE,
        # The official files say "gelu" and mean its tanh form.
        Rule(
            (), lambda config: {"activation": "gelu_tanh"} if config.get("hidden_act") == "gelu" else {}, lambda _: {}
        ),
    ),
    expects={"use_bidirectional_attention": False},
    weights=llama.WEIGHTS,
    output=llama.OUTPUT,
    heads=llama.heads("Gemma", "CausalLM", "TextClassifier", "TokenClassifier"),
    unused=llama.UNUSED,
    without_effect=frozenset({"hidden_activation"}),
)
