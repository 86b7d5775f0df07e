"""The layers of a model by name, and patterns that pick some of them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Any

import keras

from keras_tfm.layers.base import suggestion
from keras_tfm.models import Backbone

# What lies between the input and the first block, of an encoder-decoder's two stacks.
_EMBEDDINGS = (
    "token_embedding",
    "patch_embedding",
    "position_embedding",
    "token_type_embedding",
    "embedding_norm",
    "embedding_projection",
)
EMBEDDINGS = (*_EMBEDDINGS, *(f"decoder_{name}" for name in _EMBEDDINGS))
_STEP = re.compile(r"([^.\[\]]+)(?:\[(\*|-?\d+|-?\d*:-?\d*(?::-?[1-9]\d*)?)\])?")


class Path(tuple):
    """Where a layer is: steps of (attribute, place in its list, length of the list); the last two None without a list."""

    def __str__(self) -> str:
        return ".".join(name if place is None else f"{name}[{place}]" for name, place, _ in self)


def named_layers(model: keras.Model) -> dict[Path, keras.layers.Layer]:
    """Every layer within a model of this library by its path, outer ones first; one that blocks share by each of them."""
    return dict(_walk(model, Path()))


def _walk(layer: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}  # torch keeps modules apart
    for name, value in attributes.items():
        if name.startswith("_"):
            continue
        many = isinstance(value, (list, tuple))
        for place, part in enumerate(value if many else [value]):
            if isinstance(part, keras.layers.Layer):
                step = (name, place, len(value)) if many else (name, None, None)
                inner = Path((*path, step))
                yield inner, part
                yield from _walk(part, inner)


def check_model(model: Any) -> Backbone:
    """The backbone of a model of this library; ValueError for any other model."""
    backbone = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise ValueError(f"model must be a keras_tfm Backbone or task model; got {type(model).__name__}.")
    return backbone


def select(model: Any, pattern: str) -> dict[Path, keras.layers.Layer]:
    """The layers that a pattern names.

    Args:
        model: A `Backbone` or a task model.
        pattern: Attribute names with dots between them, which are compared with the end of each layer's path; a name may
            have wildcards (`fnmatch`), and a place or a slice in brackets. "blocks[-1]", "query",
            "blocks[2:].attention.query", "feed_forward.*". "embeddings" are all parts before the first block, and
            "backbone" is all but the head.

    Raises:
        ValueError: for a pattern that is none, or that matches no layer with weights; names the nearest.
    """
    backbone = check_model(model)
    layers = named_layers(model)
    if not isinstance(pattern, str) or not all(_STEP.fullmatch(step) for step in pattern.split(".")):
        raise ValueError(
            f"A pattern is attribute names such as 'head', 'blocks[:6]' or 'blocks[-1].attention.query'; got {pattern!r}."
        )
    if pattern == "backbone":
        found = {path: layer for path, layer in layers.items() if layer is backbone}
        if backbone is model:
            found = {path: layer for path, layer in layers.items() if len(path) == 1}
    elif pattern == "embeddings":
        found = {path: layer for path, layer in layers.items() if path[-1][0] in EMBEDDINGS}
    else:
        found = {path: layer for path, layer in layers.items() if _matches(pattern.split("."), path)}
    found = {path: layer for path, layer in found.items() if layer.weights}
    if not found:
        known = dict.fromkeys(["embeddings", "backbone"])
        for path, layer in layers.items():
            if layer.weights:
                known |= {path[-1][0]: None, re.sub(r"\[\d+\]", "", str(path)): None, str(path): None}
        hint = suggestion(pattern, known)
        raise ValueError(f"No layer with weights of {model.name!r} matches {pattern!r}.{hint}")
    return found


def _matches(pattern: list[str], path: Path) -> bool:
    if len(pattern) > len(path):
        return False
    return all(_same(step, *place) for step, place in zip(pattern, path[len(path) - len(pattern) :], strict=True))


def _same(step: str, name: str, place: int | None, length: int | None) -> bool:
    match = _STEP.fullmatch(step)
    assert match is not None, "checked before"
    wanted, index = match.groups()
    if not fnmatch.fnmatchcase(name, wanted):
        return False
    if index is None:
        return True
    if place is None or length is None:
        return False
    if index == "*":
        return True
    if ":" in index:
        return place in range(length)[slice(*(int(part) if part else None for part in index.split(":")))]
    return place == int(index) % length if -length <= int(index) < length else False


def forget_compiled(model: Any) -> None:
    """Let a model's compiled functions be made anew: what they compute, or what they train, has changed."""
    for part in (model, check_model(model)):
        part.train_function = part.test_function = part.predict_function = None
    if not isinstance(model, Backbone) and getattr(model, "_decoders", None) is not None:
        object.__setattr__(model, "_decoders", None)  # the programs of `generate`
