"""Bytes and counts as people write them."""

from __future__ import annotations

import re

_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


def bytes_of(size: int | float | str, name: str = "memory") -> int:
    """Bytes of a size: 80 GB are 80 * 10^9 of them, 80 GiB are 80 * 2^30; a number is bytes already.

    Raises:
        ValueError: for what is no positive size, naming the argument `name`.
    """
    found = None
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        factor = None if match is None else {**_FACTORS, **_BINARY}.get(match[2].lower())
        found = None if match is None or factor is None else float(match[1]) * factor
    elif isinstance(size, (int, float)) and not isinstance(size, bool):
        found = float(size)
    if found is None or not 1 <= found < float("inf"):
        raise ValueError(f"{name} must be bytes, or a size such as '80GiB' or '80 GB'; got {size!r}.")
    return int(found)


def said(size: float) -> str:
    """Bytes in binary units, such as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"


def count(value: float) -> str:
    """A count with its thousands named, such as "1.2 M"."""
    for factor, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= factor:
            return f"{value / factor:.1f}{unit}"
    return f"{value:.0f}"
