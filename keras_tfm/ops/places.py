"""Some tokens of a sequence."""

from __future__ import annotations

from keras import ops

from keras_tfm.ops.backend import Tensor, attach_mask, implicit_mask


def at_places(x: Tensor, places: Tensor, axis: int = 1) -> Tensor:
    """Entries of x along an axis, other ones for each row.

    Args:
        x: (batch or 1, ..., length, ...), `length` along `axis`.
        places: (batch, n) int.

    Returns:
        (batch, ..., n, ...), as x but for its batch and this axis.
    """
    if axis == 1 and x.shape[0] == 1:
        return ops.take(x[0], places, axis=0)
    if x.shape[0] == 1:
        x = ops.broadcast_to(x, (ops.shape(places)[0], *ops.shape(x)[1:]))
    index = ops.reshape(places, (-1, *[1] * (axis - 1), ops.shape(places)[1], *[1] * (len(x.shape) - axis - 1)))
    return ops.take_along_axis(x, index, axis=axis)


def masked_as(y: Tensor, x: Tensor, places: Tensor | None) -> Tensor:
    """y, which is of some tokens of x, with the mask that Keras attached to x, of these tokens; as it is without."""
    mask = None if places is None else implicit_mask(x)
    if mask is not None:
        attach_mask(y, at_places(mask, places))
    return y
