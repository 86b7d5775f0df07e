"""Callbacks that must know what `fit` trains on before it begins."""

from __future__ import annotations

from typing import Any

import keras


def resumed(callbacks: Any, data: Any, steps_per_epoch: int | None) -> Any:
    """What is left to train on of data that a run was interrupted in (`keras_tfm.training.Resume`); else all of them.

    Args:
        callbacks: As given to `fit`: None, one, a list, or a `keras.callbacks.CallbackList`.
        data: As given to `fit`, or the dataset made of it.
        steps_per_epoch: As given to `fit`.
    """
    given = callbacks.callbacks if isinstance(callbacks, keras.callbacks.CallbackList) else callbacks
    for callback in given if isinstance(given, list | tuple) else [given]:
        if hasattr(callback, "ready"):
            data = callback.ready(data, steps_per_epoch)
    return data
