"""How batches are shared by the devices of a mesh."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

IGNORED = -100


def shares() -> int:
    """How many parts the distribution that is set now makes of a batch; 1 without one."""
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None:
        return 1
    mesh = distribution.device_mesh
    return int(mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)])


def check_rows(rows: int, batch_size: int, remedy: str = "") -> None:
    """Raise ValueError unless the devices can share every batch of so many rows, the last one included.

    `remedy` is what can be done beside giving fewer rows.
    """
    parts = shares()
    if batch_size % parts:
        near = sorted({max(batch_size // parts, 1) * parts, (batch_size // parts + 1) * parts})
        raise ValueError(
            f"batch_size={batch_size} is to be shared by {parts} devices, which do not divide it; take "
            f"{' or '.join(map(str, near))}."
        )
    if rows % batch_size % parts:
        raise ValueError(
            f"The last batch of {rows} rows has {rows % batch_size}, which {parts} devices cannot share: give "
            f"{rows - rows % parts} rows{remedy}."
        )


def filled_up(batch: tuple[Any, ...], parts: int) -> tuple[Any, ...]:
    """A batch (inputs, labels, weights) whose rows so many devices can share.

    Rows are added that repeat the first, have labels of -100, which losses over tokens and classes leave out, and weigh
    nothing.
    """
    count = len(keras.tree.flatten(batch[0])[0])
    missing = -count % parts
    if not missing:
        return batch

    def more(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.repeat(array[:1], missing, axis=0)])

    def ignored(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.full((missing, *array.shape[1:]), IGNORED, array.dtype)])

    def nothing(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])

    fill = (more, ignored, nothing)
    return tuple(keras.tree.map_structure(fill[place], part) for place, part in enumerate(batch))
