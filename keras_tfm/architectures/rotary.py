"""Rotary positions as config.json files state them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras_tfm.architectures.architecture import Rule
from keras_tfm.config import TransformerConfig

KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "original_max_position_embeddings")
# Entries of their scaling dict to the options of ours, by kind.
_SHARED = {"factor": "factor", "original_max_position_embeddings": "original_max_length"}
_ENTRIES: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},  # its original length is max_position_embeddings
    "yarn": {
        **_SHARED,
        **{key: key for key in ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate")},
    },
    "llama3": {**_SHARED, "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor"},
    "longrope": {
        **_SHARED,
        **{key: key for key in ("short_factor", "long_factor", "attention_factor")},
    },
}
_SAME_KIND = {"su": "longrope", "mrope": "default"}


def read_rope(parameters: Mapping[str, Any], config: Mapping[str, Any], base: float = 10_000.0) -> dict[str, Any]:
    """One "rope_parameters" (or the older "rope_scaling") as options of `RotaryEmbedding`.

    Args:
        parameters: The dict, with "rope_theta" where it is the newer kind.
        config: The whole config.json, for what lies outside of the dict.
        base: Where nothing is said.

    Raises:
        ValueError: for a kind of scaling, or an entry of it, that is not implemented.
    """
    parameters = {key: value for key, value in parameters.items() if value is not None}
    kind = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    kind = _SAME_KIND.get(kind, kind)
    theta = parameters.pop("rope_theta", None) or config.get("rope_theta") or base
    fraction = parameters.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    position: dict[str, Any] = {"kind": "rotary", "base": float(theta), "fraction": float(fraction)}
    if kind == "default":
        return position
    if kind not in _ENTRIES:
        raise ValueError(f"config.json asks for rotary scaling {kind!r}; implemented are {sorted(_ENTRIES)}.")
    entries = _ENTRIES[kind]
    unknown = sorted(set(parameters) - set(entries) - {"original_max_position_embeddings", "finetuned"})
    if unknown:
        raise ValueError(f"config.json gives rotary scaling {kind!r} the entries {unknown}, which are not implemented.")
    scaling = {"kind": kind} | {entries[key]: value for key, value in parameters.items() if key in entries}
    if kind != "linear":  # what lies outside of the dict goes before what lies in it
        original = None if kind == "dynamic" else config.get("original_max_position_embeddings")
        inside = scaling.get("original_max_length")
        scaling["original_max_length"] = original or inside or config["max_position_embeddings"]
    if kind == "longrope" and "factor" not in scaling:
        scaling["factor"] = config["max_position_embeddings"] / scaling["original_max_length"]
    return {**position, "scaling": scaling}


def write_rope(position: Any) -> dict[str, Any]:
    """The inverse of `read_rope`: one "rope_parameters".

    Raises:
        ValueError: for other positions than rotary ones.
    """
    position = position if isinstance(position, dict) else {"kind": position}
    if position.get("kind") != "rotary":
        raise ValueError(f"The family's positions are rotary; this model's are {position}.")
    scaling = position.get("scaling")
    written: dict[str, Any] = {"rope_theta": position.get("base", 10_000.0), "rope_type": "default"}
    if position.get("fraction", 1.0) != 1.0:
        written["partial_rotary_factor"] = position["fraction"]
    if scaling is None:
        return written
    theirs = {ours: key for key, ours in _ENTRIES[scaling["kind"]].items()}
    return written | {"rope_type": scaling["kind"]} | {theirs[k]: v for k, v in scaling.items() if k in theirs}


def rope(base: float = 10_000.0, fraction: float = 1.0, names: Mapping[str, str] | None = None, **fixed: Any) -> Rule:
    """The rule of families with one rotary embedding.

    Args:
        base, fraction: What config.json means where it says nothing.
        names: Keys that older files of the family have for "rope_theta" and "partial_rotary_factor", to these.
        fixed: Options of `RotaryEmbedding` that the family fixes, such as interleaved=True.
    """
    older = dict(names or {})

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        config = {**config, **{key: config[name] for name, key in older.items() if name in config}}
        parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return {
            "position": {
                **read_rope(
                    {"partial_rotary_factor": config.get("partial_rotary_factor") or fraction, **parameters},
                    config,
                    base,
                ),
                **fixed,
            }
        }

    def write(config: TransformerConfig) -> dict[str, Any]:
        written = write_rope(config.position)
        scaling = {key: value for key, value in written.items() if key not in ("rope_theta", "partial_rotary_factor")}
        # The newer name and the older ones, for readers of either age.
        flat = {"partial_rotary_factor": 1.0} | {key: written[key] for key in written if key not in scaling}
        return {
            "rope_parameters": written,
            "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
            **flat,
            **{name: flat[key] for name, key in older.items()},
            **{key: value for key, value in scaling.items() if key == "original_max_position_embeddings"},
        }

    return Rule((*KEYS, *older), read, write)
