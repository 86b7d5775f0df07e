"""Position schemes: one object with three hooks, of which each scheme fills the one it needs.

`embed` adds to embeddings, `rotate` turns heads, `bias` shifts scores. Blocks know the hooks, never the scheme.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import Layer, check_choice, check_options
from keras_tfm.ops import masks
from keras_tfm.ops.backend import Tensor


class PositionScheme(Layer):
    """A position scheme that does nothing; the schemes override a hook."""

    where: str = "attention"  # or "embedding": where the scheme has its effect
    projected: bool = False  # `vectors` go through the projections of attention, and from there to `bias`

    def embed(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Add to embeddings. x: (batch, length, width); positions: (batch or 1, length) int, None for 0, 1, 2, …"""
        return x

    def rotate(self, query: Tensor, key: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Turn the heads of a chunk's queries and keys, (batch, length, heads, head_dim)."""
        return query, key

    def bias(
        self, query: Tensor, key: Tensor, query_positions: Tensor | None, key_positions: Tensor | None, **projected: Any
    ) -> Tensor | None:
        """What to add to the scores, broadcastable to (batch, heads, queries, keys) float32; None for nothing.

        Takes queries and keys as attended (keys of a whole cache, say) with (batch or 1, length) positions, None for
        0, 1, 2, …; a `projected` scheme also its `vectors` as position_query and position_key, (count, heads, head_dim).
        """
        return None

    def vectors(self) -> Tensor:
        """Of a `projected` scheme: what attention projects to queries and keys, as it does tokens. (count, width)."""
        raise self._not_implemented_error(self.vectors)

    def scale(self, head_dim: int) -> float | None:
        """The scale of the scores that goes with the scheme; None for the usual one."""
        return None

    def check_heads(self, num_heads: int, head_dim: int) -> None:
        """Raise ValueError where the scheme cannot serve heads of this number and width."""


class PositionBias(PositionScheme):
    """A scheme whose bias depends on positions alone; subclasses give it in `between`.

    As a layer, called with queries and keys (batch, length, heads, head_dim), it gives the bias itself.
    """

    def between(self, query_positions: Tensor, key_positions: Tensor, num_heads: int) -> Tensor:
        """(batch or 1, queries) and (batch or 1, keys) int to (batch or 1, heads, queries, keys) float32."""
        raise self._not_implemented_error(self.between)

    def bias(self, query, key, query_positions=None, key_positions=None):
        query_positions = masks.positions(ops.shape(query)[1]) if query_positions is None else query_positions
        key_positions = masks.positions(ops.shape(key)[1]) if key_positions is None else key_positions
        return self.between(query_positions, key_positions, query.shape[2])

    def call(self, query, key, query_positions=None, key_positions=None):
        return self.bias(query, key, query_positions, key_positions)

    def compute_output_spec(self, query, key, query_positions=None, key_positions=None):
        batches = [p.shape[0] for p in (query_positions, key_positions) if p is not None]
        batch = next((b for b in batches if b != 1), 1)
        return keras.KerasTensor((batch, query.shape[2], query.shape[1], key.shape[1]), dtype="float32")


def schemes() -> dict[str, tuple[type[PositionScheme], dict[str, Any]]]:
    """Kind to layer and preset options."""
    from keras_tfm.layers.alibi import ALiBi
    from keras_tfm.layers.disentangled_bias import DisentangledBias
    from keras_tfm.layers.positional_encoding import PositionalEncoding
    from keras_tfm.layers.relative_position_bias import RelativePositionBias
    from keras_tfm.layers.rotary_embedding import RotaryEmbedding

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
