"""DeBERTa V2 and V3 (He et al. 2021, 2023), as `transformers` stores it: BERT's blocks with disentangled attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from keras_tfm.architectures import bert
from keras_tfm.architectures.architecture import Architecture, Head, Rule, read_activation, spelled_out
from keras_tfm.architectures.stored import EMBEDDING, INTO_HEADS, LAYER_NORM, LINEAR, VECTOR, Weights
from keras_tfm.config import TransformerConfig

TERMS = {"c2p": "content_to_position", "p2c": "position_to_content"}
ATTENTION = "encoder.layer.{i}.attention.self."


def _words(value: Any) -> list[str]:
    """A list, or words between bars, as older files have it."""
    return [word.strip() for word in value.lower().split("|")] if isinstance(value, str) else list(value or [])


def _read_positions(config: Mapping[str, Any]) -> dict[str, Any]:
    added = {"position": "learned" if config.get("position_biased_input", True) else None}
    relative, kinds = config.get("relative_attention", False), _words(config.get("pos_att_type"))
    norm = [word for word in _words(config.get("norm_rel_ebd", "none")) if word != "none"]
    known = set(kinds) <= set(TERMS) and norm in ([], ["layer_norm"])
    if not known or relative != bool(kinds) or (kinds and not config.get("share_att_key", False)):
        keys = ("relative_attention", "pos_att_type", "share_att_key", "norm_rel_ebd")
        said = ", ".join(f"{key}={config.get(key)!r}" for key in keys)
        raise ValueError(
            f"config.json says {said}. Implemented is relative attention by c2p, p2c or both, with share_att_key, "
            "and with norm_rel_ebd 'layer_norm' or 'none'; or no relative attention."
        )
    if not relative:
        return added
    buckets, limit = config.get("position_buckets", -1), config.get("max_relative_positions", -1)
    return {
        **added,
        "attention_position": {
            "kind": "disentangled",
            "num_buckets": 2 * buckets if buckets > 0 else None,
            "max_distance": limit if limit > 0 else config["max_position_embeddings"],
            "terms": [ours for theirs, ours in TERMS.items() if theirs in kinds],
            "norm": {"kind": "layer_norm", "epsilon": config.get("layer_norm_eps", 1e-7)} if norm else None,
        },
    }


def _write_positions(config: TransformerConfig) -> dict[str, Any]:
    written = {"position_biased_input": config.position is not None, "relative_attention": False, "pos_att_type": []}
    scheme = spelled_out(config.attention_position)
    if scheme is None:
        return written
    if scheme["kind"] != "disentangled":
        raise ValueError(f"The family's attention is disentangled; this model's positions are {scheme}.")
    return written | {
        "relative_attention": True,
        "pos_att_type": [theirs for theirs, ours in TERMS.items() if ours in scheme["terms"]],
        "share_att_key": True,
        "position_buckets": (scheme["num_buckets"] or -2) // 2,
        "max_relative_positions": scheme["max_distance"],
        "norm_rel_ebd": "layer_norm" if scheme["norm"] else "none",
    }


def _usual(key: str, usual: Callable[[Mapping[str, Any]], int]) -> Rule:
    """The rule of a key that may set a width, where only the usual one is implemented."""

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get(key) not in (None, usual(config)):
            raise ValueError(f"config.json says {key}={config[key]}; only {usual(config)} is implemented here.")
        return {}

    return Rule((key,), read, lambda config: {})


def _masked(config: TransformerConfig) -> Weights:
    """Theirs has two heads, one of the original code and an older one, which is the usual one here."""
    legacy = (config.metadata or {}).get("legacy", True)
    hidden = "cls.predictions.transform." if legacy else "lm_predictions.lm_head."
    return {
        "head.hidden": (f"{hidden}dense", LINEAR),
        "head.norm": (f"{hidden}LayerNorm", LAYER_NORM),
        "head.bias": ("cls.predictions.bias" if legacy else f"{hidden}bias", VECTOR),
    }


def _classifier(config: TransformerConfig) -> dict[str, Any]:
    activation = (config.metadata or {}).get("pooler_hidden_act", "gelu")
    return {"hidden_dim": config.hidden_dim, "activation": read_activation(activation)}


DEBERTA_V2 = Architecture(
    model_type="deberta-v2",
    base="DebertaV2Model",
    prefix="deberta.",
    options={**bert.OPTIONS, "pooler": False},
    sizes=bert.SIZES,
    defaults={**bert.DEFAULTS, "layer_norm_eps": 1e-7, "type_vocab_size": 0},
    expects={"conv_kernel_size": 0, "tie_word_embeddings": True},
    rules=(
        Rule(
            (
                *("position_biased_input", "relative_attention", "pos_att_type", "share_att_key"),
                *("position_buckets", "max_relative_positions", "norm_rel_ebd"),
            ),
            _read_positions,
            _write_positions,
        ),
        _usual("embedding_size", lambda config: config["hidden_size"]),
        _usual("pooler_hidden_size", lambda config: config["hidden_size"]),
        _usual("attention_head_size", lambda config: config["hidden_size"] // config["num_attention_heads"]),
    ),
    weights={
        **{ours: theirs for ours, theirs in bert.WEIGHTS.items() if ours != "pooler"},
        "blocks.{i}.attention.query": (ATTENTION + "query_proj", INTO_HEADS),
        "blocks.{i}.attention.key": (ATTENTION + "key_proj", INTO_HEADS),
        "blocks.{i}.attention.value": (ATTENTION + "value_proj", INTO_HEADS),
        "blocks.0.attention.position": ("encoder.rel_embeddings", EMBEDDING),
        "blocks.0.attention.position.norm": ("encoder.LayerNorm", LAYER_NORM),
    },
    heads=bert.heads(
        "DebertaV2",
        TextClassifier=Head(
            "DebertaV2ForSequenceClassification",
            {"head.hidden": ("pooler.dense", LINEAR), "head.logits": ("classifier", LINEAR)},
            {"pooling": "first", "head": _classifier},
        ),
        MaskedLM=Head("DebertaV2ForMaskedLM", _masked),
    ),
    unused=("embeddings.position_ids", "embeddings.position_embeddings.weight", "cls.predictions.decoder.*"),
    # On the backbone: two are read for the heads; conv_act is that of the convolution, which is not implemented.
    without_effect=frozenset({"cls_dropout", "conv_act", "legacy", "pooler_dropout", "pooler_hidden_act"}),
)
