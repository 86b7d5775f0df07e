"""What low-rank updates need to know of a projection: which axes it contracts, the norms of its outputs' weights."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops


def contracted_axes(layer: Any) -> int:
    """How many axes of the kernel, from the front, its product with the input's last ones runs over.

    Raises:
        ValueError: for an `EinsumDense` of another kind.
    """
    if isinstance(layer, keras.layers.Dense):
        return 1
    x, kernel, y = layer.equation.replace(" ", "").replace("->", ",").split(",")
    count = sum(axis not in y for axis in kernel)
    if not (count and x.endswith(kernel[:count]) and y == x[: len(x) - count] + kernel[count:]):
        raise ValueError(
            f"{layer.path} computes {layer.equation!r}; LoRA is for products of the input's last axes with the kernel's "
            "first."
        )
    return count


def check_quantizable(layer: Any, dora: bool) -> None:
    """Raise ValueError where quantized weights and updates do not go together."""
    if dora:
        raise ValueError(f"{layer.path}: DoRA needs the norms of float weights, so it does not go with quantization.")
    if layer.activation is not None and layer.activation is not keras.activations.linear:
        raise ValueError(
            f"{layer.path} has an activation behind its product, so LoRA does not go with quantization there."
        )


def column_norms(layer: Any) -> Any:
    """Of a float projection's outputs, (outputs,) float32: DoRA's magnitude at first."""
    kernel = ops.convert_to_tensor(layer._kernel)
    width = math.prod(kernel.shape[: contracted_axes(layer)])
    return norms(ops.cast(ops.reshape(kernel, (width, -1)), "float32"))


def norms(matrix: Any) -> Any:
    """Of each column."""
    return ops.sqrt(ops.sum(ops.square(matrix), axis=0))
