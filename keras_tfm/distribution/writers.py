"""Callbacks where several processes train: those that write belong to the first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_tfm.ops import processes
from keras_tfm.ops.backend import NAME

KINDS = ("ModelCheckpoint", "CSVLogger", "TensorBoard", "RemoteMonitor")
HOOKS = tuple(name for name in dir(keras.callbacks.Callback) if name.startswith("on_"))


def of_this_process(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options of `fit` and `evaluate`: only the first process shows progress, and has the callbacks that write files.

    Those are Keras's `ModelCheckpoint`, `CSVLogger`, `TensorBoard` and `RemoteMonitor`, and callbacks that have a true
    attribute `of_first_process`. On JAX they see no distribution: what they make is not laid out over all hosts.

    Raises:
        ValueError: for `BackupAndRestore`, which would bring back the first process alone, and for `ModelCheckpoint` of a
            model whose weights are split over hosts.
    """
    given = options.get("callbacks")
    listed = given.callbacks if isinstance(given, keras.callbacks.CallbackList) else given
    callbacks = list(listed) if isinstance(listed, list | tuple) else [] if listed is None else [listed]
    if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in callbacks):
        raise ValueError("BackupAndRestore brings back one process of several; take keras_tfm.training.Resume.")
    if any(isinstance(callback, keras.callbacks.ModelCheckpoint) for callback in callbacks):
        for variable in model.variables:
            if not processes.has_whole(variable.value):
                raise ValueError(
                    f"ModelCheckpoint writes from one process, which has a part of {variable.path}: take "
                    "keras_tfm.training.Resume, or after fit save_pretrained in all processes."
                )
    kinds = tuple(getattr(keras.callbacks, kind) for kind in KINDS)
    kept: list[Any] = []
    for callback in callbacks:
        if not isinstance(callback, kinds) and not getattr(callback, "of_first_process", False):
            kept.append(callback)
        elif processes.index() == 0:
            kept.append(OfOneHost(callback) if NAME == "jax" else callback)
    quiet = {} if processes.index() == 0 else {"verbose": 0}
    if isinstance(given, keras.callbacks.CallbackList):
        given.callbacks[:] = kept
        return {**options, **quiet}
    return {**options, **quiet, "callbacks": kept}


class OfOneHost(keras.callbacks.Callback):
    """A callback that one of several hosts on JAX has, and that therefore sees no distribution.

    Where one is set, Keras lays each new variable out over all hosts, for which all of them would have to be there.

    Args:
        callback: The other one.
    """

    def __init__(self, callback: Any):
        super().__init__()
        self.callback = callback
        for name in HOOKS:
            hook = getattr(callback, name)
            if not getattr(hook, "_is_default", False):  # Keras waits for batches only where there are hooks for them
                setattr(self, name, _alone(hook))

    def set_params(self, params: Any) -> None:
        """As of the other."""
        super().set_params(params)
        self.callback.set_params(params)

    def set_model(self, model: Any) -> None:
        """As of the other."""
        super().set_model(model)
        with _no_distribution():
            self.callback.set_model(model)


def _alone(hook: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with _no_distribution():
            return hook(*arguments, **options)

    return call


@contextlib.contextmanager
def _no_distribution() -> Iterator[None]:
    before = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(before)
