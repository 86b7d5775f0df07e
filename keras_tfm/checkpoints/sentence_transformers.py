"""What sentence-transformers keeps beside a model: modules.json, how tokens are pooled, how long texts may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_max_tokens": "max",
}
NAMES = {"mean": "mean", "cls": "first", "lasttoken": "last", "max": "max"}
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"


def read(directory: Path) -> dict[str, Any]:
    """Arguments of `TextEmbedder`, and "max_length", as far as the directory speaks of them.

    Raises:
        ValueError: for files that are damaged, and for modules or kinds of pooling that are not implemented.
    """
    path = directory / "modules.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = {"normalize": False}
    try:
        for module in json.loads(path.read_text("utf-8")):
            kind = module["type"].rpartition(".")[2]
            if kind == "Pooling":
                found["pooling"] = _pooling(json.loads((directory / module["path"] / "config.json").read_text("utf-8")))
            elif kind == "Normalize":
                found["normalize"] = True
            elif kind != "Transformer":
                raise ValueError(f"{path} asks for the module {module['type']!r}, which is not implemented.")
        limits = directory / "sentence_bert_config.json"
        if limits.is_file():
            found["max_length"] = json.loads(limits.read_text("utf-8")).get("max_seq_length")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path}, or a file that it names, is damaged: {error!r}.") from error
    return found


def _pooling(config: dict[str, Any]) -> str:
    if "pooling_mode" in config:
        chosen = [config["pooling_mode"]]
        known = NAMES
    else:
        chosen = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
        known = MODES
    if len(chosen) != 1 or chosen[0] not in known:
        raise ValueError(f"Pooling by {chosen} is not implemented; one of {sorted(known)} is.")
    return known[chosen[0]]


def write(directory: Path, model: Any) -> None:
    """The files for a `TextEmbedder`."""
    package = "sentence_transformers.models"
    modules = [("", "Transformer"), (_POOLING, "Pooling")] + ([(_NORMALIZE, "Normalize")] if model.normalize else [])
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{package}.{kind}"} for i, (path, kind) in enumerate(modules)
    ]
    width = model.backbone.config.hidden_dim
    pooling = {"word_embedding_dimension": width} | {mode: kind == model.pooling for mode, kind in MODES.items()}
    (directory / "modules.json").write_text(json.dumps(listed, indent=2) + "\n", "utf-8")
    (directory / _POOLING).mkdir()
    (directory / _POOLING / "config.json").write_text(json.dumps(pooling, indent=2) + "\n", "utf-8")
    if model.normalize:
        (directory / _NORMALIZE).mkdir()
    if model.tokenizer is not None:
        limits = {"max_seq_length": model.tokenizer.max_length, "do_lower_case": False}
        (directory / "sentence_bert_config.json").write_text(json.dumps(limits, indent=2) + "\n", "utf-8")
