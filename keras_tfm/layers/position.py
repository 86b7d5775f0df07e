"""Position schemes by name, by options, or by example."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers.alibi import ALiBi
from keras_tfm.layers.base import check_choice, check_options
from keras_tfm.layers.disentangled_bias import DisentangledBias
from keras_tfm.layers.position_scheme import PositionScheme
from keras_tfm.layers.positional_encoding import PositionalEncoding
from keras_tfm.layers.relative_position_bias import RelativePositionBias
from keras_tfm.layers.rotary_embedding import RotaryEmbedding


def schemes() -> dict[str, tuple[type[PositionScheme], dict[str, Any]]]:
    """Kind to layer and preset options."""
    return {
        "sinusoidal": (PositionalEncoding, {"kind": "sinusoidal"}),
        "learned": (PositionalEncoding, {"kind": "learned"}),
        "rotary": (RotaryEmbedding, {}),
        "alibi": (ALiBi, {}),
        "relative": (RelativePositionBias, {}),
        "disentangled": (DisentangledBias, {}),
    }


def check(position: Any, where: str | None = None) -> None:
    """Raise ValueError unless `position` is one that `make` accepts and has its effect at `where`."""
    if position is None:
        return
    known = schemes()
    if isinstance(position, keras.layers.Layer):
        if not isinstance(position, PositionScheme):
            raise ValueError(f"position must be a PositionScheme layer; got {type(position).__name__}.")
        cls: type[PositionScheme] = type(position)
    else:
        options = dict(position) if isinstance(position, dict) else {"kind": position}
        kind = options.pop("kind", None)
        check_choice("position", kind, known)
        cls = known[kind][0]
        check_options("position", options, cls)
    if where is not None and cls.where != where:
        fit = [kind for kind, (other, _) in known.items() if other.where == where]
        raise ValueError(
            f"position={position!r} has its effect at the {cls.where}, not here ({where}); here fit {fit}."
        )


def make(position: Any, **keywords: Any) -> PositionScheme | None:
    """A position scheme from a kind, a dict of options with a "kind", or a layer, which is used itself."""
    check(position)
    if position is None or isinstance(position, keras.layers.Layer):
        return position
    options = dict(position) if isinstance(position, dict) else {"kind": position}
    cls, preset = schemes()[options.pop("kind")]
    return cls(**{**keywords, **preset, **options})
