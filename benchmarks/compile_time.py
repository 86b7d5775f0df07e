"""From a model's first line to its first step, and to its first text: making it, tracing, compiling, running once.

    python -m benchmarks.compile_time                 every installed backend, each in its own process
    python -m benchmarks.compile_time --backend jax   this backend alone

A GPT of the sizes of `benchmarks.training`, of several depths, trained on one batch, beside KerasHub's, and on JAX with one
program for all blocks (`scan_blocks`); and a text of 32 new tokens behind 16. A small model comes first and is not counted:
it also loads libraries.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.measure import run_by_backend
from benchmarks.peers import SIZES

DEPTHS = (2, 4, 8, 16)


def scanned(kind: str, sizes: dict) -> Any:
    """This library's model, one program for all blocks."""
    model = peers.ours(kind, sizes)
    model.backbone.scan_blocks()
    return model


def libraries(backend: str) -> dict[str, Callable]:
    """Name to what makes a model."""
    found = {"keras_tfm": peers.ours, "KerasHub": peers.keras_hub}
    return found | ({"scan_blocks": scanned} if backend == "jax" else {})


def first_step(make: Callable, depth: int) -> float:
    """Seconds to make a model and take one step."""
    start = time.perf_counter()
    peers.keras_step(make("gpt", {**SIZES, "layers": depth}), "gpt")()
    return time.perf_counter() - start


def first_text(depth: int) -> tuple[float, float]:
    """Seconds until a model that is there has written a text: the first time, and once more."""
    model = peers.ours("gpt", {**SIZES, "layers": depth})
    prompt = np.arange(1, 17, dtype="int32")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model.generate(prompt, max_new_tokens=32)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def measure(backend: str, rounds: int) -> dict:
    """Seconds by depth; the least of the rounds, and with one round the least depth alone."""
    depths = DEPTHS[:1] if rounds == 1 else DEPTHS
    makers = libraries(backend)
    for make in makers.values():
        first_step(make, 1)
    found = {}
    for depth in depths:
        rows = [{name: first_step(make, depth) for name, make in makers.items()} for _ in range(rounds)]
        texts = [first_text(depth) for _ in range(rounds)]
        found[depth] = {
            "step": {name: min(row[name] for row in rows) for name in makers},
            "text": min(first for first, _ in texts),
            "text again": min(again for _, again in texts),
        }
    return found


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | layers | first step | with `scan_blocks` | KerasHub | × | first text | the same again |",
        "|---" * 8 + "|",
    ]
    for backend, found in results.items():
        for depth, row in found.items():
            ours, theirs = row["step"]["keras_tfm"], row["step"]["KerasHub"]
            scanned = f"{row['step']['scan_blocks']:.1f} s" if "scan_blocks" in row["step"] else "–"
            lines.append(
                f"| {backend} | {depth} | {ours:.1f} s | {scanned} | {theirs:.1f} s | {theirs / ours:.2f} | "
                f"{row['text']:.1f} s | {row['text again']:.2f} s |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("compile_time", __doc__ or "", measure, table, {"sizes": SIZES}, rounds=3)
