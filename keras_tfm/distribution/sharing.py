"""How batches are shared by the devices of a mesh, or by the replicas of a strategy."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_tfm.distribution.strategies import replicas_of
from keras_tfm.ops import processes
from keras_tfm.ops.backend import NAME

IGNORED = -100


def shares() -> int:
    """How many parts the distribution, the strategy or the connected processes make of a batch; 1 without any."""
    if NAME == "tensorflow":
        return replicas_of()
    if NAME == "torch":
        return processes.count()
    distribution = keras.distribution.distribution()
    if distribution is None or distribution.batch_dim_name is None:
        return 1
    mesh = distribution.device_mesh
    return int(mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)])


def local_rows(rows: int) -> np.ndarray:
    """Which of a batch's rows the devices of this process have, of several on JAX or torch; all of them for one."""
    if NAME == "torch":
        return np.array_split(np.arange(rows), processes.count())[processes.index()]
    import jax

    if jax.process_count() == 1:
        return np.arange(rows)
    distribution = keras.distribution.distribution()
    axes = jax.sharding.PartitionSpec(distribution.batch_dim_name)
    sharding = jax.sharding.NamedSharding(distribution.device_mesh.backend_mesh, axes)
    placed: Any = sharding.addressable_devices_indices_map((rows,))
    parts = {index[0].indices(rows)[:2] for index in placed.values()}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def several_hosts() -> bool:
    """Whether other processes share the batches, on JAX."""
    return NAME == "jax" and processes.count() > 1


def placed(batch: Any) -> Any:
    """A batch, which every process has as a whole, on JAX over the devices that share it."""
    import jax

    distribution: Any = keras.distribution.distribution()

    def over_devices(array: np.ndarray) -> Any:
        sharding = distribution.get_data_layout(array.shape).backend_layout
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return keras.tree.map_structure(over_devices, batch)


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


def check_arrays(x: Any, batch_size: int, validation_split: float = 0.0) -> None:
    """Raise ValueError for arrays whose batches the devices, or hosts, cannot share; other data is let pass."""
    given = isinstance(x, (dict, list, tuple, np.ndarray)) or keras.ops.is_tensor(x)
    arrays = keras.tree.flatten(x) if given else []
    if not arrays or not all(hasattr(array, "shape") for array in arrays):
        return
    if processes.count() > 1:
        raise ValueError(
            "On several hosts, arrays are not shared: Keras would take those of each host for other rows. Give raw rows "
            "(strings, or examples), of which each host takes its part, or a PyDataset, or the like, of this host's rows."
        )
    if shares() > 1:
        rows = len(arrays[0])
        remedy = ", or raw rows (strings, or examples), whose last batch is filled up with rows that count for nothing"
        trained = int(rows * (1 - validation_split))
        check_rows(trained, batch_size, remedy)
        check_rows(rows - trained, batch_size, remedy)


def batches_of(x: Any, batch_size: int) -> Iterator[Any]:
    """Arrays of a tree cut into batches."""
    for start in range(0, len(keras.tree.flatten(x)[0]), batch_size):
        yield keras.tree.map_structure(lambda array, start=start: np.asarray(array[start : start + batch_size]), x)


def check_predictable(x: Any, options: dict[str, Any]) -> None:
    """Raise ValueError for what `predict` takes on one host alone."""
    arrays = keras.tree.flatten(x) if isinstance(x, (dict, list, tuple, np.ndarray)) or keras.ops.is_tensor(x) else []
    if not arrays or not all(getattr(array, "shape", ()) for array in arrays):
        raise ValueError(
            f"On several hosts, predict takes raw rows (strings, or examples) or arrays, the same in each; got "
            f"{type(x).__name__}. Predict batch after batch, or on one host."
        )
    refused = sorted(name for name, value in options.items() if name != "verbose" and value is not None)
    if refused:
        raise ValueError(f"On several hosts, predict takes no {', '.join(refused)}: give the rows alone.")


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


def checked(data: Any) -> Any:
    """A dataset that raises ValueError, or TensorFlow's InvalidArgumentError, at a batch that replicas cannot share.

    Keras would give some replicas more rows than others and yet weigh all replicas alike. Other backends and other data
    than `tf.data`, `PyDataset` and iterators are returned as they are: JAX refuses such batches itself.
    """
    parts = shares()
    if NAME != "tensorflow" or parts == 1:
        return data
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        return data.map(functools.partial(_checked_tensors, parts), num_parallel_calls=tf.data.AUTOTUNE)
    if isinstance(data, keras.utils.PyDataset):
        return _Checked(data, parts)
    if hasattr(data, "__next__"):
        return _checked_batches(data, parts)
    return data


def _uneven(parts: int, rows: Any = None) -> str:
    got = "a batch" if rows is None else f"a batch of {rows} rows"
    return (
        f"{parts} replicas cannot share {got} evenly: take a batch size that {parts} divides, and drop_remainder=True for "
        "the last one; or raw rows (strings, or examples), whose last batch is filled up with rows that count for nothing."
    )


def _checked_tensors(parts: int, *batch: Any) -> Any:
    import tensorflow as tf

    first = keras.tree.flatten(batch)[0]
    if first.shape.rank and first.shape[0] is not None:
        if first.shape[0] % parts:
            raise ValueError(_uneven(parts, first.shape[0]))
        return batch if len(batch) > 1 else batch[0]
    with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(first)[0] % parts, 0, _uneven(parts))]):
        batch = tf.nest.map_structure(tf.identity, batch)
    return batch if len(batch) > 1 else batch[0]


def _check_batch(batch: Any, parts: int) -> Any:
    rows = len(keras.tree.flatten(batch)[0])
    if rows % parts:
        raise ValueError(_uneven(parts, rows))
    return batch


def _checked_batches(batches: Any, parts: int) -> Any:
    for batch in batches:
        yield _check_batch(batch, parts)


class _Checked(keras.utils.PyDataset):
    """Another `PyDataset`, whose batches so many replicas can share."""

    def __init__(self, dataset: Any, parts: int):
        workers = {name: getattr(dataset, name) for name in ("workers", "use_multiprocessing", "max_queue_size")}
        super().__init__(**workers)
        self.dataset, self.parts = dataset, parts

    def __len__(self):
        return len(self.dataset)

    @property
    def num_batches(self):
        return self.dataset.num_batches

    def __getitem__(self, index):
        return _check_batch(self.dataset[index], self.parts)

    def on_epoch_begin(self):
        self.dataset.on_epoch_begin()

    def on_epoch_end(self):
        self.dataset.on_epoch_end()
