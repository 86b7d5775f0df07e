"""GPT-2 (Radford et al. 2019), as `transformers` stores it."""

from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.stored import (
    CONV1D,
    CONV1D_OUT_OF_HEADS,
    CONV1D_QUERY_KEY_VALUE,
    EMBEDDING,
    LAYER_NORM,
    LINEAR,
    TOKEN_EMBEDDING,
)

SIZES = {
    "vocab_size": "vocabulary_size",
    "n_embd": "hidden_dim",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_positions": "max_sequence_length",
    "activation_function": "activation",
    "resid_pdrop": "dropout",
    "attn_pdrop": "attention_dropout",
    "layer_norm_epsilon": "norm.epsilon",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
}
DEFAULTS = {
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}


def inner(key: str, width: str) -> Rule:
    """The rule of a feed-forward width that is four times the model's where config.json has null."""
    return Rule(
        (key,),
        lambda config: {"intermediate_dim": config.get(key) or 4 * config[width]},
        lambda config: {key: config.intermediate_dim},
    )


GPT2 = Architecture(
    model_type="gpt2",
    base="GPT2Model",
    prefix="transformer.",
    options={"kind": "decoder", "norm": {"kind": "layer_norm"}, "norm_placement": "pre"},
    sizes=SIZES,
    defaults=DEFAULTS,
    expects={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    },
    rules=(inner("n_inner", "n_embd"),),
    weights={
        "token_embedding": ("wte", TOKEN_EMBEDDING),
        "position_embedding": ("wpe", EMBEDDING),
        tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")): (
            "h.{i}.attn.c_attn",
            CONV1D_QUERY_KEY_VALUE,
        ),
        "blocks.{i}.attention.output_projection": ("h.{i}.attn.c_proj", CONV1D_OUT_OF_HEADS),
        "blocks.{i}.attention_residual.input_norm": ("h.{i}.ln_1", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("h.{i}.mlp.c_fc", CONV1D),
        "blocks.{i}.feed_forward.down": ("h.{i}.mlp.c_proj", CONV1D),
        "blocks.{i}.feed_forward_residual.input_norm": ("h.{i}.ln_2", LAYER_NORM),
        "final_norm": ("ln_f", LAYER_NORM),
    },
    heads={
        "CausalLM": Head("GPT2LMHeadModel"),
        "TextClassifier": Head(
            "GPT2ForSequenceClassification",
            {"head.logits": ("score", LINEAR)},
            {"pooling": "last", "dropout": 0.0, "head": {"use_bias": False}},
        ),
        "TokenClassifier": Head("GPT2ForTokenClassification", {"head.logits": ("classifier", LINEAR)}),
        "QuestionAnswerer": Head("GPT2ForQuestionAnswering", {"head.logits": ("qa_outputs", LINEAR)}),
    },
    unused=("h.*.attn.bias", "h.*.attn.masked_bias"),
    without_effect=frozenset(  # the dropout of embeddings is that of the residual stream here
        """
        n_ctx embd_pdrop summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels
        """.split()  # noqa: SIM905
    ),
)
