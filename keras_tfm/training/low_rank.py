"""A projection with low-rank updates beside its kernel."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import logical_axes
from keras_tfm.training.products import check_quantizable, column_norms, contracted_axes, norms


@dataclass(frozen=True)
class Adapter:
    """One low-rank update of a projection that takes `inputs` features to `outputs`.

    Attributes:
        rank, alpha: The update is alpha / rank * (A B), rank-stabilized alpha / sqrt(rank) * (A B).
        rank_stabilized: See above.
        dropout: Of the update's inputs in training.
        a: (inputs, rank) float32.
        b: (rank, outputs) float32.
        magnitude: (outputs,) float32, of DoRA; None otherwise.
        seeds: Of the dropout; None without.
    """

    rank: int
    alpha: float
    rank_stabilized: bool
    dropout: float
    a: Any
    b: Any
    magnitude: Any = None
    seeds: Any = None

    @property
    def scale(self) -> float:
        """Of the product of A and B."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)

    @property
    def variables(self) -> dict[str, Any]:
        """By the names that they are saved under."""
        every = {"a": self.a, "b": self.b, "magnitude": self.magnitude}
        return {name: variable for name, variable in every.items() if variable is not None}

    def options(self) -> dict[str, Any]:
        """What `LowRank.add_adapter` takes to make one like it."""
        return {
            "rank": self.rank,
            "alpha": self.alpha,
            "rank_stabilized": self.rank_stabilized,
            "dropout": self.dropout,
            "dora": self.magnitude is not None,
        }


