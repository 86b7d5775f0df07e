"""What Keras's loop does when several processes train one model: on torch `fit` and `evaluate` of shared batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_tfm.distribution import agreeing
from keras_tfm.distribution.gradients import AveragedGradients
from keras_tfm.distribution.own_draws import own_draws
from keras_tfm.distribution.totals import Rows, whole_logs
from keras_tfm.distribution.writers import of_this_process
from keras_tfm.ops import processes
from keras_tfm.ops.backend import NAME

_is_together = False  # within `fit`, `evaluate` or `predict` of all processes


class Together:
    """A Keras model that several processes train; task models are. A mixin, which stands before `keras.Model`.

    What they must have the same is compared as `fit`, `evaluate` and `predict` begin; the first process alone shows how far
    it is, and writes. On torch, each process has all weights and its rows of each batch. Gradients are averaged before they
    are clipped; weights, optimizer and seeds are those of the first process when `fit` begins, and stay equal because what
    is done with them is. On JAX, the distribution does what is left. In one process nothing is changed.

    A model of one's own is given a `PyDataset`, or the like, of this process's rows: as many batches in each process, and
    as many rows in a batch, of whose losses the mean is taken.

    Example:
        >>> class Net(keras_tfm.distribution.Together, keras.Model):
        ...     pass
        >>> model = Net(inputs, outputs)
        >>> model.compile("adam", "mse")
        >>> model.fit(rows_of_this_process)
    """

    _averaged: AveragedGradients | None = None
    _shared_data: Any = None  # what `fit` or `evaluate` reads now
    _shares_predictions = False
    _is_alone = False  # within a method that one process may call

    def fit(self: Any, x: Any = None, y: Any = None, **options: Any) -> Any:
        """As `keras.Model.fit`; of several processes, called by all of them."""
        if processes.count() == 1:
            return super().fit(x=x, y=y, **options)
        _check_no_arrays(x, options.get("batch_size"))
        if processes.is_connected():
            if not self.built:
                raise ValueError(
                    f"{self.name} has no weights yet that processes could share: call it on a batch before fit."
                )
            check_together(self)
            self.optimizer.build(self.trainable_variables)
        data, facts = [x, options.get("validation_data")], agreeing.described_training(self)
        options = of_this_process(self, options)
        with begun(self, "fit", *data, epochs=options.get("epochs", 1), compiled=facts), _reading(self, x):
            try:
                return super().fit(x=x, y=y, **options)
            finally:
                self._average(None)

    def evaluate(self: Any, x: Any = None, y: Any = None, **options: Any) -> Any:
        """As `keras.Model.evaluate`; of several processes, called by all of them."""
        if processes.count() == 1:
            return super().evaluate(x=x, y=y, **options)
        _check_no_arrays(x, options.get("batch_size"))
        with begun(self, "evaluate", x), _reading(self, x):
            return super().evaluate(x=x, y=y, **of_this_process(self, options))

    def train_on_batch(self: Any, *arguments: Any, **options: Any) -> Any:
        """As `keras.Model.train_on_batch`; refused in one of several processes."""
        if processes.is_connected():
            raise ValueError(
                f"train_on_batch in one of {processes.count()} connected processes would train each a model of its own. "
                "Take fit, on raw rows or a PyDataset."
            )
        return super().train_on_batch(*arguments, **options)

    def test_on_batch(self: Any, *arguments: Any, **options: Any) -> Any:
        """As `keras.Model.test_on_batch`, of this process alone."""
        self._is_alone, before = True, self._is_alone
        try:
            return super().test_on_batch(*arguments, **options)
        finally:
            self._is_alone = before

    def get_weights(self: Any) -> list[np.ndarray]:
        """As `keras.Model.get_weights`; where weights are split over hosts, called by all of them."""
        if processes.count() == 1:
            return super().get_weights()
        return [np.array(processes.whole(variable)) for variable in self.weights]

    def make_train_function(self: Any, force: bool = False) -> Any:
        """As `keras.Model.make_train_function`, of steps that processes share."""
        super().make_train_function(force)
        if processes.is_connected() and not isinstance(self.train_function, SharedStep):
            self.train_function = SharedStep(self, self.train_function, trains=True)

    def make_test_function(self: Any, force: bool = False) -> Any:
        """As `keras.Model.make_test_function`, of steps that processes share."""
        super().make_test_function(force)
        if processes.is_connected() and not isinstance(self.test_function, SharedStep):
            self.test_function = SharedStep(self, self.test_function, trains=False)

    def _get_metrics_result_or_logs(self: Any, logs: Any) -> Any:
        # Those of the last step are of all processes already, the metrics themselves are this process's.
        return logs if processes.is_connected() else super()._get_metrics_result_or_logs(logs)

    @contextlib.contextmanager
    def _predicting(self: Any, data: Any) -> Iterator[None]:
        """Within: `_predict_batch` is called by all processes, unless this is a callback's call within `fit`."""
        if _is_together or processes.count() == 1:
            yield
            return
        self._shares_predictions = processes.is_connected()
        try:
            with begun(self, "predict", data, **agreeing.described_arrays(data)):
                yield
        finally:
            self._shares_predictions = False

    def _predict_batch(self: Any, x: Any) -> Any:
        """As `predict_on_batch`, of rows that processes, where they predict together, can share; all get all outputs."""
        if not self._shares_predictions:
            return self.predict_on_batch(x)
        own = keras.tree.map_structure(lambda part: np.split(part, processes.count())[processes.index()], x)
        parts = processes.gathered(self.predict_on_batch(own))
        return keras.tree.map_structure(lambda *rows: np.concatenate(rows), *parts)

    def _average(self: Any, variables: Sequence[Any] | None) -> AveragedGradients | None:
        """What averages the gradients of these variables; of none, nothing does any longer."""
        if self._averaged is not None and (variables is None or not self._averaged.is_of(variables)):
            self._averaged.close()
            self._averaged = None
        if self._averaged is None and variables:
            self._averaged = AveragedGradients(variables)
        return self._averaged


