"""Low-rank adaptation of a model's projections."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import keras

from keras_tfm.layers.base import check_positive, suggestion
from keras_tfm.training.low_rank import LowRank, is_projection, kernel_shape, low_rank
from keras_tfm.training.parts import check_model, forget_compiled, named_layers, select
from keras_tfm.training.products import check_quantizable, contracted_axes


def add_lora(
    model: keras.Model,
    rank: int = 8,
    *,
    alpha: float | None = None,
    targets: str | Sequence[str] = ("query", "value"),
    dora: bool = False,
    rank_stabilized: bool = False,
    dropout: float = 0.0,
    name: str = "default",
) -> list[str]:
    """Add a low-rank update to projections and freeze the rest of the backbone (Hu et al. 2021). Compile afterwards.

    A projection x W becomes x W + alpha / rank * (x A) B, with A drawn and B zero, both float32: at first nothing changes.
    The task's head is trained as before; `freeze(model, "head")` keeps it. The model saves and reloads with its updates;
    `save_pretrained` writes them merged.

    Args:
        model: A `Backbone` or a task model, quantized or not. In a quantized one the updates are added to what the
            quantized layers compute, and are float32 themselves (Dettmers et al. 2023, QLoRA).
        rank: Of the update, at most what the projections have.
        alpha: Scale, over the rank. Default: the rank, for a scale of 1.
        targets: Patterns of `freeze`, such as "query", "attention.*", "blocks[2:].feed_forward.*", "pooler". What
            else than projections they match is passed over.
        dora: Train each output's magnitude apart from its direction (Liu et al. 2024).
        rank_stabilized: alpha / sqrt(rank) instead (Kalajdzievski 2023).
        dropout: Of the update's inputs in training.
        name: Of the update: a model may have several, of which one is in use (`set_adapter`). The new one is.

    Returns:
        The paths of the layers with the update.

    Raises:
        ValueError: for a pattern that matches no projection, naming the nearest; a name that is taken; DoRA on quantized
            layers, whose norms it needs; a rank above that of a projection.

    Example:
        >>> keras_tfm.training.add_lora(model, rank=16, targets=["query", "value", "feed_forward.*"])
        >>> model.compile()
    """
    check_model(model)
    check_positive(rank=rank)
    alpha = float(rank if alpha is None else alpha)
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be positive; got {alpha!r}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be from 0 to below 1; got {dropout!r}.")
    check_name(model, name)
    chosen = _projections(model, [targets] if isinstance(targets, str) else list(targets))
    for path, layer in chosen.items():
        shape, contracted = kernel_shape(layer), contracted_axes(layer)
        limit = min(math.prod(shape[:contracted]), math.prod(shape[contracted:]))
        if rank > limit:
            raise ValueError(f"rank must be at most {limit}, that of {path}; got {rank}.")
    options = {"rank": rank, "alpha": alpha, "rank_stabilized": rank_stabilized, "dropout": dropout, "dora": dora}
    add_adapters(model, name, dict.fromkeys(chosen, options))
    return list(chosen)


def set_adapter(model: keras.Model, name: str | None) -> None:
    """Compute with the update of this name, which is the one that is trained; None for the model without any.

    Args:
        model: The task model, if there is one around the backbone: its compiled functions are made anew.
        name: As given to `add_lora` or `load_adapter`.

    Raises:
        ValueError: for a name that no update has.
    """
    known = adapter_names(model)
    if name is not None and name not in known:
        raise ValueError(f"{model.name!r} has no adapter {name!r}; it has {known}.{suggestion(str(name), known)}")
    for layer in adapted(model).values():
        layer.use_adapter(name)
    forget_compiled(model)


def merge_lora(model: keras.Model) -> list[str]:
    """Fold the update in use into the kernels and take LoRA off; other updates are dropped. The backbone stays frozen.

    Returns:
        The paths of the layers that had updates.

    Raises:
        ValueError: for a model without updates, and for quantized layers, whose steps would swallow the update.
    """
    layers = adapted(model)
    if not layers:
        raise ValueError(f"{model.name!r} has no LoRA to merge.")
    for path, layer in layers.items():
        if layer.quantization_mode is not None and layer.adapter is not None:
            raise ValueError(
                f"{path} is quantized to {layer.quantization_mode}: rounding would swallow the update. "
                "Merge before `quantize`, or keep the update apart with `save_adapter`."
            )
    for layer in layers.values():
        if layer.adapter is not None:
            layer._kernel.assign(layer.kernel)
        layer.remove_adapters()
        layer.trainable = False
    forget_compiled(model)
    return list(layers)


def adapted(model: Any) -> dict[str, Any]:
    """The layers with updates, each once, by path."""
    return {str(path): layer for path, layer in _once(model).items() if isinstance(layer, LowRank)}


def adapter_names(model: Any) -> list[str]:
    """Of a model's updates."""
    return list(dict.fromkeys(name for layer in adapted(model).values() for name in layer._adapters))


