"""Blocks that differ by their place, as config.json files state them: "layer_types"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_tfm.config import TransformerConfig

FULL, SLIDING = "full_attention", "sliding_attention"


def read_types(config: Mapping[str, Any], size: int | None, default: Callable[[int], str]) -> list[str]:
    """The type of every block; `default` tells that of each where config.json does not.

    Raises:
        ValueError: for another type than full and sliding attention, and for the latter if there is no window's `size`.
    """
    count = config["num_hidden_layers"]
    types = list(config.get("layer_types") or map(default, range(count)))[:count]
    if unknown := sorted(set(types) - {FULL, SLIDING}):
        raise ValueError(f"config.json has layers of the types {unknown}; implemented are {[FULL, SLIDING]}.")
    if len(types) < count:
        raise ValueError(f"config.json has num_hidden_layers={count}, and layer_types for {len(types)}.")
    if SLIDING in types and size is None:
        raise ValueError(f"config.json has layers of the type {SLIDING!r}, and no window for them.")
    return types


def write_types(config: TransformerConfig) -> list[str]:
    """The inverse: a block with a window slides."""
    return [SLIDING if window else FULL for window in windows(config)]


def windows(config: TransformerConfig) -> list[int | None]:
    """The window of every block."""
    return [config.block(index).get("window", config.window) for index in range(config.num_layers)]


def window(config: TransformerConfig) -> int | None:
    """The window of those blocks that have one; None where none has."""
    return next(filter(None, windows(config)), None)


def pattern(blocks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What every block has of its own as the shortest `layer_pattern`; nothing where that is nothing."""
    period = next(n for n in range(1, len(blocks) + 1) if all(b == blocks[i % n] for i, b in enumerate(blocks)))
    return {"layer_pattern": [dict(block) for block in blocks[:period]]} if any(blocks) else {}


def sliding(types: Sequence[str], size: int | None) -> dict[str, Any]:
    """Fields of a model whose blocks of type "sliding_attention" have a window of this size."""
    return pattern([{"window": size} if kind == SLIDING else {} for kind in types])
