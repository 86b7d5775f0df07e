"""Normalizations by name, by options, or by example."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers.base import check_choice, check_options, deserialize, is_serialized, logical_axes
from keras_tfm.layers.rms_norm import RMSNormalization

KINDS = {"layer_norm": keras.layers.LayerNormalization, "rms_norm": RMSNormalization}
DEFAULT_EPSILON = {"layer_norm": 1e-5, "rms_norm": 1e-6}


def check(norm: Any) -> None:
    """Raise ValueError unless `norm` is one that `make` accepts."""
    if isinstance(norm, keras.layers.Layer) or is_serialized(norm):
        return
    options = dict(norm) if isinstance(norm, dict) else {"kind": norm}
    check_choice("norm", options.pop("kind", "layer_norm"), KINDS)
    check_options("norm", options, KINDS[norm.get("kind", "layer_norm") if isinstance(norm, dict) else norm])


def make(norm: Any, **keywords: Any) -> keras.layers.Layer:
    """A new normalization layer over the last axis.

    Args:
        norm: "layer_norm" (Ba et al. 2016), "rms_norm" (Zhang & Sennrich 2019); a dict of the Keras layer's options with
            a "kind"; or a layer, which serves as the pattern of every copy.
        keywords: name and dtype of the new layer.
    """
    check(norm)
    if is_serialized(norm):
        norm = deserialize(norm)
    if isinstance(norm, keras.layers.Layer):
        return type(norm).from_config({**norm.get_config(), **keywords})
    options = dict(norm) if isinstance(norm, dict) else {"kind": norm}
    kind = options.pop("kind", "layer_norm")
    return KINDS[kind](**{"epsilon": DEFAULT_EPSILON[kind], **options, **keywords})


def grouped(norm: Any, groups: int, **keywords: Any) -> keras.layers.GroupNormalization:
    """A layer normalization of each of `groups` equal parts of a row, (rows, width), with weights for the whole width.

    Args:
        norm: "layer_norm", or a dict of its options.
        groups: That divide the width.
        keywords: name and dtype of the new layer.

    Raises:
        ValueError: for another norm.
    """
    check(norm)
    options = dict(norm) if isinstance(norm, dict) else {"kind": norm}
    if options.pop("kind", "layer_norm") != "layer_norm" or set(options) - {"epsilon", "center", "scale"}:
        raise ValueError(
            "Weights of each head's own need 'layer_norm', by name or with epsilon, center and scale in a dict; "
            f"got {norm!r}."
        )
    return keras.layers.GroupNormalization(groups, **{"epsilon": DEFAULT_EPSILON["layer_norm"], **options, **keywords})


def annotate(norm: keras.layers.Layer, axis: str) -> None:
    """State the logical axis of a normalization's weights."""
    for variable in norm.weights:
        logical_axes(variable, axis)
