"""Blocks that are alike, run by one program, on JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_tfm.layers.recompute import Counting, advance, check_recomputable, with_masks
from keras_tfm.ops.backend import NAME, attach_mask, implicit_mask, read

OWN = ("name", "dtype", "seed", "build_config")  # in which blocks may differ and yet be alike


def is_traced(x: Any) -> bool:
    """Whether x belongs to a program of JAX that is being compiled."""
    if NAME != "jax":
        return False
    import jax

    return isinstance(x, jax.core.Tracer)


def scanned(blocks: Sequence[Any], x: Any, *, recompute: bool = False, **arguments: Any) -> Any:
    """x through one block after another, by `jax.lax.scan` over their weights.

    Args:
        blocks: Built and alike (`check_scannable`).
        x: (batch, length, width), float.
        recompute: As `recomputed`.
        arguments: Further call arguments, the same for all blocks.

    Returns:
        One tensor, of the shape and dtype of x. Random draws are those of the blocks one by one.
    """
    import jax

    if not blocks:
        return x
    mask = implicit_mask(x)
    arguments = with_masks(x, arguments)
    values = [[read(variable) for variable in block.variables] for block in blocks]
    stacks = [keras.ops.stack(same) for same in zip(*values, strict=True)]
    template = blocks[0]
    draws: dict[int, int] = {}

    def step(x: Any, own: Any) -> tuple[Any, None]:
        with Counting(state_mapping=list(zip(template.variables, own, strict=True))) as scope:
            y = template(x, **arguments)
        draws.update(scope.assigned)
        return y, None

    y, _ = jax.lax.scan(jax.checkpoint(step) if recompute else step, x, stacks)
    for block, own in zip(blocks, values, strict=True):
        for same, variable, value in zip(template.variables, block.variables, own, strict=True):
            advance(variable, value, draws.get(id(same), 0))
    if mask is not None:
        attach_mask(y, mask)
    return y


def check_scannable(blocks: Sequence[Any]) -> None:
    """Raise ValueError unless these blocks differ in their weights alone, and JAX is the backend."""
    if NAME != "jax":
        raise ValueError(f"scan_blocks is of JAX, which compiles each block anew; the backend is {NAME}.")
    if len({id(block) for block in blocks}) < len(blocks):
        raise ValueError("Blocks that share their weights (layer_groups) cannot be scanned: they are one already.")
    first = _options(blocks[0])
    for block in blocks:
        check_recomputable(block)
        other = _options(block)
        differing = sorted(name for name in {**first, **other} if first.get(name) != other.get(name))
        if differing or type(block) is not type(blocks[0]):
            raise ValueError(
                f"Blocks that are scanned must be alike; {block.name} differs from {blocks[0].name} in "
                f"{', '.join(differing) or 'its class'}."
            )


def _options(block: Any) -> dict[str, Any]:
    """A block's options, without what each has for itself."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(part) for name, part in value.items() if name not in OWN}
        return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value

    return plain(block.get_config())