class LowRank:
    """What a `Dense` or `EinsumDense` layer becomes where it is: y = x W + scale * (x A) B (Hu et al. 2021, section 4.1).

    With DoRA, each output is divided by the norm of its weights, a constant for the gradient, and multiplied by a learned
    magnitude (Liu et al. 2024, equations 5 and 11). Keras's own `enable_lora` factors the last axis of a kernel alone: of
    a kernel (width, heads, head_dim) it trains a matrix for each head, with `heads` times the weights and the rank of the
    papers' update, for which other libraries' files have no word. Here the kernel is a matrix of all input features by
    all output features.

    The layer keeps its variables, its place in a graph, and what quantization made of it.
    """

    _adapters: dict[str, Adapter]
    _active: str | None
    _as_base: bool
    _plain_quantize: Callable[..., None]
    # Of the Keras layer:
    _tracker: Any
    _kernel: Any
    _trainable_variables: list[Any]
    add_weight: Callable[..., Any]
    _untrack_variable: Callable[[Any], None]
    quantization_mode: str | None
    compute_dtype: str
    bias: Any
    activation: Callable[[Any], Any] | None

    # Adding, choosing, removing ------------------------------------------------------------------------------------------

    def add_adapter(
        self, name: str, *, rank: int, alpha: float, rank_stabilized: bool, dropout: float, dora: bool
    ) -> None:
        """Add an update that starts as nothing. It is not yet in use."""
        contracted = self._contracted()
        shape = self.kernel_shape
        inputs, outputs = math.prod(shape[:contracted]), math.prod(shape[contracted:])
        locked = self._tracker.locked
        self._tracker.unlock()
        # Uniform within 1 / sqrt(inputs), as `peft` and the paper's code begin.
        uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        options = {"dtype": "float32", "autocast": False}
        a = self.add_weight(name=f"lora_{name}_a", shape=(inputs, rank), initializer=uniform, **options)
        b = self.add_weight(name=f"lora_{name}_b", shape=(rank, outputs), initializer="zeros", **options)
        magnitude = None
        if dora:
            magnitude = self.add_weight(name=f"lora_{name}_magnitude", shape=(outputs,), initializer="ones", **options)
            magnitude.assign(column_norms(self))
        seeds = keras.random.SeedGenerator() if dropout else None
        if seeds is not None:
            setattr(self, f"_lora_{name}_seeds", seeds)  # so that Keras knows of its state
        if locked:
            self._tracker.lock()
        axes = getattr(getattr(self, "_kernel", None), "logical_axes", None)
        if axes is not None:
            logical_axes(a, axes[0], None)
            logical_axes(b, None, axes[contracted])
        self._adapters[name] = Adapter(rank, alpha, rank_stabilized, dropout, a, b, magnitude, seeds)
        self.trainable = self._trainable

    def use_adapter(self, name: str | None) -> None:
        """Compute with this update, which is the only one that is trained; None for the layer as it was."""
        object.__setattr__(self, "_active", name if name in self._adapters else None)
        self._mark_trainable()

    def remove_adapters(self) -> None:
        """Make the layer what it was."""
        for name, adapter in self._adapters.items():
            for variable in adapter.variables.values():
                self._untrack_variable(variable)
            if adapter.seeds is not None:
                self._tracker.unlock()
                delattr(self, f"_lora_{name}_seeds")
                self._tracker.lock()
        for attribute in ("_adapters", "_active", "_as_base", "quantize"):
            object.__delattr__(self, attribute)
        object.__setattr__(self, "quantize", self._plain_quantize)
        object.__delattr__(self, "_plain_quantize")
        object.__setattr__(self, "__class__", _PLAIN[type(self)])

    @property
    def adapter(self) -> Adapter | None:
        """The update in use."""
        return None if self._active is None else self._adapters[self._active]

    @property
    def lora_enabled(self) -> bool:
        """What Keras's methods ask; not where they are to see the layer as it was."""
        return not self._as_base

    @property
    def trainable(self) -> bool:
        """Whether the update in use is trained. The layer's own weights never are."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        self._mark_trainable()

    def _mark_trainable(self) -> None:
        used = () if self.adapter is None else self.adapter.variables.values()
        used_ids = {id(variable) for variable in used}
        for variable in self._trainable_variables:
            variable.trainable = self._trainable and id(variable) in used_ids

    @contextlib.contextmanager
    def _base(self) -> Iterator[None]:
        """Within, Keras's methods see the layer without updates."""
        before = self._as_base
        object.__setattr__(self, "_as_base", True)
        try:
            yield
        finally:
            object.__setattr__(self, "_as_base", before)

    # Computing -----------------------------------------------------------------------------------------------------------

    def _contracted(self) -> int:
        return contracted_axes(self)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Of the kernel, unpacked where it is quantized."""
        with self._base():
            return tuple(super().kernel.shape)

    def _matrix(self, dtype: str) -> Any:
        """The layer's own kernel, (inputs, outputs)."""
        kernel = ops.convert_to_tensor(self._kernel)
        width = math.prod(kernel.shape[: self._contracted()])
        return ops.cast(ops.reshape(kernel, (width, -1)), dtype)

    @property
    def kernel(self) -> Any:
        """The kernel with the update, in the dtype of the layer's weights; a quantized layer's own."""
        with self._base():
            kernel = super().kernel
        adapter = self.adapter
        if adapter is None or self.quantization_mode is not None or self._as_base:
            return kernel
        merged = self._matrix("float32") + adapter.scale * ops.matmul(adapter.a, adapter.b)
        if adapter.magnitude is not None:
            merged = merged * (adapter.magnitude / norms(merged))
        return ops.cast(ops.reshape(merged, kernel.shape), kernel.dtype)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        adapter = self.adapter
        if adapter is None:
            with self._base():
                return super().call(inputs, training=training)
        contracted = self._contracted()
        matrix = self._matrix(self.compute_dtype)
        x = ops.reshape(inputs, (-1, matrix.shape[0]))  # (batch * length, inputs)
        y = ops.matmul(x, matrix)  # (batch * length, outputs)
        dropped = self._dropped(adapter, x, training)
        update = self._update(adapter, dropped)
        if adapter.magnitude is None:
            y = y + update
        else:
            whole = self._matrix("float32") + adapter.scale * ops.matmul(adapter.a, adapter.b)
            gain = ops.cast(adapter.magnitude / ops.stop_gradient(norms(whole)), y.dtype)
            # Dropout is of the inputs of all that training changes, as in `peft`.
            y = gain * (y + update) if dropped is x else y + (gain - 1) * ops.matmul(dropped, matrix) + gain * update
        if self.bias is not None:
            y = y + ops.cast(ops.reshape(ops.convert_to_tensor(self.bias), (-1,)), y.dtype)
        y = ops.reshape(y, (*ops.shape(inputs)[: len(inputs.shape) - contracted], *self._kernel.shape[contracted:]))
        return y if self.activation is None else self.activation(y)

    def quantized_call(self, inputs: Any, training: bool | None = None) -> Any:
        with self._base():
            y = super().quantized_call(inputs, training=training)
        adapter = self.adapter
        if adapter is None:
            return y
        x = ops.reshape(inputs, (-1, adapter.a.shape[0]))
        update = self._update(adapter, self._dropped(adapter, x, training))
        return y + ops.cast(ops.reshape(update, ops.shape(y)), y.dtype)

    def _dropped(self, adapter: Adapter, x: Any, training: bool | None) -> Any:
        return keras.random.dropout(x, adapter.dropout, seed=adapter.seeds) if training and adapter.dropout else x

    def _update(self, adapter: Adapter, x: Any) -> Any:
        a, b = (ops.cast(ops.convert_to_tensor(v), x.dtype) for v in (adapter.a, adapter.b))
        return adapter.scale * ops.matmul(ops.matmul(x, a), b)

    # Saving --------------------------------------------------------------------------------------------------------------

    def save_own_variables(self, store: Any) -> None:
        """The layer's own weights as without updates, and theirs beside them."""
        with self._base():
            super().save_own_variables(store)
        for name, adapter in self._adapters.items():
            for part, variable in adapter.variables.items():
                store[f"lora.{name}.{part}"] = variable

    def load_own_variables(self, store: Any) -> None:
        with self._base():
            super().load_own_variables(store)
        for name, adapter in self._adapters.items():
            for part, variable in adapter.variables.items():
                variable.assign(store[f"lora.{name}.{part}"])

    def _quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """Quantize the layer's own weights; the updates stay as they are."""
        try:
            check_quantizable(self, any(adapter.magnitude is not None for adapter in self._adapters.values()))
        except ValueError as error:  # `Model.quantize` warns of it, and passes the layer over
            raise NotImplementedError(str(error)) from None
        with self._base():
            self._plain_quantize(mode, type_check=False, config=config)
        self._mark_trainable()


