"""Hugging Face directories: config.json, safetensors and tokenizer.json, in and out."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tfm import architectures, models
from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.checkpoints import sentence_transformers, tensors, writing
from keras_tfm.checkpoints.checkpoint import Checkpoint, Plan
from keras_tfm.checkpoints.matching import Pair, check_not_quantized, pairs, some
from keras_tfm.data import accepted
from keras_tfm.layers.base import argument_names
from keras_tfm.models import Backbone, TextEmbedder
from keras_tfm.models.task import Task

logger = logging.getLogger("keras_tfm")
LONG = 1 << 30  # bytes from which on reading shows its progress


def read(
    cls: type,
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: Any = None,
    tokenizer: Any = "auto",
    name: str | None = None,
    **options: Any,
) -> Any:
    """`cls.from_pretrained`: see `keras_tfm.models.pretrained.Pretrained`."""
    automatic = isinstance(tokenizer, str) and tokenizer == "auto"
    if not automatic and tokenizer is not None:
        if "tokenizer" not in argument_names(cls):
            raise ValueError(f"A {cls.__name__} takes no tokenizer; task models that read text take tokenizer=.")
        tokenizer = accepted.as_tokenizer(tokenizer)
    checkpoint = Checkpoint(source, revision)
    if checkpoint.unknown:
        path = checkpoint.directory / "config.json"
        warnings.warn(f"{path}: nothing is known of {checkpoint.unknown}, which had no effect.", stacklevel=3)
    max_length = None
    if issubclass(cls, TextEmbedder):
        beside = sentence_transformers.read(checkpoint.directory)
        max_length = beside.pop("max_length", None)
        options = {**beside, **options}
    plan = checkpoint.plan(cls, dtype, name, **options)
    model = plan.build()
    _fill(model, plan)
    if plan.match.new:
        logger.warning(
            "%s: these weights are not in the checkpoint and start untrained: %s.", cls.__name__, some(plan.match.new)
        )
    if plan.match.unused:
        logger.info("%s: the checkpoint's %s are not part of this model.", cls.__name__, some(plan.match.unused))
    if "tokenizer" in argument_names(cls):
        if automatic:
            _read_tokenizer(model, checkpoint.directory, max_length)
        else:
            model.tokenizer = tokenizer
    return model


def read_any(source: str | Path, **options: Any) -> Any:
    """`keras_tfm.from_pretrained`: the class is that of the head which the checkpoint has."""
    return read(task_of(Checkpoint(source, options.get("revision"))), source, **options)


def task_of(checkpoint: Checkpoint) -> type:
    """Our class for what a checkpoint is."""
    embeds = (checkpoint.directory / "modules.json").is_file()
    return getattr(models, checkpoint.task_name() or ("TextEmbedder" if embeds else "Backbone"))


def _fill(model: Any, plan: Plan) -> None:
    """Read the weights, one tensor at a time."""
    entries, found = plan.checkpoint.entries, plan.match.found
    total = sum(entries[key].end - entries[key].begin for key in found.values())
    bar = keras.utils.Progbar(total >> 20, unit_name="MiB") if total >= LONG else None
    reader = tensors.Reader(entries)
    done, strange = 0, []
    for pair in pairs(model, plan.checkpoint.architecture):
        if pair.theirs not in found:
            continue
        key = found[pair.theirs]
        array = reader[key]
        if not np.isfinite(array).all():
            strange.append(key)
        pair.read(array)
        del array
        reader.release(key)
        done += entries[key].end - entries[key].begin
        if bar is not None:
            bar.update(min(done >> 20, total >> 20))
    if strange:
        warnings.warn(f"{plan.checkpoint.directory} has values that are not finite in {some(strange)}.", stacklevel=4)


def _read_tokenizer(model: Task, directory: Path, max_length: int | None) -> None:
    """Give the model the directory's tokenizer, also one with more tokens than it, as some published ones have."""
    tokenizer = accepted.from_directory(directory, max_length)
    rows = model.backbone.config.vocabulary_size
    if tokenizer is not None and rows is not None and tokenizer.vocabulary_size > rows:
        logger.warning(
            "%s has a tokenizer of %d tokens for a model of %d: texts that need the last ones will fail.",
            directory,
            tokenizer.vocabulary_size,
            rows,
        )
        object.__setattr__(model, "tokenizer", tokenizer)  # past the check that assigning makes
    else:
        model.tokenizer = tokenizer


