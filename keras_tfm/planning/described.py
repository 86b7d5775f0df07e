"""What a model is, from any description of it: built without its weights."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from keras_tfm import models
from keras_tfm.config import TransformerConfig
from keras_tfm.ops.backend import without_allocating

# Which task a kind of model is planned for, unless one is named: that of its pretraining.
USUAL = {"encoder": "MaskedLM", "decoder": "CausalLM", "encoder_decoder": "Seq2SeqLM"}
TASKS = tuple(name for name in models.__all__ if name[0].isupper())


@dataclass(frozen=True)
class Variable:
    """A weight or an optimizer's slot, without its values.

    Attributes:
        path, shape, dtype: The variable's.
        axes: What its dimensions mean; None where nothing is known.
        kind: "weight" or "optimizer".
        trainable: Whether gradients are taken.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...] | None
    kind: str = "weight"
    trainable: bool = True

    @property
    def bytes(self) -> int:
        """Of the whole."""
        return math.prod(self.shape) * itemsize(self.dtype)


@dataclass(frozen=True)
class Described:
    """A model without weights, and its variables.

    Attributes:
        name: As the caller called it.
        model: The Keras model; its variables have no values.
        config: Of its backbone.
        weights: All of its variables.
        slots: The optimizer's.
    """

    name: str
    model: Any
    config: TransformerConfig
    weights: tuple[Variable, ...]
    slots: tuple[Variable, ...]

    @property
    def backbone(self) -> Any:
        """The model's, or the model."""
        return getattr(self.model, "backbone", self.model)

    @property
    def tables(self) -> set[str]:
        """Paths of the tables that tokens are looked up in."""
        embedding = self.backbone.token_embedding
        table = None if embedding is None else getattr(embedding.table, "_embeddings", None)
        return set() if table is None else {table.path}

    @property
    def parameters(self) -> int:
        """As `count_params` of the model gives them."""
        return int(self.model.count_params())


def itemsize(dtype: str) -> int:
    """Bytes of an element."""
    return {"bool": 1, "int8": 1, "uint8": 1, "bfloat16": 2, "float16": 2, "int64": 8, "float64": 8}.get(dtype, 4)


def describe(
    source: Any,
    task: str | None = None,
    policy: str | None = None,
    optimizer: Any = "adamw",
    accumulation: int = 1,
) -> Described:
    """A model from its description. No weight is read or allocated.

    Args:
        source: A directory with a config.json in Hugging Face's format, or such a file; a JSON file of
            `TransformerConfig`'s fields; a .keras file; a builder's name and size, such as "gpt:small"; a
            `TransformerConfig`; or a model that is built.
        task: Our class, such as "TextClassifier". Default: the source's own, else that of pretraining.
        policy: Keras's dtype policy of a model that is described; files of models have their own.
        optimizer: A name that Keras knows, or an optimizer that is not built yet.
        accumulation: Its gradient_accumulation_steps.

    Raises:
        ValueError: for what is none of these, and a task that does not go with the model.
    """
    if task is not None and task not in TASKS:
        near = difflib.get_close_matches(str(task), TASKS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"task must be one of {list(TASKS)}; got {task!r}.{hint}")
    name = source if isinstance(source, (str, Path)) else type(source).__name__
    optimizer = _optimizer(optimizer, accumulation)
    with without_allocating():
        if isinstance(source, keras.Model):
            model = source
            if task not in (None, type(model).__name__):
                raise ValueError(
                    f"task={task!r} is for descriptions; a model of class {type(model).__name__} was given."
                )
        else:
            model = _built(source, task, policy)
        if not isinstance(getattr(model, "backbone", model), models.Backbone):
            raise ValueError(f"{name} is a {type(model).__name__}, which is no model of keras_tfm.")
    slots = _slots(model, optimizer)
    weights = tuple(_variable(variable, "weight", variable.trainable) for variable in model.variables)
    return Described(str(name), model, getattr(model, "backbone", model).config, weights, slots)


def _built(source: Any, task: str | None, policy: str | None) -> Any:
    if isinstance(source, TransformerConfig):
        return _with_task(models.Backbone(source, dtype=policy), task, {})
    if not isinstance(source, (str, Path)):
        raise ValueError(
            "config must be a directory, a file, a size such as 'gpt:small', a TransformerConfig or a model; got "
            f"{source!r}."
        )
    path = Path(source).expanduser()
    if path.is_dir() or path.name == "config.json":
        return _of_hugging_face(path if path.is_dir() else path.parent, task, policy)
    if path.suffix == ".keras":
        return _of_keras_file(path, task)
    if path.suffix == ".json":
        return _with_task(models.Backbone(_fields(path), dtype=policy), task, {})
    return _with_task(_of_builder(str(source), policy), task, {})


