"""Training under `tf.distribute` on TensorFlow: what Keras's loop gets right there goes on, the rest is refused.

Seen with Keras 3.15.1 and TensorFlow 2.21 on four logical devices of a CPU; `tests/distribution/plain_keras.py` holds each
of Keras's faults as a test that will fail once it is gone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import keras

from keras_tfm.distribution.together import Together
from keras_tfm.ops.backend import NAME

Method = TypeVar("Method", bound=Callable[..., Any])


def strategy_of(model: Any = None) -> Any:
    """The `tf.distribute.Strategy` that a model was built in, else the one whose scope this is, or None."""
    if NAME != "tensorflow":
        return None
    import tensorflow as tf

    own = getattr(model, "_distribute_strategy", None)
    return own or (tf.distribute.get_strategy() if tf.distribute.has_strategy() else None)


def scope_of(model: Any) -> AbstractContextManager:
    """The scope of a model's strategy, where what goes with it is made: optimizer, metrics, batches."""
    strategy = strategy_of(model)
    return nullcontext() if strategy is None else strategy.scope()


def in_scope(method: Method) -> Method:
    """A model's method that runs in the scope of the model's strategy, wherever it is called."""

    @functools.wraps(method)
    def scoped(self, *arguments: Any, **options: Any) -> Any:
        if NAME != "tensorflow":
            return method(self, *arguments, **options)
        with scope_of(self):
            return method(self, *arguments, **options)

    return cast(Method, scoped)


def replicas_of(model: Any = None) -> int:
    """How many replicas share a model's batches; 1 without a strategy."""
    strategy = strategy_of(model)
    return 1 if strategy is None else int(strategy.num_replicas_in_sync)


class Replicated(Together):
    """What `keras.Model` gets wrong with several replicas, or processes. A mixin that is no model, as `Recompiled`."""

    def _maybe_symbolic_build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras builds by the mean of the replicas' first rows, which masks (bool) do not have. It begins an epoch for it.
        if iterator is not None and replicas_of(self) > 1:
            local = strategy_of(self).experimental_local_results
            data_batch = keras.tree.map_structure(lambda part: local(part)[0], next(next(iter(iterator))[2]))
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def predict_on_batch(self: Any, x: Any) -> Any:
        """As `keras.Model.predict_on_batch`; replicas share the batch, which Keras gives to each as a whole."""
        if replicas_of(self) == 1:
            return super().predict_on_batch(x)
        return self.predict(x, batch_size=len(keras.tree.flatten(x)[0]), verbose=0)


def check_strategy(model: Any, strategy: Any = None) -> None:
    """Raise ValueError for a model that Keras would train wrongly, or not at all, under `tf.distribute`.

    Task models do so at `fit`. Without a strategy, and on other backends, nothing is checked. Whether the replicas can
    share the batches is checked where these are given.

    Args:
        model: Any built Keras model, compiled or not.
        strategy: A `tf.distribute.Strategy`. Default: the one that the model was built in, or whose scope this is.

    Raises:
        ValueError: for strategies of several machines, for what was built outside of the strategy's scope, and with two
            replicas or more for loss scaling (float16), `jit_compile=True`, `gradient_accumulation_steps`,
            `steps_per_execution`, and losses that are means over weights of samples.
    """
    strategy = strategy_of(model) if strategy is None else strategy
    if strategy is None or NAME != "tensorflow":
        return
    _check_kind(strategy)
    _check_scope(model, strategy)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        _check_optimizer(optimizer, strategy)
    if strategy.num_replicas_in_sync > 1:
        _check_compiled(model, strategy.num_replicas_in_sync)


def _check_kind(strategy: Any) -> None:
    """Raise ValueError for strategies that Keras's `fit` fails in."""
    import tensorflow as tf

    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        # "To use this dataset, you need to pass this dataset to ClusterCoordinator.create_per_worker_dataset."
        raise ValueError(
            f"Keras 3's fit gives a ParameterServerStrategy no datasets that it can use. {_several_machines()}"
        )
    workers = _workers(strategy)
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) and workers > 1:
        # "Attempt to convert a value (PerReplica:...) with an unsupported type", before the first step.
        raise ValueError(
            f"Keras 3's fit fails under a MultiWorkerMirroredStrategy of {workers} workers, whose batches it takes for "
            f"tensors. {_several_machines()}"
        )


