"""Sizes that are compiled for: few, and none much larger than what is needed."""

from __future__ import annotations

SMALLEST_PROMPT, SMALLEST_CACHE = 16, 128


def size(needed: int, smallest: int) -> int:
    """The smallest bucket that holds `needed`: powers of two and one and a half times those, from `smallest` on."""
    bucket = smallest
    while bucket < needed:
        step = bucket // 2 if bucket & (bucket - 1) == 0 else bucket // 3
        bucket += step
    return bucket


def prompt(length: int) -> int:
    """For a prompt of this length."""
    return size(length, SMALLEST_PROMPT)


def cache(filled: int, wanted: int) -> int:
    """For a cache with `filled` tokens that is to hold `wanted` in the end: no more than twice what is there."""
    return size(min(wanted, 2 * filled), SMALLEST_CACHE)
