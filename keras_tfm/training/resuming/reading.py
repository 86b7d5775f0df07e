"""What is read where: a data set brought to the batch at which a run was interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import keras

from keras_tfm.distribution import agreeing
from keras_tfm.models.text_dataset import is_grain
from keras_tfm.ops.backend import NAME


class Input:
    """The training data of a run.

    Args:
        data: What `fit` is given as x, or None if that is not known.
        steps_per_epoch: What `fit` is given; with it, one pass over the data goes on from epoch to epoch.

    Raises:
        ValueError: for data whose order cannot be had again.
    """

    def __init__(self, data: Any, steps_per_epoch: int | None = None):
        self.data = data
        self.is_one_pass = hasattr(data, "__next__") or steps_per_epoch is not None
        is_dataset = isinstance(data, keras.utils.PyDataset)
        self.keeps_state = is_dataset and hasattr(data, "get_state") and hasattr(data, "set_state")
        if is_dataset and steps_per_epoch is not None:
            raise ValueError(
                "Resume cannot restore the position of a PyDataset that is read with steps_per_epoch. Leave it out, or "
                "give a generator."
            )
        changes = is_dataset and type(data).on_epoch_end is not keras.utils.PyDataset.on_epoch_end
        if changes and not self.keeps_state:
            raise ValueError(
                f"{type(data).__name__} changes at on_epoch_end, and Resume cannot restore how. Give it two methods: "
                "get_state(), of something that JSON can hold, and set_state(state)."
            )
        if not self.is_one_pass and _reshuffles(data):
            raise ValueError(
                "tf.data keeps nowhere how often it was shuffled. For Resume, shuffle with a seed and give one pass over "
                "all epochs: fit(data.shuffle(n, seed=0).repeat(), steps_per_epoch=...)."
            )
        if not (is_dataset or self.is_one_pass or is_grain(data) or _is_tf_data(data)) and _is_unseeded():
            raise ValueError(
                "The order in which TensorFlow shuffles arrays cannot be had again unless it is seeded. Begin with "
                "keras.utils.set_random_seed(...), or give Resume the data: Resume(directory, data=...)."
            )

    def state(self) -> Any:
        """Of the data, as an epoch begins; JSON-able."""
        return self.data.get_state() if self.keeps_state else None

    def described(self, model: Any) -> dict[str, Any] | None:
        """What the data must be again, JSON-able: rows of a task's, and its tokenizer; None of others."""
        if not hasattr(self.data, "described"):
            return None
        return {**self.data.described(), "tokenizer": agreeing.described(model)["tokenizer"]}

    def restore(self, state: Any, step: int) -> None:
        """Bring the data to where an epoch was, of which so many batches need not be made again."""
        if self.keeps_state:
            self.data.set_state(state)
            if hasattr(self.data, "start_at"):
                self.data.start_at(step)

    def without_first(self, count: int) -> Any:
        """The data, if they are one pass, from batch `count` on."""
        if not self.is_one_pass or not count:
            return self.data
        if _is_tf_data(self.data):
            return self.data.skip(count)
        if hasattr(self.data, "__next__"):
            return _from(self.data, count)
        if is_grain(self.data):
            return _from(iter(self.data), count)
        raise ValueError(
            f"Resume cannot restore the position of {type(self.data).__name__} that is read with steps_per_epoch. Leave it "
            "out, or give a generator."
        )


class Skipping:
    """In place of a model's train function: reads batches and leaves them, until it is there.

    Args:
        model: Whose train function it stands in for.
        count: Of the epoch's first batches.
        logs: What is given back for them.
        then: Is called with the last of them, once the next is to be trained on.
    """

    def __init__(self, model: Any, count: int, logs: dict[str, Any], then: Any):
        self.train_function, self.model, self.left = model.train_function, model, count
        self.logs, self.then = logs, then
        self.batch: Any = None

    def __call__(self, *arguments: Any) -> Any:
        *state, source = arguments
        for _ in range(self.model.steps_per_execution):
            self.batch = source[-1] if NAME == "torch" else next(source)  # torch's loop has read it already
            self.left -= 1
        if self.left <= 0:
            self.model.train_function = self.train_function
            self.then(self.batch)
        return (self.logs, *state) if state else self.logs


def _from(batches: Iterator[Any], count: int) -> Iterator[Any]:
    yield from islice(batches, count, None)


def _is_tf_data(data: Any) -> bool:
    return NAME == "tensorflow" and hasattr(data, "_variant_tensor")


def _reshuffles(data: Any) -> bool:
    """Whether it is tf.data that is shuffled anew each time it is iterated."""
    if not _is_tf_data(data):
        return False
    import tensorflow as tf

    serialized = tf.raw_ops.DatasetToGraphV2(input_dataset=data._variant_tensor, external_state_policy=1)
    graph = tf.compat.v1.GraphDef.FromString(serialized.numpy())
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return any("Shuffle" in node.op and node.attr["reshuffle_each_iteration"].b for node in nodes)


def _is_unseeded() -> bool:
    if NAME != "tensorflow":
        return False
    import tensorflow as tf

    return tf.compat.v1.get_seed(None)[0] is None