def check_name(model: Any, name: str) -> None:
    """Raise ValueError for a name that cannot be a new update's."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise ValueError(f"name must be letters, digits and underscores, a letter first; got {name!r}.")
    if name in adapter_names(model):
        raise ValueError(f"{model.name!r} has an adapter {name!r} already; give this one another name.")


def add_adapters(model: Any, name: str, options: dict[str, dict[str, Any]]) -> None:
    """Add an update to layers by path, with the options of `LowRank.add_adapter` for each, freeze the base, use it.

    Raises:
        ValueError: as `add_lora`, before anything is changed.
    """
    layers = {str(path): layer for path, layer in _once(model).items()}
    for path, option in options.items():
        _check(path, layers[path], **option)
    freeze_base(model)
    for path, option in options.items():
        low_rank(layers[path]).add_adapter(name, **option)
        layers[path].trainable = True
    for layer in (model, *named_layers(model).values()):
        if any(isinstance(inner, LowRank) for inner in layer._flatten_layers()):
            layer._trainable = True  # Keras finds nothing to train below a layer that is not
    set_adapter(model, name)


def freeze_base(model: Any) -> None:
    """Freeze the weights of the backbone that belong to no update."""
    for layer in check_model(model)._flatten_layers():
        if not isinstance(layer, LowRank):
            layer._trainable = any(isinstance(inner, LowRank) for inner in layer._flatten_layers())
            for variable in layer._trainable_variables:
                variable.trainable = False


def _check(path: str, layer: Any, *, dora: bool, **options: Any) -> None:
    contracted_axes(layer)
    if layer.quantization_mode is not None:
        if layer.quantization_mode not in ("int8", "int4"):
            raise ValueError(f"{path} is quantized to {layer.quantization_mode}; LoRA goes with 'int8' and 'int4'.")
        check_quantizable(layer, dora)
    if layer.kernel_constraint is not None:
        raise ValueError(f"{path} has a kernel_constraint, which would not see the update.")


def _once(model: Any) -> dict[Any, Any]:
    """`named_layers`, of a layer that blocks share the first path."""
    found: dict[int, Any] = {}
    for path, layer in named_layers(model).items():
        found.setdefault(id(layer), (path, layer))
    return dict(found.values())


def _projections(model: Any, targets: list[str]) -> dict[str, Any]:
    if not targets:
        raise ValueError("targets is empty: name projections, such as 'query' and 'value'.")
    once = _once(model)
    chosen: dict[str, Any] = {}
    for pattern in targets:
        matched = {id(layer) for layer in select(model, pattern).values() if is_projection(layer)}
        if not matched:
            names = sorted({path[-1][0] for path, layer in once.items() if is_projection(layer)})
            raise ValueError(f"targets: {pattern!r} matches no projection of {model.name!r}; it has {names}.")
        chosen |= {str(path): layer for path, layer in once.items() if id(layer) in matched}
    return chosen
