"""ELECTRA (Clark et al. 2020), as `transformers` stores it: BERT with narrower embeddings and other heads.

A generator's directory gives a masked language model; a discriminator's, which most people fine-tune, the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures import bert
from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.roberta import gelu_head
from keras_tfm.architectures.stored import LAYER_NORM, LINEAR, VECTOR


def _read_embedding_size(config: Mapping[str, Any]) -> dict[str, Any]:
    size = config.get("embedding_size", 128)
    return {"embedding_dim": None if size == config["hidden_size"] else size}  # as wide as the model: not projected


EMBEDDING_SIZE = Rule(
    ("embedding_size",),
    _read_embedding_size,
    lambda config: {"embedding_size": config.embedding_dim or config.hidden_dim},
)

ELECTRA = Architecture(
    model_type="electra",
    base="ElectraModel",
    prefix="electra.",
    options={**bert.OPTIONS, "pooler": False},
    sizes=bert.SIZES,
    defaults=bert.DEFAULTS,
    expects=bert.EXPECTS,
    rules=(EMBEDDING_SIZE,),
    weights={
        **{ours: theirs for ours, theirs in bert.WEIGHTS.items() if ours != "pooler"},
        "embedding_projection": ("embeddings_project", LINEAR),
    },
    heads=bert.heads(
        "Electra",
        TextClassifier=Head(
            "ElectraForSequenceClassification",
            {"head.hidden": ("classifier.dense", LINEAR), "head.logits": ("classifier.out_proj", LINEAR)},
            {"pooling": "first", "head": lambda config: {"hidden_dim": config.hidden_dim, "activation": "gelu"}},
        ),
        MaskedLM=Head(
            "ElectraForMaskedLM",
            {
                "head.hidden": ("generator_predictions.dense", LINEAR),
                "head.norm": ("generator_predictions.LayerNorm", LAYER_NORM),
                "head.bias": ("generator_lm_head.bias", VECTOR),
            },
            {"head": gelu_head},
        ),
    ),
    unused=("embeddings.position_ids", "generator_lm_head.weight"),
    without_effect=frozenset(  # of a multiple-choice head
        "summary_type summary_use_proj summary_activation summary_last_dropout".split()  # noqa: SIM905
    ),
)
