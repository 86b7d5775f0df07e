"""The generators of random numbers that draw while a model trains, beside those that are its variables."""

from __future__ import annotations

import random
from typing import Any

import keras
import numpy as np

from keras_tfm.ops import backend


def capture() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The states of Python's, NumPy's, Keras's and torch's generators: arrays by name, and the rest, JSON-able."""
    version, numbers, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - Keras draws from it
    arrays = {"python": np.array(numbers, np.uint64), "numpy": np.asarray(keys)}
    facts: dict[str, Any] = {"python": [version, gauss], "numpy": [name, *(_plain(value) for value in rest)]}
    generator = backend.global_seed_generator()
    if generator is not None:
        arrays["keras"] = keras.ops.convert_to_numpy(generator.state)
    if backend.NAME == "torch":
        import torch

        arrays["torch"] = torch.get_rng_state().numpy()
        for place, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()):
            arrays[f"cuda/{place}"] = state.numpy()
    return arrays, facts


def restore(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Put the generators back to what `capture` gave; those of devices that are no more are left out."""
    version, gauss = facts["python"]
    random.setstate((version, tuple(int(number) for number in arrays["python"]), gauss))
    name, *rest = facts["numpy"]
    np.random.set_state((name, arrays["numpy"], *rest))  # noqa: NPY002
    restore_drawn_by_models(arrays)


def restore_drawn_by_models(arrays: dict[str, np.ndarray]) -> None:
    """Those alone from which layers draw: Keras's and torch's."""
    if "keras" in arrays:
        backend.global_seed_generator(create=True).state.assign(arrays["keras"])
    if backend.NAME == "torch" and "torch" in arrays:
        import torch

        torch.set_rng_state(torch.from_numpy(arrays["torch"].copy()))
        for place in range(torch.cuda.device_count()):
            if f"cuda/{place}" in arrays:
                torch.cuda.set_rng_state(torch.from_numpy(arrays[f"cuda/{place}"].copy()), place)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