def _fields(path: Path) -> TransformerConfig:
    try:
        fields = json.loads(path.read_text("utf-8"))
        return TransformerConfig.from_dict(fields)
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the fields of a TransformerConfig: {error}") from error


def _of_builder(source: str, policy: str | None) -> Any:
    families: dict[str, Callable] = {
        "bert": models.bert,
        "gpt": models.gpt,
        "transformer": models.transformer,
        "vit": models.vit,
    }
    family, _, size = source.partition(":")
    if family not in families or not size:
        raise ValueError(
            f"There is no model {source!r}: give a directory with a config.json, a .keras file, a JSON file of "
            f"TransformerConfig's fields, or a size such as 'gpt:small' (families: {list(families)})."
        )
    return families[family](size, dtype=policy)


def _of_keras_file(path: Path, task: str | None) -> Any:
    try:
        with zipfile.ZipFile(path) as file:
            config = json.loads(file.read("config.json"))
        config.pop("compile_config", None)
        model = keras.saving.deserialize_keras_object(config)
    except FileNotFoundError:
        raise ValueError(f"There is no file {path}.") from None
    except (zipfile.BadZipFile, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not readable as a .keras file: {error}") from error
    if task not in (None, type(model).__name__):
        raise ValueError(f"{path} holds a {type(model).__name__}, and has no task to choose; got {task!r}.")
    return model


def _of_hugging_face(directory: Path, task: str | None, policy: str | None) -> Any:
    from keras_tfm import architectures
    from keras_tfm.checkpoints.source import read_config

    theirs = read_config(directory)
    model_type = theirs.get("model_type")
    architecture = architectures.find(model_type if isinstance(model_type, str) else None)
    try:
        config, _ = architecture.read_config(theirs)
    except (TypeError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"{directory / 'config.json'} is damaged: {error!r}.") from error
    named = theirs.get("architectures")
    own = [key for key, head in architecture.heads.items() if head.name in (named if isinstance(named, list) else [])]
    task = task or (own[0] if own else None)
    head = architecture.heads.get(task or "")
    if head is None:
        return _with_task(models.Backbone(config, dtype=policy), task, {})
    config = config.replace(**head.changes)
    return _with_task(models.Backbone(config, dtype=policy), task, head.arguments(config))


def _with_task(backbone: Any, task: str | None, options: dict[str, Any]) -> Any:
    if task is None:
        task = "ImageClassifier" if backbone.image_shape is not None else USUAL[backbone.config.kind]
    if task == "Backbone":
        return backbone
    cls = getattr(models, task)
    known = inspect.signature(cls.__init__).parameters
    options = {key: value for key, value in options.items() if key in known}
    if task == "TokenClassifier":
        options.setdefault("num_classes", 2)
    return cls(backbone, **options)


def _optimizer(given: Any, accumulation: int) -> Any:
    """A new optimizer of this name, or of the one that is given."""
    try:
        optimizer = keras.optimizers.get(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"optimizer must be a name that Keras knows, or an optimizer; got {given!r}.") from error
    config = optimizer.get_config()
    if accumulation > 1:
        config["gradient_accumulation_steps"] = accumulation
    return type(optimizer).from_config(config)


def _slots(model: Any, optimizer: Any) -> tuple[Variable, ...]:
    """The variables that the optimizer would make: its own scalars are made, the others written down.

    A slot that is made from a weight lies as that does.
    """
    found: list[Variable] = []

    def noted(shape: Any, initializer: Any = "zeros", dtype: Any = None, name: str | None = None, **_: Any) -> object:
        found.append(Variable(f"{optimizer.name}/{name}", tuple(shape), _dtype(dtype), None, "optimizer", False))
        return object()

    def noted_from(reference_variable: Any, name: str | None = None, initializer: Any = "zeros") -> object:
        like = _variable(reference_variable, "optimizer", False)
        found.append(dataclasses.replace(like, path=f"{optimizer.name}/{like.path.replace('/', '_')}_{name}"))
        return object()

    optimizer.add_variable, optimizer.add_variable_from_reference = noted, noted_from
    optimizer._var_key = id  # TensorFlow's reads values, of which there are none
    optimizer.build(model.trainable_variables)
    return (*(_variable(variable, "optimizer", False) for variable in optimizer.variables), *found)


def _dtype(dtype: Any) -> str:
    return keras.backend.standardize_dtype(dtype or keras.backend.floatx())


def _axes(variable: Any) -> tuple[str | None, ...] | None:
    from keras_tfm.distribution.known_axes import known_axes

    given = getattr(variable, "logical_axes", None)
    return given if given is not None else known_axes(variable.path, len(variable.shape))


def _variable(variable: Any, kind: str, trainable: bool) -> Variable:
    return Variable(
        variable.path, tuple(variable.shape), _dtype(variable.dtype), _axes(variable), kind, bool(trainable)
    )
