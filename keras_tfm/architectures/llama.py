"""Llama, Llama 2 and Llama 3 (Touvron et al. 2023; Dubey et al. 2024), as `transformers` stores them.

Its names and sizes are those of many later families, which take the tables from here.
"""

from typing import Any

from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import (
    INTO_HEADS,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    OUTPUT_EMBEDDING,
    RMS_NORM,
    TOKEN_EMBEDDING,
)

OPTIONS = {
    "kind": "decoder",
    "norm": {"kind": "rms_norm"},
    "norm_placement": "pre",
    "gated": True,
}
SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_key_value_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "hidden_act": "activation",
    "attention_dropout": "attention_dropout",
    "rms_norm_eps": "norm.epsilon",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_embeddings",
}
DEFAULTS = {
    "num_key_value_heads": None,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}


def sizes(**names: str) -> dict[str, str]:
    """`SIZES` with keys under other names, such as rms_norm_eps="layer_norm_eps"."""
    return {names.get(theirs, theirs): ours for theirs, ours in SIZES.items()}


def head_dim(default: int | None = None) -> Rule:
    """The rule of families that may set the width of heads; null is the width over the heads, as `default` may be."""
    return Rule(
        ("head_dim",),
        lambda config: {"head_dim": config.get("head_dim", default)},
        lambda config: {"head_dim": config.head_dim or config.hidden_dim // config.num_heads},
    )


def bias(key: str, part: str, default: bool = False) -> Rule:
    """The rule of a key that says whether a part, "attention" or "feed_forward", has biases."""
    return Rule(
        (key,),
        lambda config: {part: {"use_bias": bool(config.get(key, default))}},
        lambda config: {key: (getattr(config, part) or {}).get("use_bias", config.use_bias)},
    )


def qk_norm(epsilon: float = 1e-6, **options: Any) -> Rule:
    """The rule of families whose queries and keys have norms with the blocks' epsilon; `options` are those of attention."""
    norm = {"kind": "rms_norm", **options.pop("norm", {})}
    return Rule(
        (),
        lambda config: {"attention": {"qk_norm": {**norm, "epsilon": config.get("rms_norm_eps", epsilon)}, **options}},
        lambda config: {},
    )


ATTENTION_BIAS = bias("attention_bias", "attention")
WEIGHTS = {
    "token_embedding": ("embed_tokens", TOKEN_EMBEDDING),
    "blocks.{i}.attention.query": ("layers.{i}.self_attn.q_proj", INTO_HEADS),
    "blocks.{i}.attention.key": ("layers.{i}.self_attn.k_proj", INTO_HEADS),
    "blocks.{i}.attention.value": ("layers.{i}.self_attn.v_proj", INTO_HEADS),
    "blocks.{i}.attention.output_projection": ("layers.{i}.self_attn.o_proj", OUT_OF_HEADS),
    "blocks.{i}.attention_residual.input_norm": ("layers.{i}.input_layernorm", RMS_NORM),
    "blocks.{i}.feed_forward.gate": ("layers.{i}.mlp.gate_proj", LINEAR),
    "blocks.{i}.feed_forward.up": ("layers.{i}.mlp.up_proj", LINEAR),
    "blocks.{i}.feed_forward.down": ("layers.{i}.mlp.down_proj", LINEAR),
    "blocks.{i}.feed_forward_residual.input_norm": ("layers.{i}.post_attention_layernorm", RMS_NORM),
    "final_norm": ("norm", RMS_NORM),
}


def without_feed_forward(weights: dict[str, Any]) -> dict[str, Any]:
    """A table for blocks whose feed-forward layer is another."""
    return {ours: stored for ours, stored in weights.items() if ".feed_forward." not in ours}


LAYER_NORM_WEIGHTS = {
    ours: (theirs, LAYER_NORM if "norm" in ours else layout) for ours, (theirs, layout) in WEIGHTS.items()
}
QK_NORM = {
    "blocks.{i}.attention.query_norm": ("layers.{i}.self_attn.q_norm", RMS_NORM),
    "blocks.{i}.attention.key_norm": ("layers.{i}.self_attn.k_norm", RMS_NORM),
}
OUTPUT = {"token_embedding": ("lm_head", OUTPUT_EMBEDDING)}
UNUSED = ("layers.*.self_attn.rotary_emb.inv_freq",)


def heads(
    name: str, *tasks: str, question_prefix: str | None = None, tokens: str = "score", **changes: Any
) -> dict[str, Head]:
    """The heads that `transformers` gives most decoders, under a family's class names, such as "Llama".

    `tokens` is what the token classifier's projection is called, `changes` what those without logits of tokens go without.
    """
    untied = {"tie_embeddings": True, **changes}
    every = {
        "CausalLM": Head(f"{name}ForCausalLM"),
        "TextClassifier": Head(
            f"{name}ForSequenceClassification",
            {"head.logits": ("score", LINEAR)},
            {"pooling": "last", "dropout": 0.0, "head": {"use_bias": False}},
            untied,
        ),
        "TokenClassifier": Head(f"{name}ForTokenClassification", {"head.logits": (tokens, LINEAR)}, changes=untied),
        "QuestionAnswerer": Head(
            f"{name}ForQuestionAnswering",
            {"head.logits": ("qa_outputs", LINEAR)},
            changes=untied,
            prefix=question_prefix,
        ),
    }
    return {task: every[task] for task in tasks or every}


LLAMA = Architecture(
    model_type="llama",
    base="LlamaModel",
    prefix="model.",
    options=OPTIONS,
    sizes=SIZES,
    defaults=DEFAULTS,
    rules=(rope(), head_dim(), ATTENTION_BIAS, bias("mlp_bias", "feed_forward")),
    weights=WEIGHTS,
    output=OUTPUT,
    heads=heads("Llama", question_prefix="transformer."),
    unused=UNUSED,
)
