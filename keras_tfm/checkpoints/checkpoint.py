"""A checkpoint directory, opened: its family, its sizes, its tensors' names and shapes. No weight is read yet."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_tfm import architectures
from keras_tfm.architectures.architecture import Head
from keras_tfm.checkpoints import mxfp4, tensors
from keras_tfm.checkpoints import source as sources
from keras_tfm.checkpoints.matching import Match, item_size, match, pairs
from keras_tfm.config import TransformerConfig, check_fields
from keras_tfm.layers.base import argument_names
from keras_tfm.models import Backbone, TextEmbedder
from keras_tfm.ops.backend import without_allocating


class Checkpoint:
    """What a directory holds, checked as far as that goes without weights.

    Args:
        source: A directory, or an id on the Hugging Face hub.
        revision: Branch, tag or commit, of an id.

    Attributes:
        directory: Where the files are.
        config_json: config.json as it is.
        architecture: The family.
        config: The model as a `TransformerConfig`.
        unknown: Keys of config.json that nothing is known of.
        entries: The tensors.
        prefix: What precedes the backbone's tensor names.

    Raises:
        FileNotFoundError, ValueError: as `source.resolve`, `tensors.directory_index` and `Architecture.read_config` say;
            and for sizes in config.json that the tensors cannot have.
    """

    def __init__(self, source: str | Path, revision: str | None = None):
        self.directory = sources.resolve(source, revision)
        self.config_json = sources.read_config(self.directory)
        model_type = self.config_json.get("model_type")
        self.architecture = architectures.find(model_type if isinstance(model_type, str) else None)
        self.entries = self._unpacked(tensors.directory_index(self.directory))
        try:
            self.config, self.unknown = self.architecture.read_config(self.config_json)
        except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
            raise ValueError(f"{self.directory / 'config.json'} is damaged: {error!r}.") from error
        self.config = _with_ends(self.config, sources.read_generation(self.directory))
        self.prefix = self.architecture.prefix_in(self.entries)
        self._check_sizes()
        self._merge_copies()

    def _unpacked(self, entries: dict[str, tensors.Entry]) -> dict[str, tensors.Entry]:
        """The tensors as those of a model that is not quantized.

        Raises:
            ValueError: if they are quantized in a way that is not read.
        """
        quantization = self.config_json.pop("quantization_config", None)  # what is read from here is not quantized
        if quantization is None:
            return entries
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method != "mxfp4":
            raise ValueError(
                f"{self.directory} is quantized by {method!r}; only 'mxfp4' is read. Take the files of the model as it "
                "was before, and call `quantize` on what they give."
            )
        return mxfp4.merge(entries)

    def _check_sizes(self) -> None:
        """Sizes that no tensor reaches are a mistake, or an attempt to make us allocate: nothing is built for them."""
        layers = self.config.num_layers // (
            self.config.num_layers // (self.config.layer_groups or self.config.num_layers)
        )
        widest = max((max(entry.shape, default=1) for entry in self.entries.values()), default=0)
        sizes = {name: getattr(self.config, name) for name in ("vocabulary_size", "hidden_dim", "intermediate_dim")}
        sizes["num_heads"] = self.config.num_heads
        wrong = {name: size for name, size in sizes.items() if size is not None and size > widest}
        if max(layers, self.config.num_decoder_layers or 0) > len(self.entries):
            wrong["num_layers"] = layers
        if wrong:
            raise ValueError(
                f"{self.directory} disagrees with its own config.json, which implies {wrong}: it has "
                f"{len(self.entries)} tensors, and none with a dimension above {widest}."
            )

    def _merge_copies(self) -> None:
        """Let one tensor stay of those that a file has under several names.

        Files of tied models may name the table by its head only, or hold it twice. A head's table of other values is its
        own, whatever config.json says: that is how `transformers` reads it too.
        """
        for name, copies in self.architecture.copies.items():
            for copy in copies:
                if not self._merge(self.prefix + name, self.prefix + copy):
                    raise ValueError(
                        f"{self.directory}: {self.prefix + name} and {self.prefix + copy} differ; "
                        f"a {self.architecture.model_type!r} model has one tensor for both."
                    )
        if self.config.tie_embeddings and "token_embedding" in self.architecture.output:
            (table, (tensor,)), (head, _) = (
                weights["token_embedding"]
                for weights in (self.architecture.weights_of(self.config), self.architecture.output)
            )
            if not self._merge(f"{self.prefix}{table}.{tensor.theirs}", f"{head}.{tensor.theirs}"):
                self.config = self.config.replace(tie_embeddings=False)

    def _merge(self, name: str, copy: str) -> bool:
        """Forget `copy` if it equals `name` or stands in its place; False if both are there and differ."""
        if copy not in self.entries or name == copy:
            return True
        if name not in self.entries:
            self.entries[name] = self.entries.pop(copy)
            return True
        reader = tensors.Reader(self.entries)
        equal = np.array_equal(reader[name], reader[copy])
        for key in (name, copy):
            reader.release(key)
        if equal:
            del self.entries[copy]
        return equal

    # What a class makes of it ------------------------------------------------------------------------------------------

    def plan(self, cls: type, dtype: Any = None, name: str | None = None, **options: Any) -> Plan:
        """How `cls` would be built and filled from here, with fields of the config or arguments of the head changed.

        Raises:
            ValueError: for a head that the family does not have, for what `matching.match` finds wrong, and for a model
                that this machine has no memory for.
        """
        fields = self.config.to_dict()
        changes = {key: options.pop(key) for key in list(options) if key in fields}
        if "dropout" in changes:
            changes.setdefault("attention_dropout", None)
            if self.config.activation_dropout == self.config.dropout > 0:  # T5 has one rate for all
                changes.setdefault("activation_dropout", changes["dropout"])
        head = None
        if not issubclass(cls, Backbone):
            head = self._head(cls)
            changes = {**head.changes, **changes}
        return Plan(self, cls, head, self.config.replace(**changes), options, dtype, name)

    def _head(self, cls: type) -> Head:
        heads = self.architecture.heads
        if issubclass(cls, TextEmbedder):  # no weights of its own: any family's bare model
            return Head(self.architecture.base, prefix="")
        if cls.__name__ not in heads:
            raise ValueError(
                f"A {self.architecture.model_type!r} checkpoint makes no {cls.__name__}; it makes {sorted(heads)}."
            )
        return heads[cls.__name__]

    def task_name(self) -> str | None:
        """Our class for the head that config.json names; None for the bare model."""
        named = self.config_json.get("architectures")
        named = named if isinstance(named, list) else []
        return next((task for task, head in self.architecture.heads.items() if head.name in named), None)

    def dtype(self) -> str | None:
        """What all its weights are stored as, such as "bfloat16"; None if they differ or are no floats."""
        names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
        needed = (
            e for name, e in self.entries.items() if not self.architecture.ignores(name.removeprefix(self.prefix))
        )
        found = {names.get(entry.dtype) for entry in needed}
        return found.pop() if len(found) == 1 else None

    def labels(self) -> list[str] | None:
        """Names of the classes, in order, where config.json gives them."""
        named = self.config_json.get("id2label")
        if not isinstance(named, dict):
            return None
        try:
            return [str(named[key]) for key in sorted(named, key=int)]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.directory / 'config.json'} has a damaged id2label: {error}.") from error


class Plan:
    """A model to be built, and which tensor fills which of its variables.

    Attributes:
        match: Tensors found, and variables that start untrained.
        parameters: Of the model.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        cls: Any,
        head: Head | None,
        config: TransformerConfig,
        options: dict[str, Any],
        dtype: Any,
        name: str | None,
    ):
        self.checkpoint, self.cls, self.config, self.dtype, self.name = checkpoint, cls, config, dtype, name
        self.options = dict(options)
        if head is None:
            check_fields(options)
        else:
            known = checkpoint.task_name() == cls.__name__
            classifies = "num_classes" in argument_names(cls)
            labels = checkpoint.labels() if known and classifies else None
            if labels is not None and "num_classes" not in options:
                self.options["num_classes"] = len(labels)
                if "labels" in argument_names(cls):
                    self.options.setdefault("labels", labels)
            self.options = {**head.arguments(config), **self.options}
        # The model without its weights tells which tensors it wants, in which shapes, before anything is allocated.
        with without_allocating():
            model = self.build()
            wanted = list(pairs(model, checkpoint.architecture))
        self.match: Match = match(
            wanted, checkpoint.entries, checkpoint.prefix, checkpoint.architecture, checkpoint.directory
        )
        self.parameters = sum(math.prod(variable.shape) for variable in model.weights)
        self._check_memory(model)

    def build(self) -> Any:
        """The model, its weights not yet read."""
        backbone_name = f"{self.checkpoint.architecture.model_type}_backbone"
        if issubclass(self.cls, Backbone):
            return self.cls(self.config, name=self.name or backbone_name, dtype=self.dtype)
        backbone = Backbone(self.config, name=backbone_name, dtype=self.dtype)
        return self.cls(backbone, name=self.name, **self.options)

    def _check_memory(self, model: Any) -> None:
        needed = sum(math.prod(variable.shape) * item_size(variable) for variable in model.weights)
        there = physical_memory()
        if there is not None and needed > there:
            raise ValueError(
                f"{self.checkpoint.directory}: this model's weights take {needed / 2**30:.1f} GiB as "
                f"{model.dtype_policy.variable_dtype}; this machine has {there / 2**30:.1f} GiB. "
                "dtype='bfloat16' halves what float32 takes."
            )


def _with_ends(config: TransformerConfig, generation: dict[str, Any]) -> TransformerConfig:
    """The config with all ids that end a text: those of chat models stand in generation_config.json alone."""
    metadata = config.metadata or {}
    ends: list[int] = []
    for given in (metadata.get("eos_token_id"), generation.get("eos_token_id")):
        ends += [end for end in (given if isinstance(given, list) else [given]) if type(end) is int and end not in ends]
    if len(ends) < 2 and metadata.get("eos_token_id") is not None:
        return config
    return config.replace(metadata={**metadata, "eos_token_id": ends if len(ends) > 1 else ends[0]}) if ends else config


def physical_memory() -> int | None:
    """Bytes of this machine's memory; None where it does not say."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None
