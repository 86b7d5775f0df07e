"""RoBERTa (Liu et al. 2019), as `transformers` stores it: BERT's table, positions behind the padding's, other heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import bert
from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.stored import LAYER_NORM, LINEAR, VECTOR
from keras_tfm.config import TransformerConfig


def _offset(config: Mapping[str, Any]) -> int:
    pad = config.get("pad_token_id")
    return (1 if pad is None else pad) + 1


def _offset_of(config: TransformerConfig) -> int:
    return config.position.get("offset", 0) if isinstance(config.position, dict) else 0


# fairseq counts positions from the padding token's id on, so rows up to that one belong to no place in a text.
POSITIONS = Rule(
    ("max_position_embeddings", "pad_token_id"),
    lambda config: {
        "position": {"kind": "learned", "offset": _offset(config)},
        "max_sequence_length": config.get("max_position_embeddings", 512) - _offset(config),
    },
    lambda config: {
        "max_position_embeddings": (config.max_sequence_length or 0) + _offset_of(config),
        "pad_token_id": _offset_of(config) - 1,
    },
)


def classifier(config: TransformerConfig, activation: str = "tanh") -> dict[str, Any]:
    """The options of a classification head with a hidden layer as wide as the model."""
    return {"hidden_dim": config.hidden_dim, "activation": activation}


def gelu_head(config: TransformerConfig) -> dict[str, Any] | None:
    """The options of a masked-token head whose activation is gelu, whatever that of the blocks."""
    return None if config.activation == "gelu" else {"activation": "gelu"}


def heads(name: str) -> dict[str, Head]:
    """RoBERTa's heads under the class names of one that is built like it."""
    return bert.heads(
        name,
        TextClassifier=Head(
            f"{name}ForSequenceClassification",
            {"head.hidden": ("classifier.dense", LINEAR), "head.logits": ("classifier.out_proj", LINEAR)},
            {"pooling": "first", "head": classifier},
            bert.WITHOUT_POOLER,
        ),
        MaskedLM=Head(
            f"{name}ForMaskedLM",
            {
                "head.hidden": ("lm_head.dense", LINEAR),
                "head.norm": ("lm_head.layer_norm", LAYER_NORM),
                "head.bias": ("lm_head.bias", VECTOR),
            },
            {"head": gelu_head},
            bert.WITHOUT_POOLER,
        ),
    )


ROBERTA = Architecture(
    model_type="roberta",
    base="RobertaModel",
    prefix="roberta.",
    options=bert.OPTIONS,
    sizes={theirs: ours for theirs, ours in bert.SIZES.items() if theirs != "max_position_embeddings"},
    defaults=bert.DEFAULTS,
    expects=bert.EXPECTS,
    rules=(POSITIONS,),
    weights=bert.WEIGHTS,
    heads=heads("Roberta"),
    optional=("pooler",),
    unused=("embeddings.position_ids", "lm_head.decoder.*"),
    without_effect=bert.WITHOUT_EFFECT,
)