class SharedStep:
    """A train or test function, of a batch of which each process has its rows; its logs are of the whole.

    Args:
        model: A `Together`.
        function: Its own train or test function.
        trains: Which of the two.
    """

    def __init__(self, model: Any, function: Any, trains: bool):
        self.model, self.function, self.trains = model, function, trains

    def __call__(self, data: Any) -> Any:
        """Train, or test, on [(inputs, labels, ...)] of this process's rows; gives the logs."""
        model = self.model
        if model._is_alone:
            return self.function(data)
        with contextlib.ExitStack() as stack:
            stack.enter_context(processes.shared_step())
            stack.enter_context(Rows.counted(model, model._shared_data, data[0]))
            if self.trains:
                stack.enter_context(own_draws(model))
                averaged = model._average(model.trainable_variables)
                if averaged is not None:
                    stack.enter_context(averaged.step())
            logs = self.function(data)
        return whole_logs(model, logs)


@contextlib.contextmanager
def begun(model: Any, method: str, *data: Any, **facts: Any) -> Iterator[None]:
    """Within: all processes are in the same method, with the same model, weights and data.

    The seeds of data sets are taken from the first process; on torch weights and seeds too and, for "fit", the optimizer's
    state: heads that each process drew for itself, or a file that one of them found in another version, never train apart.
    (JAX refuses to lay out weights that differ.)

    Raises:
        ValueError: in all processes, if they call other methods, or with other models or data, naming the first such one;
            on JAX, if the model is of one process.
    """
    global _is_together
    if _is_together:  # validation, within `fit`
        yield
        return
    _check_on_all_hosts()
    _is_together = True
    try:
        agreeing.agree({"the method called": method, **agreeing.described(model), **facts})
        agreeing.agree_on_data(data)
        if processes.is_connected():
            variables = [*model.variables, *(model.optimizer.variables if method == "fit" else ())]
            processes.take_firsts([variable.value for variable in variables])
        yield
    finally:
        _is_together = False


@contextlib.contextmanager
def _reading(model: Any, data: Any) -> Iterator[None]:
    before, model._shared_data = model._shared_data, data
    try:
        yield
    finally:
        model._shared_data = before


def _check_on_all_hosts() -> None:
    """Raise ValueError on JAX unless the distribution's mesh has devices of all processes."""
    if NAME != "jax":
        return
    distribution: Any = keras.distribution.distribution()
    if distribution is None:
        missing = "no distribution is set"
    else:
        devices = distribution.device_mesh.backend_mesh.devices.flat
        hosts = {device.process_index for device in devices}
        missing = (
            f"the distribution's mesh has devices of {len(hosts)} of them" if len(hosts) < processes.count() else ""
        )
    if missing:
        raise ValueError(
            f"{processes.count()} processes are connected, and {missing}: each would train a model of its own. Build and "
            "train it within distribution.data_parallel().scope(), or that of another of keras_tfm.distribution's layouts."
        )


def _check_no_arrays(x: Any, batch_size: int | None) -> None:
    from keras_tfm.distribution.sharing import check_arrays  # which knows of models with strategies, and so of this one

    check_arrays(x, batch_size or 32)


def check_together(model: Any) -> None:
    """Raise ValueError for a model whose loss is no mean over a batch's rows, or over the tokens of all of it."""
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        reduction = getattr(loss, "reduction", None)
        if reduction in ("sum", "mean_with_sample_weight") and not hasattr(loss, "total_weight"):
            raise ValueError(
                f'{loss.name} has reduction="{reduction}", which is of each process\'s rows alone. Take '
                'reduction="sum_over_batch_size", or keras_tfm\'s TokenCrossentropy.'
            )
