"""What one batch shows of a model: loss, gradients, activations, attention. Nothing of the model changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_tfm.layers import FeedForward
from keras_tfm.ops import backend
from keras_tfm.training.parts import check_model
from keras_tfm.training.seeing.given_batch import as_batch, to_numpy
from keras_tfm.training.seeing.named_parts import attention_layers, named_parts, numbered


class Activation(NamedTuple):
    """What a layer gives for the tokens of a batch, padding left out.

    Attributes:
        rms: Root mean square of its elements; a token's norm over the square root of the width.
        finite: Whether all of them are finite.
        dead: Share of a feed-forward layer's units that are 0 for every token; None of other layers.
    """

    rms: float
    finite: bool
    dead: float | None


class Attention(NamedTuple):
    """Where a block's heads look.

    Attributes:
        entropy: (heads, queries) of the distribution over keys, over the logarithm of how many keys the query sees: 1 is
            uniform, 0 a single key. Of queries that are tokens and see two keys at least.
        weights: (heads, queries, keys) of the batch's first row, padding included.
    """

    entropy: np.ndarray
    weights: np.ndarray


class Probe:
    """Measures a model on one batch, as often as one likes; on JAX it is compiled once.

    Dropout is off, so that a measurement changes with the weights alone, and nothing is drawn. Weights, the optimizer,
    metrics and random states stay bit for bit as they are.

    Args:
        model: A task model of this library.
        batch: (x, y) or (x, y, sample_weight), as `fit` takes them; raw rows in the place of x, or alone where the task
            makes its own labels; or a `model.dataset(...)`, of which the first batch is taken.

    Raises:
        ValueError: for another model.
    """

    def __init__(self, model: Any, batch: Any):
        self.model = model
        self.backbone = check_model(model)
        self.x, self.y, self.sample_weight = as_batch(model, batch)
        self._compiled: dict[Any, Callable] = {}

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the compiled loss, by the path of each trainable variable; zeros where none arrives."""
        return self.loss_and_gradients()[1]

    def loss_and_gradients(self) -> tuple[float, dict[str, np.ndarray]]:
        """The compiled loss, regularization included, and its gradients."""
        trained = self.model.trainable_variables
        compiled = self.model._compile_loss
        if compiled is not None and not compiled.built:
            compiled.build(self.y, self.model._outputs_struct)  # its means, which are no part of what is differentiated
        loss, found = self._run("gradients", self._loss, differentiate=True)
        return float(to_numpy(loss)), {
            variable.path: np.zeros(variable.shape, "float32") if gradient is None else to_numpy(gradient)
            for variable, gradient in zip(trained, found, strict=True)
        }

    def activations(self) -> dict[str, Activation]:
        """Of every part of the model by its name, in the order in which they are computed."""
        found = self._run("activations", self._activations)
        measured = {}
        for name in named_parts(self.model):
            if name in found:
                rms, finite, *dead = map(to_numpy, found[name])
                measured[name] = Activation(float(rms), bool(finite), float(dead[0]) if dead else None)
        return measured

    def attention(self) -> dict[str, Attention]:
        """Of every attention layer by its name."""
        found = self._run("attention", self._attention)
        results: dict[str, Attention] = {}
        for name, layer in attention_layers(self.model).items():
            entropy, weights = (to_numpy(part) for part in found[name])
            cross = name.endswith("cross_attention")
            visible = self._visible(name, layer, cross, entropy.shape[0], *weights.shape[-2:])
            counts = np.broadcast_to(visible, (*entropy.shape, visible.shape[-1])).sum(-1)
            seen = (counts > 1) & self._queries(name, entropy.shape)
            with np.errstate(divide="ignore", invalid="ignore"):
                share = np.clip(entropy / np.log(counts), 0.0, 1.0)  # (batch, heads, queries)
            per_head = [share[:, head][seen[:, head]] for head in range(entropy.shape[1])]
            # A mask by head may leave each head another number of queries.
            width = min(map(len, per_head))
            results[name] = Attention(np.stack([values[:width] for values in per_head]), weights)
        return results

    # What is computed ------------------------------------------------------------------------------------------------

    def _outputs(self) -> Any:
        return self.model(self.x, training=False)

    def _loss(self) -> Any:
        with getattr(self.model, "_as_the_loss_takes_it", contextlib.nullcontext)():
            predicted = self._outputs()
            # training=True says that the loss is to be differentiated; dropout is the call's.
            return self.model.compute_loss(self.x, self.y, predicted, self.sample_weight, training=True)

    def _activations(self) -> dict[str, Any]:
        measured: dict[str, tuple] = {}
        dead: dict[str, tuple] = {}
        with contextlib.ExitStack() as stack:
            calls: dict[int, tuple[Any, list[str]]] = {}
            for name, layer in named_parts(self.model).items():
                calls.setdefault(id(layer), (layer, []))[1].append(name)
            for layer, names in calls.values():
                if isinstance(layer, FeedForward):
                    stack.enter_context(_watched(layer.dropout_layer, self._dead_units(dead, names)))
                stack.enter_context(_watched(layer, self._measure(measured, names)))
            self._outputs()
        return {name: (*found, *dead.get(name, ())) for name, found in measured.items()}

    def _measure(self, measured: dict[str, tuple], names: list[str]) -> Callable:
        waiting = iter(names)

        def measure(x: Any, output: Any) -> None:
            name = next(waiting, None)  # a token table is called again for the logits
            if name is None:
                return
            if isinstance(output, dict):
                output = next(iter(output.values()))
            output = output[0] if isinstance(output, (tuple, list)) else output
            output = ops.cast(output, "float32")
            real = self._real(name, output)
            finite = ops.all(ops.logical_or(ops.isfinite(output), ops.logical_not(real)))
            squares = ops.where(real, ops.square(output), 0.0)
            count = ops.sum(ops.cast(ops.broadcast_to(real, ops.shape(output)), "float32"))
            rms = ops.sqrt(ops.sum(squares) / ops.maximum(count, 1.0))
            measured[name] = rms, finite

        return measure

    def _dead_units(self, measured: dict[str, tuple], names: list[str]) -> Callable:
        waiting = iter(names)

        def measure(x: Any, output: Any) -> None:
            name = next(waiting, None)
            if name is not None:
                idle = ops.logical_or(ops.equal(x, 0), ops.logical_not(self._real(name, x)))
                dead = ops.all(idle, axis=tuple(range(len(x.shape) - 1)))  # (intermediate_dim,)
                measured[name] = (ops.mean(ops.cast(dead, "float32")),)

        return measure

    def _attention(self) -> dict[str, Any]:
        inputs = self._inputs()
        scores = self.backbone.attention_scores({name: inputs.get(name) for name in self.backbone._input_keys})
        sides = scores if isinstance(scores, dict) else {"encoder": scores}
        by_name = {}
        for side, blocks in sides.items():
            prefix = "decoder_blocks" if side == "decoder" else "blocks"
            for index, block in enumerate(blocks):
                parts = block if isinstance(block, dict) else {"attention": block}
                for part, weights in parts.items():
                    by_name[f"{numbered(prefix, index, len(blocks))}.{part}"] = _entropy(weights), weights[0]
        return by_name

    # Tokens and padding ----------------------------------------------------------------------------------------------

    def _inputs(self) -> dict[str, Any]:
        return self.x if isinstance(self.x, dict) else {self.model._input_keys[0]: self.x}

    def padding(self, decoder: bool = False) -> np.ndarray | None:
        """The mask of real tokens, (batch, length) bool; None where none is given."""
        inputs, prefix = self._inputs(), "decoder_" if decoder else ""
        mask = inputs.get(f"{prefix}padding_mask")
        if mask is None and self.backbone.config.mask_zero and inputs.get(f"{prefix}token_ids") is not None:
            return np.asarray(to_numpy(inputs[f"{prefix}token_ids"]) != 0)
        return None if mask is None else to_numpy(mask).astype(bool)

    def tokens(self, decoder: bool = False) -> tuple[np.ndarray, np.ndarray] | None:
        """The places of the first row's tokens, and their ids; None of images."""
        ids = self._inputs().get("decoder_token_ids" if decoder else "token_ids")
        if ids is None:
            return None
        row, mask = to_numpy(ids)[0], self.padding(decoder)
        places = np.arange(len(row)) if mask is None else np.flatnonzero(mask[0])
        return places, row[places]

    def _real(self, name: str, output: Any) -> Any:
        """Which elements of a layer's output belong to tokens, of a shape that broadcasts to it."""
        decoder = self.backbone.config.kind == "encoder_decoder" and name.startswith("decoder_")
        mask = self.padding(decoder)
        if mask is None or len(output.shape) < 3 or tuple(output.shape[:2]) != mask.shape:
            return ops.ones((1,) * len(output.shape), dtype="bool")
        return ops.convert_to_tensor(mask.reshape(*mask.shape, *[1] * (len(output.shape) - 2)))

    def _queries(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        mask = self.padding(name.startswith("decoder_"))
        return np.ones(shape, bool) if mask is None else np.broadcast_to(mask[:, None, :], shape)

    def _visible(self, name: str, layer: Any, cross: bool, batch: int, queries: int, keys: int) -> np.ndarray:
        """Which keys each query may see, (batch, 1 or heads, queries, keys)."""
        decoder = name.startswith("decoder_")
        visible = np.ones((batch, 1, queries, keys), bool)
        mask = self.padding(decoder and not cross)
        if mask is not None:
            visible &= mask[:, None, None, :]
        inputs, prefix = self._inputs(), "decoder_" if decoder else ""
        segments = inputs.get(f"{prefix}segment_ids"), inputs.get(f"{'' if cross else prefix}segment_ids")
        if segments[0] is not None and segments[1] is not None:
            ours, theirs = (to_numpy(part) for part in segments)
            visible &= ours[:, None, :, None] == theirs[:, None, None, :]
        if cross:
            return visible
        explicit = inputs.get("attention_mask")
        if explicit is not None:
            explicit = to_numpy(explicit).astype(bool)
            visible = visible & (explicit[:, None] if explicit.ndim == 3 else explicit)
        # Padding takes no room in a window.
        place = np.arange(keys)[None] if mask is None else np.cumsum(mask, axis=1) - 1
        distance = place[:, None, :, None] - place[:, None, None, :]
        if getattr(layer, "causal", False):
            visible = visible & np.tril(np.ones((queries, keys), bool))
        window = getattr(layer, "window", None)
        if window is not None:
            visible = visible & (distance < window if layer.causal else np.abs(distance) <= window)
        return visible

    # Without a trace -------------------------------------------------------------------------------------------------

    def _run(self, name: str, function: Callable[[], Any], differentiate: bool = False) -> Any:
        """function() of the variables as they are, or its gradients; what it assigns is forgotten."""
        trained = list(self.model.trainable_variables)
        known = {id(variable) for variable in trained}
        others = [variable for variable in self.model.variables if id(variable) not in known]

        def stateless(values: list, fixed: list) -> Any:
            mapping = [*zip(trained, values, strict=True), *zip(others, fixed, strict=True)]
            with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
                return function()

        values, fixed = ([backend.read(variable) for variable in group] for group in (trained, others))
        if backend.NAME == "jax":
            import jax

            key = (name, tuple(map(id, trained)))
            if key not in self._compiled:
                self._compiled[key] = jax.jit(jax.value_and_grad(stateless) if differentiate else stateless)
            return self._compiled[key](values, fixed)
        if backend.NAME == "torch":
            import torch

            with torch.set_grad_enabled(differentiate):
                values = [value.detach().requires_grad_(differentiate) for value in values]
                result = stateless(values, fixed)
                if not differentiate:
                    return result
                if not result.requires_grad:
                    return result, [None] * len(values)
                return result.detach(), torch.autograd.grad(result, values, allow_unused=True)
        if not differentiate:
            return stateless(values, fixed)
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = stateless(values, fixed)
        return result, tape.gradient(result, values)


def gradients(model: Any, batch: Any) -> dict[str, np.ndarray]:
    """The gradients of a model's own compiled loss for one batch, without dropout: see `Probe`.

    Args:
        model: A compiled task model.
        batch: As of `Probe`.

    Returns:
        Arrays by the path of each trainable variable.
    """
    return Probe(model, batch).gradients()


@contextlib.contextmanager
def _watched(layer: Any, see: Callable[[Any, Any], None]) -> Iterator[None]:
    """Within: `see(x, output)` at every call of a layer."""
    call = layer.call

    def watched(x: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(x, *args, **kwargs)
        see(x, output)
        return output

    object.__setattr__(layer, "call", watched)  # beside Keras's own attributes, which are tracked
    try:
        yield
    finally:
        object.__delattr__(layer, "call")


def _entropy(weights: Any) -> Any:
    """Of (batch, heads, queries, keys) over the keys, in nats; of what a query gives to keys where a sink has the rest."""
    total = ops.sum(weights, axis=-1)
    products = weights * ops.log(ops.where(weights > 0, weights, 1.0))
    safe = ops.where(total > 0, total, 1.0)
    return ops.log(safe) - ops.sum(products, axis=-1) / safe
