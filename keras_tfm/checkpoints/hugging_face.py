"""Hugging Face directories: config.json, model.safetensors, tokenizer.json, in and out."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import keras_tfm
from keras_tfm import architectures
from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.checkpoints import tensors
from keras_tfm.checkpoints.matching import match, pairs, some
from keras_tfm.config import check_fields
from keras_tfm.data.tokenizer import Tokenizer
from keras_tfm.models import Backbone
from keras_tfm.models.task import Task
from keras_tfm.ops.backend import without_allocating

logger = logging.getLogger("keras_tfm")
WEIGHTS = "model.safetensors"


def read(
    cls: type,
    source: str | Path,
    *,
    dtype: Any = None,
    tokenizer: Any = "auto",
    name: str | None = None,
    **options: Any,
) -> Any:
    """`cls.from_pretrained`: see `keras_tfm.models.pretrained.Pretrained`."""
    directory = Path(source)
    config = _read_config(directory)
    architecture = architectures.find(config.get("model_type"))
    entries = tensors.index(_weights_file(directory))
    ours, unknown = architecture.read_config(config)
    if unknown:
        warnings.warn(f"{directory / 'config.json'}: nothing is known of {unknown}, which had no effect.", stacklevel=3)
    changes = {key: options.pop(key) for key in list(options) if key in ours.to_dict()}
    if "dropout" in changes:
        changes.setdefault("attention_dropout", None)
    head = architecture.heads.get(cls.__name__)
    changes = {**(head.changes if head is not None else {}), **changes}
    config_of_backbone = ours.replace(**changes)
    build = _builder(cls, architecture, config, config_of_backbone, options, name, dtype)

    # The model without its weights tells which tensors it wants, in which shapes, before anything is allocated.
    with without_allocating():
        wanted = list(pairs(build(), architecture))
    prefix = architecture.prefix_in(entries)
    found, new = match(wanted, entries, prefix, architecture, directory)
    model = build()
    reader = tensors.Reader(entries)
    for pair in pairs(model, architecture):
        if pair.theirs in found:
            pair.read(reader[found[pair.theirs]])
    used = set(found.values())
    unused = sorted(key for key in entries if key not in used and not architecture.ignores(key.removeprefix(prefix)))
    if new:
        logger.warning("%s: these weights are not in the checkpoint and start untrained: %s.", cls.__name__, some(new))
    if unused:
        logger.info("%s: the checkpoint's %s are not part of this model.", cls.__name__, some(unused))
    if issubclass(cls, Task):
        model.tokenizer = (
            _read_tokenizer(directory) if isinstance(tokenizer, str) and tokenizer == "auto" else tokenizer
        )
    return model


def _read_config(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise FileNotFoundError(
            f"There is no directory {directory}. It should hold config.json, {WEIGHTS} and tokenizer.json."
        )
    path = directory / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {directory} is no Hugging Face model directory.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(config).__name__}.")
    return config


def _weights_file(directory: Path) -> Path:
    path = directory / WEIGHTS
    if path.is_file():
        return path
    if (directory / "pytorch_model.bin").is_file():
        raise ValueError(
            f"{directory} has pytorch_model.bin only, a pickle, "
            "which can run code when opened and is not read here. Convert it: "
            "python -c \"from transformers import AutoModel; AutoModel.from_pretrained('DIR').save_pretrained('DIR')\""
        )
    raise FileNotFoundError(f"{path} is missing.")


def _read_tokenizer(directory: Path) -> Tokenizer | None:
    return Tokenizer.from_directory(directory) if (directory / "tokenizer.json").is_file() else None


def _builder(
    cls,
    architecture: Architecture,
    config: dict[str, Any],
    ours: Any,
    options: dict[str, Any],
    name: str | None,
    dtype: Any,
):
    """A function that builds the model, the head's arguments taken from the checkpoint where the caller gave none."""
    backbone_name = f"{architecture.model_type}_backbone"
    if issubclass(cls, Backbone):
        check_fields(options)
        return lambda: Backbone(ours, name=name or backbone_name, dtype=dtype)
    if cls.__name__ not in architecture.heads:
        raise ValueError(
            f"A {architecture.model_type!r} checkpoint makes no {cls.__name__}; it makes {sorted(architecture.heads)}."
        )
    head = architecture.heads[cls.__name__]
    labels = config.get("id2label")
    known = config.get("architectures") or []
    if (
        head.name in known
        and isinstance(labels, dict)
        and "num_classes" not in options
        and cls.__name__ in ("TextClassifier", "TokenClassifier")
    ):
        options["num_classes"] = len(labels)
        if cls.__name__ == "TextClassifier":
            options.setdefault("labels", [labels[key] for key in sorted(labels, key=int)])
    arguments = {**head.arguments(ours), **options}

    def build():
        return cls(Backbone(ours, name=backbone_name, dtype=dtype), name=name, **arguments)

    return build


def write(model: Any, directory: str | Path) -> None:
    """`model.save_pretrained`: see `keras_tfm.models.pretrained.Pretrained`."""
    from safetensors.numpy import save_file

    directory = Path(directory)
    backbone = model if isinstance(model, Backbone) else model.backbone
    architecture, config = _architecture_of(backbone)
    head: Head | None = None
    if backbone is not model:
        if type(model).__name__ not in architecture.heads:
            raise ValueError(
                f"The format of {architecture.model_type!r} has no {type(model).__name__}; "
                f"it has {sorted(architecture.heads)}."
            )
        head = architecture.heads[type(model).__name__]
        for option, value in head.arguments(backbone.config).items():
            given = model.get_config()[option]
            if given != value:
                raise ValueError(f"The format of {head.name} cannot express {option}={given!r}; only {value!r}.")
    config["architectures"] = [architecture.base if head is None else head.name]
    config["dtype"] = "float32"
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None and tokenizer.special_id("pad") is not None:
        config["pad_token_id"] = tokenizer.special_id("pad")
    if getattr(model, "num_classes", None):
        labels = getattr(model, "labels", None) or [f"LABEL_{i}" for i in range(model.num_classes)]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    prefix = architecture.prefix_with(head)
    arrays = {}
    for pair in pairs(model, architecture):
        if head is not None and head.changes.get(pair.part) is False:
            logger.info("%s: %s is no part of a %s, so it is not written.", type(model).__name__, pair.ours, head.name)
            continue
        if backbone is model and pair.in_head:
            logger.info("Backbone: %s belongs to a language model's head, so it is not written.", pair.ours)
            continue
        key = pair.theirs if pair.in_head else prefix + pair.theirs
        arrays[key] = np.ascontiguousarray(pair.write().astype(np.float32))

    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        save_file(arrays, Path(scratch) / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save(scratch)
        (Path(scratch) / "config.json").write_text(
            json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
        )
        for path in sorted(Path(scratch).iterdir()):  # each file appears whole, the user's others stay
            os.replace(path, directory / path.name)


def _architecture_of(backbone: Backbone) -> tuple[Architecture, dict[str, Any]]:
    """The family that can express this backbone, and its config.json."""
    if backbone.config.family is not None:
        architecture = architectures.find(backbone.config.family)
        return architecture, architecture.write_config(backbone.config)
    reasons = []
    for architecture in architectures.FAMILIES.values():
        try:
            return architecture, architecture.write_config(backbone.config)
        except (ValueError, TypeError) as error:
            reasons.append(f"{architecture.model_type}: {error}")
    raise ValueError(f"No known family can express this model (keras_tfm {keras_tfm.__version__}). {' '.join(reasons)}")
