"""Activation functions by name: Keras's own, and the few that published models use beyond them."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import keras
from keras import ops

from keras_tfm.ops.backend import Tensor


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016, eq. 2; GPT-2's `gelu_new`). Any shape."""
    return ops.gelu(x, approximate=True)


def gelu_exact(x: Tensor) -> Tensor:
    """GELU by the error function, x * Phi(x) (Hendrycks & Gimpel 2016; BERT's `gelu`). Any shape."""
    return ops.gelu(x, approximate=False)


def quick_gelu(x: Tensor) -> Tensor:
    """GELU by a sigmoid, x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016; CLIP). Any shape."""
    return x * ops.sigmoid(1.702 * x)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, Primer). Any shape."""
    return ops.square(ops.relu(x))


_OURS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu_exact,
    "gelu_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "quick_gelu": quick_gelu,
    "squared_relu": squared_relu,
    "relu2": squared_relu,
}
_KERAS = (
    "relu",
    "relu6",
    "silu",
    "swish",
    "tanh",
    "sigmoid",
    "elu",
    "selu",
    "softplus",
    "mish",
    "linear",
    "leaky_relu",
)


def get(activation: str | Callable | None) -> Callable[[Tensor], Tensor]:
    """The function behind a name; a callable passes through, None is the identity.

    "gelu" is the exact one and "gelu_tanh" the approximation. Gated layers apply it to the gate: "silu" makes SwiGLU,
    "gelu" GeGLU, "relu" ReGLU (Shazeer 2020).

    Raises:
        ValueError: for a name that neither this library nor Keras knows; the nearest ones are named.
    """
    if activation is None:
        return keras.activations.linear
    if callable(activation):
        return activation
    if activation in _OURS:
        return _OURS[activation]
    try:
        return keras.activations.get(activation)
    except ValueError:
        near = difflib.get_close_matches(str(activation), [*_OURS, *_KERAS], n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" Known here: {sorted(_OURS)}."
        raise ValueError(f"Unknown activation={activation!r}.{hint}") from None
