"""What an optimizer does not decay, as data: Keras's optimizers forget it when they are saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def excluded(optimizer: Any, variables: Sequence[Any]) -> dict[str, Any] | None:
    """What `exclude_from_weight_decay` was told, as JSON-able data: a pattern of names, and paths of variables; or None.

    Args:
        optimizer: A Keras optimizer, or None.
        variables: Those of the model.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    keys = getattr(optimizer, "_exclude_from_weight_decay", None) or set()
    paths = [variable.path for variable in variables if optimizer._var_key(variable) in keys] if keys else []
    if pattern is None and not paths:
        return None
    return {"names": None if pattern is None else pattern.pattern, "paths": paths}


def exclude(optimizer: Any, variables: Sequence[Any], said: dict[str, Any] | None) -> None:
    """Tell an optimizer that is not built yet what `excluded` gave of another."""
    if said is None:
        return
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    paths = set(said["paths"])
    listed = [variable for variable in variables if variable.path in paths]
    optimizer.exclude_from_weight_decay(listed, None if said["names"] is None else [said["names"]])