def write(model: Any, directory: str | Path, *, max_shard_size: int | str = "5GB") -> None:
    """`model.save_pretrained`: see `keras_tfm.models.pretrained.Pretrained`."""
    limit = writing.byte_count(max_shard_size)
    backbone = model if isinstance(model, Backbone) else model.backbone
    architecture, config = architecture_of(backbone)
    head: Head | None = None
    if backbone is not model and not isinstance(model, TextEmbedder):
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
        for part in architecture.optional:
            needed, given = architecture.options[part], getattr(backbone.config, part)
            if part not in head.changes and given != needed:
                raise ValueError(f"The format of {head.name} cannot express {part}={given!r}; only {needed!r}.")
    config["architectures"] = [architecture.base if head is None else head.name]
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is not None and tokenizer.special_id("pad") is not None:
        config["pad_token_id"] = tokenizer.special_id("pad")
    if getattr(model, "num_classes", None):
        labels = getattr(model, "labels", None) or [f"LABEL_{i}" for i in range(model.num_classes)]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    written = list(_written(model, architecture, head))
    _check_complete(model, architecture)
    dtypes = {keras.backend.standardize_dtype(pair.variables[0].dtype) for _, pair in written}
    config["dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    fixed = {} if architecture.fixed is None else architecture.fixed(backbone.config)
    fixed = {architecture.prefix_with(head) + key: array for key, array in fixed.items()}
    sizes = {key: pair.byte_count() for key, pair in written} | {key: array.nbytes for key, array in fixed.items()}
    arrays = itertools.chain(((key, pair.write()) for key, pair in written), fixed.items())

    def write_files() -> None:
        with writing.replacing(Path(directory)) as scratch:
            writing.write_tensors(scratch, sizes, arrays, limit)
            if tokenizer is not None:
                tokenizer.save(scratch)
            if isinstance(model, TextEmbedder):
                sentence_transformers.write(scratch, model)
            text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
            (scratch / "config.json").write_text(text + "\n", "utf-8")

    writing.by_first(model.weights, arrays, write_files)


def _written(model: Any, architecture: Architecture, head: Head | None) -> Iterator[tuple[str, Pair]]:
    """What goes into the file, by name."""
    prefix, kind = architecture.prefix_with(head), type(model).__name__
    for pair in pairs(model, architecture):
        if head is None and pair.in_head:
            logger.info("%s: %s belongs to a language model's head, so it is not written.", kind, pair.ours)
        elif head is not None and head.changes.get(pair.part) is False:
            logger.info("%s: %s is no part of a %s, so it is not written.", kind, pair.ours, head.name)
        else:
            yield (pair.theirs if pair.in_head else prefix + pair.theirs), pair


def _check_complete(model: Any, architecture: Architecture) -> None:
    """Raise ValueError for weights that the format has no place for: none is dropped unsaid."""
    placed: set[int] = set()
    for pair in pairs(model, architecture):
        check_not_quantized(pair)
        placed |= {id(variable) for variable in pair.whole()}
    passing = ("seed_generator", "lora_")  # random states; updates, which are merged into their kernels
    left = [v.path for v in model.weights if id(v) not in placed and not any(word in v.path for word in passing)]
    if left:
        raise ValueError(f"The format of {architecture.model_type!r} has no place for {some(left)}.")


def architecture_of(backbone: Backbone) -> tuple[Architecture, dict[str, Any]]:
    """The family that can express this backbone, and its config.json."""
    if backbone.config.family is not None:
        architecture = architectures.find(backbone.config.family)
        return architecture, architecture.write_config(backbone.config)
    reasons = []
    for architecture in architectures.by_preference():
        try:
            return architecture, architecture.write_config(backbone.config)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reasons.append(f"{architecture.model_type}: {error}")
    raise ValueError(f"No known family can express this model. {' '.join(reasons)}")
