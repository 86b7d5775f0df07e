"""Where a checkpoint comes from: a directory, or an id on the Hugging Face hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

FILES = (
    *("*.json", "*.safetensors", "*/config.json", "*.txt", "*.jinja"),
    *("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model"),
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve(source: str | Path, revision: str | None = None) -> Path:
    """The directory of a checkpoint, downloaded into the hub's cache first if `source` is an id.

    Args:
        source: A directory, or a hub id such as "org/name".
        revision: Branch, tag or commit, of an id.

    Raises:
        FileNotFoundError: for what is neither; for an id that cannot be had.
        ValueError: for a revision of a directory.
        ImportError: for an id without `huggingface_hub`; names the extra.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} belongs to a hub id; {directory} is a directory.")
        return directory
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise FileNotFoundError(
            f"There is no directory {directory}. It should hold config.json, model.safetensors and tokenizer.json."
        )
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ImportError(
            f"There is no directory {source!r}; to look for it on the Hugging Face hub: pip install 'keras_tfm[hub]'"
        ) from error
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"There is no directory {source!r}, and the Hugging Face hub (or its cache, offline) did not give it: {error}"
        ) from error


def read_config(directory: Path) -> dict[str, Any]:
    """config.json.

    Raises:
        FileNotFoundError: without one.
        ValueError: for what is not a JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {directory} is no Hugging Face model directory.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(config).__name__}.")
    return config


def read_generation(directory: Path) -> dict[str, Any]:
    """generation_config.json; nothing without one, or with one that is not readable."""
    try:
        config = json.loads((directory / "generation_config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
