"""StarCoder2 (Lozhkov et al. 2024), as `transformers` stores it: rotary positions and a window in a GPT with biases."""

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, setting
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import LINEAR

STARCODER2 = Architecture(
    model_type="starcoder2",
    base="Starcoder2Model",
    prefix="model.",
    options={"kind": "decoder", "norm": {"kind": "layer_norm"}, "norm_placement": "pre"},
    sizes={
        **llama.sizes(rms_norm_eps="norm_epsilon"),
        "residual_dropout": "dropout",
        "use_bias": "use_bias",
    },
    defaults={
        **llama.DEFAULTS,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.018042,
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-5,
        "residual_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
    rules=(rope(), llama.head_dim(), setting("sliding_window", "window")),
    weights={
        **llama.LAYER_NORM_WEIGHTS,
        "blocks.{i}.feed_forward.up": ("layers.{i}.mlp.c_fc", LINEAR),
        "blocks.{i}.feed_forward.down": ("layers.{i}.mlp.c_proj", LINEAR),
    },
    output=llama.OUTPUT,
    heads=llama.heads("Starcoder2", "CausalLM", "TextClassifier", "TokenClassifier"),
    without_effect=frozenset(  # the dropout of embeddings is that of the residual stream here
        """
        embedding_dropout activation_function attention_softmax_in_fp32 layer_norm_epsilon mlp_type norm_type
        scale_attention_softmax_in_fp32 scale_attn_weights
        """.split()  # noqa: SIM905
    ),
)
