"""Small random models of every family, for comparison with `transformers`: odd sizes, every option that matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# transformers' keywords of most decoders. Heads of another width than width / heads, fewer key/value heads, a
# vocabulary that is no multiple of 8.
DECODER = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=32,
    tie_word_embeddings=False,
)
ROPE = dict(rope_theta=5000.0, rope_type="default")


@dataclass(frozen=True)
class Case:
    """A family in `transformers`.

    Attributes:
        config: Class name of its configuration.
        options: Keywords of that.
        models: Our class name to theirs.
        variants: Name to keywords that differ from `options`; each is compared with the first of `models`.
        pad: Token id at padded places.
        left: Also compare a left-padded row.
    """

    config: str
    options: dict[str, Any]
    models: dict[str, str]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    pad: int = 0
    left: bool = True


def decoder_models(name: str, *tasks: str, base: str | None = None) -> dict[str, str]:
    every = {
        "CausalLM": f"{name}ForCausalLM",
        "Backbone": base or f"{name}Model",
        "TextClassifier": f"{name}ForSequenceClassification",
        "TokenClassifier": f"{name}ForTokenClassification",
        "QuestionAnswerer": f"{name}ForQuestionAnswering",
    }
    return {task: every[task] for task in tasks or every}


def yarn(**more: Any) -> dict[str, Any]:
    return dict(rope_type="yarn", rope_theta=5000.0, factor=4.0, original_max_position_embeddings=8, **more)


FAMILIES: dict[str, Case] = {
    "llama": Case(
        "LlamaConfig",
        DECODER | dict(head_dim=8, rope_parameters=ROPE),
        decoder_models("Llama"),
        {
            "tied, biases": dict(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
            "llama 3": dict(
                rope_parameters=dict(
                    rope_type="llama3",
                    rope_theta=5000.0,
                    factor=8.0,
                    low_freq_factor=1.0,
                    high_freq_factor=4.0,
                    original_max_position_embeddings=16,
                )
            ),
            "linear": dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=2.0)),
            "yarn": dict(rope_parameters=yarn()),
            "dynamic": dict(
                max_position_embeddings=8, rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)
            ),
        },
    ),
    "gpt2": Case(
        "GPT2Config",
        dict(vocab_size=43, n_embd=24, n_layer=2, n_head=3, n_positions=19, pad_token_id=0),
        {
            "CausalLM": "GPT2LMHeadModel",
            "Backbone": "GPT2Model",
            "TextClassifier": "GPT2ForSequenceClassification",
            "TokenClassifier": "GPT2ForTokenClassification",
            "QuestionAnswerer": "GPT2ForQuestionAnswering",
        },
        {"narrow": dict(n_inner=40, activation_function="relu")},
    ),
}