def _several_machines() -> str:
    return (
        "On one machine take tf.distribute.MirroredStrategy; for several, KERAS_BACKEND=jax and keras.distribution "
        "(keras_tfm.distribution.data_parallel)."
    )


def _workers(strategy: Any) -> int:
    """How many processes train together."""
    resolver = getattr(strategy, "cluster_resolver", None)
    spec = None if resolver is None else resolver.cluster_spec()
    tasks = spec.as_dict() if spec else {}
    return max(1, sum(len(addresses) for job, addresses in tasks.items() if job in ("chief", "worker")))


def _check_scope(model: Any, strategy: Any) -> None:
    """Raise ValueError for a model that was not built, in all its parts, in the strategy's scope."""
    again = "Build it, or load it, within `with strategy.scope():`."
    own: Any = getattr(model, "_distribute_strategy", None)
    if own is not strategy:
        where = "outside of any strategy's scope" if own is None else f"in the scope of another {type(own).__name__}"
        raise ValueError(
            f"{model.name} was built {where}, and is to be trained in a {type(strategy).__name__}. {again}"
        )
    for variable in model.variables:
        if not strategy.extended.variable_created_in_scope(variable.value):
            raise ValueError(
                f"{variable.path} was made outside of the scope of the {type(strategy).__name__} that {model.name} was "
                f"built in. {again}"
            )


def _check_optimizer(optimizer: Any, strategy: Any) -> None:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for one in (optimizer, inner):
        if getattr(one, "_distribution_strategy", strategy) is not strategy:
            raise ValueError(
                f"The optimizer {one.name!r} was made outside of the scope of the model's {type(strategy).__name__}: make "
                "it, and compile the model with it, within `with strategy.scope():`."
            )
    # Keras merges replicas inside of a tf.cond, which TensorFlow refuses, of one replica too.
    if getattr(inner, "gradient_accumulation_steps", None):
        raise ValueError(
            f"gradient_accumulation_steps={inner.gradient_accumulation_steps} fails under tf.distribute in Keras 3. Take a "
            "larger batch, which the replicas share, and recompute_blocks() of the backbone if memory is short."
        )


def _check_compiled(model: Any, replicas: int) -> None:
    """Raise ValueError for settings of `compile` that go wrong with several replicas."""
    if isinstance(getattr(model, "optimizer", None), keras.optimizers.LossScaleOptimizer):
        # Gradients infinite on replica 1 alone: infinite weights after the step, and none on one device, which skips it.
        raise ValueError(
            f"float16 scales the loss, and Keras skips a step by the gradients of replica 0 alone: with {replicas} "
            'replicas, another one\'s overflow makes weights infinite or NaN. Take dtype="mixed_bfloat16", or float32.'
        )
    if getattr(model, "jit_compile", False):
        # "Trying to access resource ... located in device CPU:1 from device CPU:0".
        raise ValueError(
            f"jit_compile=True fails with {replicas} replicas: XLA compiles for one device, and the weights of the others "
            'are out of its reach. Leave it "auto", which is False under a strategy.'
        )
    steps = getattr(model, "steps_per_execution", 1)
    if isinstance(steps, int) and steps > 1:
        # "You must feed a value for placeholder tensor ... while/cond/Placeholder".
        raise ValueError(f"steps_per_execution={steps} fails with {replicas} replicas in Keras 3; leave it 1.")
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        if getattr(loss, "reduction", None) == "mean_with_sample_weight":
            # 0.08 off in the weights of a small classifier after two epochs.
            raise ValueError(
                f'{loss.name} has reduction="mean_with_sample_weight", which Keras divides by the weights of each replica '
                'alone. Take reduction="sum_over_batch_size", or keras_tfm\'s TokenCrossentropy.'
            )
