"""Attention as sequences grow: time and memory of a forward and a backward pass, whole scores and blocks.

    python -m benchmarks.long                 every installed backend, each in its own process; some 10 minutes
    python -m benchmarks.long --backend jax   this backend alone
    python -m benchmarks.long --quick         lengths 2048 and 4096

4 heads of 64, float32, batch 1. Passes of one length alternate in one process; memory is the peak of the process above what
it held before, on TensorFlow, which gives nothing back, that of a first pass in a process of its own, from length 8192 on;
the floor is the products of matrices over the rate of a large one. Whole scores are computed as far as the machine's memory
holds them; the longest that are, 4.3 GB several times over, without causality alone.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import alternate, available, exponent, gradient_step, matrix_rate, peak, run_by_backend

SIZES = dict(heads=4, head_dim=64, window=512)
LENGTHS = (1024, 2048, 4096, 8192, 16384)
QUICK = (2048, 4096)
APART = 8192  # from here on TensorFlow's memory is measured
COPIES = {"tensorflow": 4, "jax": 7, "torch": 4}  # arrays as large as the scores that a pass over whole ones holds
ROUNDS = {1024: 15, 2048: 9, 4096: 5, 8192: 3, 16384: 3}
KINDS: dict[str, dict] = {"all": {}, "causal": {"causal": True}, "window": {"causal": True, "window": SIZES["window"]}}
NAMES = {"dense": "whole scores", "blockwise": "blocks", "fused": "torch's own"}


def ways(backend: str, length: int) -> list[tuple[str, str]]:
    """(kernel, kind) of what is measured at a length."""
    found = [("blockwise", kind) for kind in KINDS]
    if COPIES[backend] * 4 * SIZES["heads"] * length**2 < 0.9 * available():
        found += [("dense", "all")] + ([("dense", "causal")] if length < LENGTHS[-1] else [])
    if backend == "torch":
        found += [("fused", "all"), ("fused", "causal")]
    return found


def seen(kind: str, length: int) -> int:
    """Pairs of query and key."""
    if kind == "all":
        return length * length
    past = length * (length + 1) // 2
    window = min(SIZES["window"], length)
    return past if kind == "causal" else past - (length - window) * (length - window + 1) // 2


def step(kernel: str, kind: str, length: int) -> Callable[[], object]:
    """A forward and a backward pass, ready to run."""
    from keras import ops

    from keras_tfm.ops import attention

    random = np.random.default_rng(0)
    shape = (1, length, SIZES["heads"], SIZES["head_dim"])
    arrays = [random.normal(size=shape).astype("float32") for _ in range(4)]

    def loss(query, key, value, weights):
        return ops.sum(attention(query, key, value, kernel=kernel, **KINDS[kind]) * weights)

    return gradient_step(loss, arrays[:3], arrays[3:])


def peak_of_first(kernel: str, kind: str, length: int) -> int:
    """Bytes that a first pass takes, in this process, which has made a short one."""
    step(kernel, kind, 64)()
    return peak(step(kernel, kind, length))


def peaks_apart(ways: list[tuple[str, str]], length: int) -> dict[tuple[str, str], int | None]:
    """Bytes of a first pass by way, each in a process of its own; None for lengths of which they are not measured."""
    if length < APART:
        return dict.fromkeys(ways)
    found: dict[tuple[str, str], int | None] = {}
    for way in ways:
        code = f"from benchmarks import long; print('PEAK', long.peak_of_first{(*way, length)})"
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found[way] = int(output.stdout.split("PEAK ")[1])
    return found


def measure(backend: str, rounds: int) -> dict:
    """Seconds, bytes and floors by length and way. Rounds are at most what `ROUNDS` says; with one, of `QUICK` alone."""
    rate = matrix_rate()
    found: dict = {"matrix_gflops": round(rate / 1e9, 1), "rows": []}
    for length in QUICK if rounds == 1 else LENGTHS:
        found_ways = ways(backend, length)
        bytes_ = peaks_apart(found_ways, length) if backend == "tensorflow" else {}
        steps = {way: step(*way, length) for way in found_ways}
        for run in steps.values():
            run()  # threads, libraries, compilation
        bytes_ = bytes_ or {way: peak(run) for way, run in steps.items()}
        times = alternate(steps, max(1, min(rounds, ROUNDS[length])), warmup=0)
        for (kernel, kind), seconds in times.items():
            work = 6 * 2 * seen(kind, length) * SIZES["heads"] * SIZES["head_dim"]
            found["rows"].append(
                {
                    "kernel": kernel,
                    "kind": kind,
                    "length": length,
                    "seconds": statistics.median(seconds),
                    "peak": bytes_[kernel, kind],
                    "floor": work / rate,
                }
            )
        print(f"{backend}: {length}", file=sys.stderr, flush=True)
    return found


def _of(found: dict, kernel: str, kind: str, what: str) -> dict[int, float]:
    rows = (row for row in found["rows"] if (row["kernel"], row["kind"]) == (kernel, kind))
    return {row["length"]: row[what] for row in rows if row[what] is not None}


def table(results: dict[str, dict]) -> str:
    """The results as Markdown: by way the longest lengths, then ratios."""
    ends = sorted({row["length"] for found in results.values() for row in found["rows"]})[-4:]
    head = [
        "backend",
        "scores",
        "sees",
        *(f"{n:,}" for n in ends),
        "time grows as",
        "× its floor",
        f"memory at {ends[-2]:,}",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for backend, found in results.items():
        for kernel, kind in itertools.product(NAMES, KINDS):
            seconds, floors = _of(found, kernel, kind, "seconds"), _of(found, kernel, kind, "floor")
            if not seconds:
                continue
            memory = _of(found, kernel, kind, "peak").get(ends[-2])
            last = max(seconds)
            cells = [backend, NAMES[kernel], f"{kind} {SIZES['window']}" if kind == "window" else kind]
            cells += [f"{seconds[n]:.2f} s" if n in seconds else "–" for n in ends]
            cells += [f"n^{exponent(seconds, 2048):.2f}", f"{seconds[last] / floors[last]:.2f}"]
            cells.append("–" if memory is None else f"{memory / 2**20:,.0f} MiB")
            lines.append("| " + " | ".join(cells) + " |")
    head = ["backend", "length", "memory of blocks / whole", "time", "causal / all", "whole / window"]
    lines += ["", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for (backend, found), length in itertools.product(results.items(), ends[-2:]):
        whole, blocks, causal, window = (
            {what: _of(found, kernel, kind, what).get(length) for what in ("seconds", "peak")}
            for kernel, kind in (
                ("dense", "all"),
                ("blockwise", "all"),
                ("blockwise", "causal"),
                ("blockwise", "window"),
            )
        )
        cells = [f"1/{whole['peak'] / blocks['peak']:.0f}" if whole["peak"] and blocks["peak"] else "–"]
        for of, to, digits in ((blocks, whole, 2), (causal, blocks, 2), (whole, window, 1)):
            there = of["seconds"] and to["seconds"]
            cells.append(f"{of['seconds'] / to['seconds']:.{digits}f}" if there else "–")
        lines.append("| " + " | ".join([backend, f"{length:,}", *cells]) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict], path: Path) -> None:
    """Time and memory over length, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4 * len(results)), dpi=90, layout="constrained")
    rows = figure.subplots(len(results), 2, squeeze=False)
    for (backend, found), (left, right) in zip(results.items(), rows, strict=True):
        for place, (kernel, kind) in enumerate(itertools.product(NAMES, KINDS)):
            label = f"{NAMES[kernel]}, {kind}"
            for axes, what, unit in ((left, "seconds", 1.0), (right, "peak", 2.0**20)):
                points = {n: value / unit for n, value in _of(found, kernel, kind, what).items() if value > 0}
                if points:
                    style = {"dense": "--", "blockwise": "-", "fused": ":"}[kernel]
                    axes.plot(
                        points.keys(), points.values(), style, marker="osD^vPX<>"[place], label=label, markersize=4
                    )
        floors = _of(found, "blockwise", "causal", "floor")
        left.plot(floors.keys(), floors.values(), color="gray", lw=0.8, label="floor of causal: products alone")
        for axes, title in (
            (left, f"{backend}: seconds, forward and backward"),
            (right, f"{backend}: peak memory, MiB"),
        ):
            axes.set(xscale="log", yscale="log", xlabel="length", title=title)
            axes.set_xticks(sorted(floors), [f"{n:,}" for n in sorted(floors)])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        left.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    run_by_backend("long", __doc__ or "", measure, table, {"sizes": SIZES})
