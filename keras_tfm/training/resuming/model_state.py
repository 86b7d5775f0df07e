"""All that `fit` changes in a model, as arrays, and back: weights, dropout's seeds, optimizer, metrics, callbacks."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_tfm.distribution.totals import of_all_processes, own_part
from keras_tfm.ops import processes

LEFT_OUT = ("_model", "params", "validation_data")


def capture(model: Any, callbacks: Sequence[Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays by name, on the host and the caller's own, and the rest, JSON-able."""
    groups = variables_of(model)
    arrays = {f"{kind}/{place}": _on_host(v) for kind, found in groups.items() for place, v in enumerate(found)}
    if processes.is_connected():  # each of which has counted its rows
        totals = enumerate(of_all_processes(groups["metrics"]))
        arrays |= {f"metrics/{place}": keras.ops.convert_to_numpy(total) for place, total in totals}
    facts: dict[str, Any] = {
        "paths": {kind: [v.path for v in found] for kind, found in groups.items()},
        "callbacks": [],
    }
    for number, callback in enumerate(callbacks):
        plain = {}
        for name, value in vars(callback).items():
            if name in LEFT_OUT:
                continue
            if _is_plain(value):
                plain[name] = _plain(value)
            elif (path := _importable(value)) is not None:
                plain[name] = {"function": path}
            elif _is_arrays(value):
                plain[name] = {"arrays": len(value)}
                arrays |= {f"callback/{number}/{name}/{place}": np.array(array) for place, array in enumerate(value)}
        facts["callbacks"].append({"class": type(callback).__name__, "values": plain})
    return arrays, facts


def variables_of(model: Any) -> dict[str, list[Any]]:
    """A compiled model's variables: "model" (weights and seeds), "optimizer" and "metrics"."""
    metrics = [variable for metric in model.metrics for variable in metric.variables]
    known = {id(variable) for variable in metrics}
    own = [variable for variable in model.variables if id(variable) not in known]
    return {"model": own, "optimizer": list(model.optimizer.variables), "metrics": metrics}


def check(model: Any, callbacks: Sequence[Any], arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Raise ValueError if a checkpoint is not of such a model, such an optimizer and such callbacks."""
    for kind, found in variables_of(model).items():
        paths = facts["paths"][kind]
        if kind == "metrics" and len(found) < len(paths):
            continue  # they are made with the first batch
        if len(found) != len(paths):
            raise ValueError(
                f"The checkpoint is of another run: its {kind} had {len(paths)} variables, this one's has {len(found)}. "
                "Build and compile as then, or take another directory."
            )
        for place, (variable, path) in enumerate(zip(found, paths, strict=True)):
            shape = arrays[f"{kind}/{place}"].shape
            if tuple(variable.shape) != shape:
                raise ValueError(
                    f"The checkpoint is of another run: {path} had the shape {shape}, {variable.path} has "
                    f"{tuple(variable.shape)}. Build and compile as then, or take another directory."
                )
    classes = [saved["class"] for saved in facts["callbacks"]]
    now = [type(callback).__name__ for callback in callbacks]
    if classes != now:
        raise ValueError(f"The checkpoint is of a run with the callbacks {classes}; Resume was given {now}.")


def restore(model: Any, arrays: dict[str, np.ndarray], kinds: Sequence[str] = ("model", "optimizer")) -> None:
    """Give a model's variables their values back."""
    for kind in kinds:
        for place, variable in enumerate(variables_of(model)[kind]):
            value = arrays[f"{kind}/{place}"]
            variable.assign(own_part(variable, value) if kind == "metrics" else value)


def restore_callbacks(callbacks: Sequence[Any], arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Give callbacks their values back."""
    for number, (callback, saved) in enumerate(zip(callbacks, facts["callbacks"], strict=True)):
        for name, value in saved["values"].items():
            if isinstance(value, dict) and value.keys() == {"arrays"}:
                value = [arrays[f"callback/{number}/{name}/{place}"] for place in range(value["arrays"])]
            elif isinstance(value, dict) and value.keys() == {"function"}:
                module, _, function = value["function"].partition(":")
                value = getattr(importlib.import_module(module), function)
            setattr(callback, name, value)


def _on_host(variable: Any) -> np.ndarray:
    return np.array(processes.whole(variable))  # a copy: the next step may write where this one lies


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    return value is None or isinstance(value, bool | int | float | str | np.integer | np.floating)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _importable(value: Any) -> str | None:
    """Where a function is to be found, such as the comparison that `EarlyStopping` chooses."""
    module, name = getattr(value, "__module__", None), getattr(value, "__name__", None)
    if not callable(value) or not module or not name or getattr(sys.modules.get(module), name, None) is not value:
        return None
    return f"{module}:{name}"


def _is_arrays(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, np.ndarray) for part in value)
