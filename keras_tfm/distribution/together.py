"""What Keras's loop does on torch when several processes train one model: `fit` and `evaluate` of shared batches."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_tfm.distribution.gradients import AveragedGradients
from keras_tfm.distribution.own_draws import own_draws
from keras_tfm.distribution.totals import Rows, whole_logs
from keras_tfm.ops import processes

_is_together = False  # within `fit`, `evaluate` or `predict` of all processes


class Together:
    """A Keras model that several processes of torch train; task models are. A mixin, which stands before `keras.Model`.

    Each process has all weights and its rows of each batch. Gradients are averaged before they are clipped; weights,
    optimizer and seeds are those of the first process when `fit` begins, and stay equal because what is done with them is.
    In one process, and on other backends, nothing is changed.

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
        if not processes.is_connected():
            return super().fit(x=x, y=y, **options)
        _check_no_arrays(x, options.get("batch_size"))
        if not self.built:
            raise ValueError(
                f"{self.name} has no weights yet that processes could share: call it on a batch before fit."
            )
        data = [x, options.get("validation_data")]
        check_together(self)
        options = of_this_process(options)
        self.optimizer.build(self.trainable_variables)
        with (
            begun(self, "fit", *data, epochs=options.get("epochs", 1), compiled=_compiled(self)),
            _reading(self, data[0]),
        ):
            try:
                return super().fit(x=x, y=y, **options)
            finally:
                self._average(None)

    def evaluate(self: Any, x: Any = None, y: Any = None, **options: Any) -> Any:
        """As `keras.Model.evaluate`; of several processes, called by all of them."""
        if not processes.is_connected():
            return super().evaluate(x=x, y=y, **options)
        _check_no_arrays(x, options.get("batch_size"))
        with begun(self, "evaluate", x), _reading(self, x):
            return super().evaluate(x=x, y=y, **of_this_process(options))

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
        if _is_together or not processes.is_connected():
            yield
            return
        self._shares_predictions = True
        try:
            with begun(self, "predict", data):
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

    Weights and seeds are taken from the first process, as are the seeds of data sets and, for "fit", the optimizer's state:
    heads that each process drew for itself, or a file that one of them found in another version, never train apart.

    Raises:
        ValueError: in all processes, if they call other methods, or with other models or data, naming the first such one.
    """
    global _is_together
    if _is_together:  # validation, within `fit`
        yield
        return
    _is_together = True
    try:
        _agree({"the method called": method, "model": _structure(model), "tokenizer": _tokenizer(model), **facts})
        _agree(_described(data))
        for one in data:
            if hasattr(one, "described"):
                one.set_state(processes.gathered(one.get_state())[0])
                _agree({"a batch": one.digest()})  # of rows in the same order, then
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


def _check_no_arrays(x: Any, batch_size: int | None) -> None:
    from keras_tfm.distribution.sharing import check_arrays  # which knows of models with strategies, and so of this one

    check_arrays(x, batch_size or 32)


def of_this_process(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `fit` and `evaluate`: only the first process shows progress, and has the callbacks that write files.

    Those are Keras's `ModelCheckpoint`, `CSVLogger`, `TensorBoard` and `RemoteMonitor`, and callbacks that have a true
    attribute `of_first_process`.

    Raises:
        ValueError: for `BackupAndRestore`, which would bring back the first process alone.
    """
    given = options.get("callbacks")
    listed = given.callbacks if isinstance(given, keras.callbacks.CallbackList) else given
    callbacks = list(listed) if isinstance(listed, list | tuple) else [] if listed is None else [listed]
    if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in callbacks):
        raise ValueError("BackupAndRestore brings back one process of several; take keras_tfm.training.Resume.")
    if processes.index() == 0:
        return options
    kinds = ("ModelCheckpoint", "CSVLogger", "TensorBoard", "RemoteMonitor")
    writers = tuple(getattr(keras.callbacks, kind) for kind in kinds)
    kept = [
        callback
        for callback in callbacks
        if not isinstance(callback, writers) and not getattr(callback, "of_first_process", False)
    ]
    if isinstance(given, keras.callbacks.CallbackList):
        given.callbacks[:] = kept
        return {**options, "verbose": 0}
    return {**options, "verbose": 0, "callbacks": kept}


def check_together(model: Any) -> None:
    """Raise ValueError for a model whose loss is no mean over a batch's rows, or over the tokens of all of it."""
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        reduction = getattr(loss, "reduction", None)
        if reduction in ("sum", "mean_with_sample_weight") and not hasattr(loss, "total_weight"):
            raise ValueError(
                f'{loss.name} has reduction="{reduction}", which is of each process\'s rows alone. Take '
                'reduction="sum_over_batch_size", or keras_tfm\'s TokenCrossentropy.'
            )


def _agree(facts: dict[str, Any]) -> None:
    """Raise ValueError, in all processes, unless all of them give the same facts."""
    mine = {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in facts.items()}
    first, *others = processes.gathered(mine)
    for place, theirs in enumerate(others, 1):
        for name in {**first, **theirs}:
            if first.get(name) != theirs.get(name):
                raise ValueError(
                    f"Processes differ in {name}: process 0 has {first.get(name)}, process {place} {theirs.get(name)}. All "
                    "of them must build the same model and call fit, evaluate and predict with the same rows in the same "
                    "order. (A tokenizer that is trained, by wordpiece or unigram, comes out differently each time: train "
                    "one, save it, and load it in all processes.)"
                )


def _structure(model: Any) -> str:
    """Names differ where other models were built before; shapes do not."""
    shapes = [(list(v.shape), str(v.dtype), bool(v.trainable)) for v in model.variables]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:12]
    return f"{type(model).__name__} of {len(shapes)} variables, {digest}"


def _tokenizer(model: Any) -> str | None:
    tokenizer = getattr(getattr(model, "student", model), "tokenizer", None)
    if tokenizer is None:
        return None
    text = json.dumps(tokenizer.to_json(), sort_keys=True, default=str)
    return f"{type(tokenizer).__name__} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _compiled(model: Any) -> dict[str, Any]:
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    plain = (bool, int, float)
    config = {name: value for name, value in optimizer.get_config().items() if isinstance(value, plain)}
    return {"optimizer": type(optimizer).__name__, **config}


def _described(data: Sequence[Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for one, name in zip(data, ("x", "validation_data"), strict=False):
        if hasattr(one, "described"):
            facts[f"the rows of {name}"] = one.described()
        else:
            facts[f"the number of batches of {name}"] = len(one) if hasattr(one, "__len__") else None
    return facts