class LowRankDense(LowRank, keras.layers.Dense):
    """A `Dense` layer with updates."""


class LowRankEinsumDense(LowRank, keras.layers.EinsumDense):
    """An `EinsumDense` layer with updates."""


CLASSES = {keras.layers.Dense: LowRankDense, keras.layers.EinsumDense: LowRankEinsumDense}
_PLAIN = {low: plain for plain, low in CLASSES.items()}


def low_rank(layer: Any) -> Any:
    """A `Dense` or `EinsumDense` layer as one that takes updates: the same object, of another class."""
    if isinstance(layer, LowRank):
        return layer
    state = {"_adapters": {}, "_active": None, "_as_base": False, "_plain_quantize": layer.quantize}
    for attribute, value in state.items():
        object.__setattr__(layer, attribute, value)
    object.__setattr__(layer, "__class__", CLASSES[type(layer)])
    object.__setattr__(layer, "quantize", layer._quantize)  # Keras wraps it in each object
    layer._mark_trainable()
    return layer


def is_projection(layer: Any) -> bool:
    """Whether a layer is one that updates can be added to."""
    return type(layer) in CLASSES or isinstance(layer, LowRank)


def kernel_shape(layer: Any) -> tuple[int, ...]:
    """Of a projection's kernel, unpacked where it is quantized."""
    return layer.kernel_shape if isinstance(layer, LowRank) else tuple(layer.kernel.shape)
