"""What the loss that holds no logits saves: peak memory and time of a loss and its gradients, in chunks and whole.

    python -m benchmarks.memory                 every installed backend, each in its own process
    python -m benchmarks.memory --backend jax   this backend alone

Memory is the peak of the process above what it held before the step; times alternate in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np

from benchmarks.measure import alternate, gradient_step, peak, ratio, run_by_backend

SIZES = dict(tokens=4096, vocabulary=50_257, width=256)


def losses() -> dict[str, Callable]:
    """Name to a loss of states, a table and labels."""
    from keras import ops

    from keras_tfm.ops.linear_crossentropy import linear_crossentropy
    from keras_tfm.ops.losses import token_crossentropy

    def whole(states, table, labels):
        found, counted = token_crossentropy(labels, ops.matmul(states, ops.transpose(table)))
        return ops.sum(found) / ops.sum(counted)

    def chunked(states, table, labels):
        total, counted = linear_crossentropy(states, table, labels)
        return total / counted

    return {"in chunks": chunked, "whole": whole}


def steps(tokens: int) -> dict[str, Callable[[], object]]:
    """Name to what computes the loss and its gradients by states and table, ready to run."""
    random = np.random.default_rng(0)
    states = random.normal(size=(tokens, SIZES["width"])).astype("float32")
    table = random.normal(size=(SIZES["vocabulary"], SIZES["width"])).astype("float32") / 16
    labels = random.integers(0, SIZES["vocabulary"], tokens).astype("int32")
    return {name: gradient_step(loss, (states, table), (labels,)) for name, loss in losses().items()}


def measure(backend: str, rounds: int) -> dict:
    """Bytes and seconds by way of computing."""
    for step in steps(64).values():
        step()  # threads, libraries
    ready = steps(SIZES["tokens"])
    found: dict = {"peak": {name: peak(step) for name, step in ready.items()}}
    times = alternate(ready, rounds, warmup=1)
    found["seconds"] = {name: statistics.median(seconds) for name, seconds in times.items()}
    return found | {"ratio": ratio(times, "in chunks", "whole")}


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | whole logits | in chunks | × | whole logits, time | in chunks | × |",
        "|---|---|---|---|---|---|---|",
    ]
    for backend, found in results.items():
        sizes, seconds = found["peak"], found["seconds"]
        lines.append(
            f"| {backend} | {sizes['whole'] / 2**20:,.0f} MiB | {sizes['in chunks'] / 2**20:,.0f} MiB | "
            f"{sizes['in chunks'] / sizes['whole']:.2f} | {seconds['whole']:.2f} s | {seconds['in chunks']:.2f} s | "
            f"{found['ratio']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("memory", __doc__ or "", measure, table, {"sizes": SIZES})
