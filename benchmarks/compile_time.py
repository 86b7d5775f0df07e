"""From a model's first line to its first step, and to its first text: making it, tracing, compiling, running once.

    python -m benchmarks.compile_time                 every installed backend, each in its own process
    python -m benchmarks.compile_time --backend jax   this backend alone

A GPT of the sizes of `benchmarks.training`, of several depths, trained on one batch, beside KerasHub's; and a text of 32
new tokens behind 16. A small model comes first and is not counted: it also loads libraries.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks import training
from benchmarks.measure import run_by_backend

DEPTHS = (2, 4, 8)
LIBRARIES: dict[str, Callable] = {"keras_tfm": training.ours, "KerasHub": training.keras_hub}


def first_step(make: Callable, depth: int) -> float:
    """Seconds to make a model and take one step."""
    start = time.perf_counter()
    make("gpt", depth)()
    return time.perf_counter() - start


def first_text(depth: int) -> tuple[float, float]:
    """Seconds until a model that is there has written a text: the first time, and once more."""
    import keras_tfm as tfm

    s = training.SIZES
    model = tfm.CausalLM(
        tfm.models.gpt(
            vocabulary_size=s["vocabulary"],
            hidden_dim=s["width"],
            num_layers=depth,
            num_heads=s["heads"],
            intermediate_dim=s["intermediate"],
            max_sequence_length=s["length"],
        )
    )
    prompt = np.arange(1, 17, dtype="int32")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        model.generate(prompt, max_new_tokens=32)
        seconds.append(time.perf_counter() - start)
    return seconds[0], seconds[1]


def measure(backend: str, rounds: int) -> dict:
    """Seconds by depth; the least of the rounds, and with one round the least depth alone."""
    del backend
    depths = DEPTHS[:1] if rounds == 1 else DEPTHS
    for make in LIBRARIES.values():
        first_step(make, 1)
    found = {}
    for depth in depths:
        rows = [{name: first_step(make, depth) for name, make in LIBRARIES.items()} for _ in range(rounds)]
        texts = [first_text(depth) for _ in range(rounds)]
        found[depth] = {
            "step": {name: min(row[name] for row in rows) for name in LIBRARIES},
            "text": min(first for first, _ in texts),
            "text again": min(again for _, again in texts),
        }
    return found


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | layers | first step | KerasHub | × | first text | the same again |",
        "|---" * 7 + "|",
    ]
    for backend, found in results.items():
        for depth, row in found.items():
            ours, theirs = row["step"]["keras_tfm"], row["step"]["KerasHub"]
            lines.append(
                f"| {backend} | {depth} | {ours:.1f} s | {theirs:.1f} s | {theirs / ours:.2f} | {row['text']:.1f} s | "
                f"{row['text again']:.2f} s |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("compile_time", __doc__ or "", measure, table, {"sizes": training.SIZES}, rounds=3)
