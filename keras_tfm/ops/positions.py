"""Position arithmetic, always in float32: sinusoids, rotary angles and their scalings, ALiBi slopes, T5 buckets.

Tables and constants are made in NumPy float64 and rounded once; only what depends on the run's positions is computed
on the backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.ops.backend import Tensor


def sinusoidal(positions: Tensor, dim: int, *, base: float = 10_000.0, interleaved: bool = True) -> Tensor:
    """Sinusoids of Vaswani et al. 2017, section 3.5: sin and cos of position / base^(2i/dim).

    Args:
        positions: (..., length) integers.
        dim: Width, even.
        base: Ratio of the longest to the shortest wavelength.
        interleaved: sin and cos alternate, as in the paper; otherwise all sines, then all cosines (tensor2tensor, Marian).

    Returns:
        (..., length, dim), float32.
    """
    frequencies = ops.convert_to_tensor(base ** (-np.arange(0, dim, 2) / dim), dtype="float32")
    angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * frequencies  # (..., length, dim / 2)
    parts = [ops.sin(angles), ops.cos(angles)]
    if not interleaved:
        return ops.concatenate(parts, axis=-1)
    paired = ops.stack(parts, axis=-1)  # (..., length, dim / 2, 2)
    return ops.reshape(paired, (*ops.shape(angles)[:-1], dim))


def default(length: int | Tensor, padding_mask: Tensor | None, segment_ids: Tensor | None) -> Tensor | None:
    """Positions of tokens where the caller gives none: counted over real tokens, anew in every packed segment.

    Args:
        length: Of the sequence.
        padding_mask: (batch, length), true = a token, or None.
        segment_ids: (batch, length) int, each segment one run of equal ids, or None.

    Returns:
        (batch, length) int32, or None where they are 0, 1, 2, …: a row padded on the left counts as the same row
        unpadded, a packed segment as the same segment alone.
    """
    if padding_mask is None and segment_ids is None:
        return None
    if padding_mask is None:
        before = ops.broadcast_to(ops.arange(length, dtype="int32")[None], ops.shape(segment_ids))
        count = before
    else:
        real = ops.cast(ops.cast(padding_mask, "bool"), "int32")
        count = ops.cumsum(real, axis=1) - 1  # real tokens up to here, this one as 0
        before = count + 1 - real
    if segment_ids is None:
        return ops.maximum(count, 0)
    # A segment begins at a change of ids; the real tokens before that are a running maximum, for they never get fewer.
    changes = ops.not_equal(segment_ids[:, 1:], segment_ids[:, :-1])
    begins = ops.concatenate([ops.ones_like(segment_ids[:, :1], dtype="bool"), changes], axis=1)
    return ops.maximum(count - running_maximum(ops.where(begins, before, 0)), 0)


def running_maximum(x: Tensor) -> Tensor:
    """Cumulative maximum along the last axis of (batch, length) integers, in log2(length) shifted comparisons."""
    steps = ops.arange(ops.shape(x)[1], dtype="int32")[None, :]
    if isinstance(x.shape[1], int):
        shift = 1
        while shift < x.shape[1]:
            x = ops.maximum(x, ops.pad(x, ((0, 0), (shift, 0)))[:, : x.shape[1]])
            shift *= 2
        return x
    earlier = steps[:, :, None] >= steps[:, None, :]  # (1, length, length); the length is not known before running
    return ops.max(ops.where(earlier, x[:, None, :], 0), axis=-1)


# Rotary embedding ----------------------------------------------------------------------------------------------------

ROPE_SCALINGS: dict[str, tuple[str, ...]] = {
    # kind: the options it takes; those without a default in `_SCALING_DEFAULTS` are required
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_length"),
    "yarn": (
        "factor",
        "original_max_length",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "llama3": ("factor", "original_max_length", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor", "original_max_length", "factor", "attention_factor"),
}
_SCALING_DEFAULTS: dict[str, Any] = dict(
    beta_fast=32.0, beta_slow=1.0, attention_factor=None, mscale=None, mscale_all_dim=None, truncate=True
)


def check_rope_scaling(scaling: Mapping[str, Any] | None, dim: int | None = None) -> None:
    """Raise ValueError unless `scaling` is None or {"kind": ..., options}; with `dim`, also check the factor lists."""
    if scaling is None:
        return
    kind = scaling.get("kind")
    if kind not in ROPE_SCALINGS:
        raise ValueError(f"Unknown rotary scaling kind={kind!r}; one of {sorted(ROPE_SCALINGS)} is expected.")
    options = set(scaling) - {"kind"}
    unknown = options - set(ROPE_SCALINGS[kind])
    if unknown:
        raise ValueError(f"Rotary scaling {kind!r} does not take {sorted(unknown)}; it takes {ROPE_SCALINGS[kind]}.")
    optional = {*_SCALING_DEFAULTS, *(("factor",) if kind == "longrope" else ())}
    missing = [name for name in ROPE_SCALINGS[kind] if name not in options and name not in optional]
    if missing:
        raise ValueError(f"Rotary scaling {kind!r} needs {missing} too; got {dict(scaling)}.")
    if dim is not None and kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(scaling[name]) != dim // 2:
                raise ValueError(
                    f"Rotary scaling {name} needs {dim // 2} numbers, half the rotated width; got {len(scaling[name])}."
                )


def rope_frequencies(
    dim: int, base: float = 10_000.0, scaling: Mapping[str, Any] | None = None, *, long: bool = False
) -> np.ndarray:
    """Inverse frequencies of rotary embedding, (dim / 2,) float64: base^(-2i/dim), then scaled for longer contexts.

    Kinds: "linear" (Chen et al. 2023), "yarn" (Peng et al. 2023, eq. 17 to 23), "llama3" (Llama 3.1's frequency bands),
    "longrope" (Ding et al. 2024; `long` picks the long factors). "dynamic" depends on the run's length: see
    `rope_dynamic_frequencies`; below its original length it is unscaled, as here.
    """
    inverse = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if scaling is None or scaling["kind"] == "dynamic":
        return inverse
    options = {**_SCALING_DEFAULTS, **scaling}
    kind = options["kind"]
    if kind == "linear":
        return inverse / options["factor"]
    if kind == "longrope":
        return inverse / np.asarray(options["long_factor" if long else "short_factor"], np.float64)
    length = options["original_max_length"]
    if kind == "llama3":
        # Long wavelengths are divided by the factor, short ones kept, the band between blended.
        low, high = options["low_freq_factor"], options["high_freq_factor"]
        turns = length * inverse / (2 * np.pi)  # full turns within the original context
        blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - blend) * inverse / options["factor"] + blend * inverse

    def dimension_of(turns: float) -> float:  # the (fractional) pair that makes so many turns
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = dimension_of(options["beta_fast"]), dimension_of(options["beta_slow"])
    if options["truncate"]:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - first) / max(last - first, 0.001), 0.0, 1.0)
    return inverse * (1 - ramp) + inverse / options["factor"] * ramp


def rope_dynamic_frequencies(dim: int, base: float, factor: float, original_max_length: int, length: Tensor) -> Tensor:
    """Dynamic NTK (bloc97 & emozilla 2023): the base grows with the run's `length` once it passes the original one.

    `length` is a scalar tensor or int; the result is (dim / 2,) float32.
    """
    length = ops.maximum(ops.cast(length, "float32"), float(original_max_length))
    stretch = factor * length / original_max_length - (factor - 1.0)
    exponents = ops.convert_to_tensor(np.arange(0, dim, 2) / dim, dtype="float32")
    log_base = math.log(base) + ops.log(stretch) * (dim / (dim - 2))
    return ops.exp(-exponents * log_base)


def rope_attention_factor(scaling: Mapping[str, Any] | None) -> float:
    """What cos and sin are multiplied with: 0.1 ln(factor) + 1 for YaRN, sqrt(1 + ln s / ln L) for LongRoPE, else 1."""
    if scaling is None or scaling["kind"] not in ("yarn", "longrope"):
        return 1.0
    options = {**_SCALING_DEFAULTS, "factor": None, **scaling}
    if options["attention_factor"] is not None:
        return float(options["attention_factor"])
    factor = options["factor"]
    if options["kind"] == "longrope":
        if factor is None or factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(factor) / math.log(options["original_max_length"]))

    def magnitude(scale: float = 1.0) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if options["mscale"] and options["mscale_all_dim"]:
        return magnitude(options["mscale"]) / magnitude(options["mscale_all_dim"])
    return magnitude()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Turn pairs of features by angles (Su et al. 2021, eq. 34), in float32, returned in the dtype of `x`.

    Args:
        x: (batch, length, heads, head_dim); the first 2 * angles features turn, the rest pass.
        cos: (batch or 1, length, 1, angles), float32. `sin` likewise.
        interleaved: pairs are neighbours (GPT-J, the paper) rather than halves (GPT-NeoX, Llama).
    """
    angles = cos.shape[-1]
    turning = ops.cast(x[..., : 2 * angles], "float32")
    if interleaved:
        first, second = turning[..., 0::2], turning[..., 1::2]
    else:
        first, second = turning[..., :angles], turning[..., angles:]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        result = ops.reshape(ops.stack(turned, axis=-1), ops.shape(turning))
    else:
        result = ops.concatenate(turned, axis=-1)
    result = ops.cast(result, x.dtype)
    if 2 * angles == x.shape[-1]:
        return result
    return ops.concatenate([result, x[..., 2 * angles :]], axis=-1)


# Biases --------------------------------------------------------------------------------------------------------------


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slopes of ALiBi (Press et al. 2022): 2^(-8h/n) for n a power of two, interleaved from 2n for the heads beyond.

    Returns (num_heads,) float32.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    finer = [2 ** (-8 * (h + 1) / (2 * power)) for h in range(0, 2 * power, 2)]
    return np.asarray(slopes + finer[: num_heads - power], np.float32)


def relative_buckets(relative_position: Tensor, *, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """T5's buckets of key position minus query position (Raffel et al. 2020): exact when near, logarithmic when far.

    Any shape of integers; the same shape of int32 in [0, num_buckets). The bucket of each distance is looked up in a
    table made once, so that no backend's logarithm can put a boundary elsewhere.
    """
    per_side = num_buckets // 2 if bidirectional else num_buckets
    exact = per_side // 2
    distances = np.arange(max_distance + 1)
    ratio = np.log(np.maximum(distances, 1).astype(np.float32) / exact) / np.float32(math.log(max_distance / exact))
    logarithmic = exact + (ratio * np.float32(per_side - exact)).astype(np.int32)
    table = np.where(distances < exact, distances, np.minimum(logarithmic, per_side - 1)).astype(np.int32)
    relative_position = ops.cast(relative_position, "int32")
    distance = ops.abs(relative_position) if bidirectional else ops.maximum(-relative_position, 0)
    bucket = ops.take(ops.convert_to_tensor(table), ops.minimum(distance, max_distance), axis=0)
    if bidirectional:
        bucket = bucket + ops.where(relative_position > 0, per_side, 0)
    return ops.cast(bucket, "int32")


def disentangled_rows(distance: Tensor, *, num_rows: int | None, max_distance: int) -> Tensor:
    """DeBERTa's row of query position minus key position, far keys ahead first, far keys behind last.

    One row a distance, up to max_distance either way (He et al. 2021, eq. 3); or, with `num_rows`, only half of them
    so and the farther ones logarithmic (He et al. 2023, DeBERTaV2 and V3). As in `relative_buckets`, a table is made once.

    Any shape of integers; the same shape of int32 in [0, num_rows or 2 * max_distance).
    """
    distance = ops.cast(distance, "int32")
    if num_rows is None:
        return ops.clip(distance, -max_distance, max_distance - 1) + max_distance
    per_side, middle = num_rows // 2, num_rows // 4
    near = np.arange(max_distance + 1)
    log = np.log((np.maximum(near, middle) / middle).astype(np.float32))
    ratio = log / np.log(np.float32((max_distance - 1) / middle))
    far = np.ceil(ratio * np.float32(middle - 1)).astype(np.int32) + middle
    table = np.where(near <= middle, near, far).astype(np.int32)
    steps = ops.take(ops.convert_to_tensor(table), ops.minimum(ops.abs(distance), max_distance), axis=0)
    return ops.clip(ops.where(distance < 0, -steps, steps), -per_side, per_side - 1) + per_side
