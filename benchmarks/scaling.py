"""A training step as the work grows: depth, width, batch, vocabulary and length, one at a time.

    python -m benchmarks.scaling                 every installed backend, each in its own process; some 15 minutes
    python -m benchmarks.scaling --backend jax   this backend alone

A small GPT beside KerasHub's, float32, steps alternating in one process. An exponent is the slope of the time over
the size, both as logarithms, fitted to all sizes; the floor's shows what the products of matrices alone would do.
"""

from __future__ import annotations

import gc
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks import peers
from benchmarks.measure import alternate, exponent, matrix_rate, run_by_backend

BASE = dict(
    vocabulary=2048, width=128, layers=2, heads=4, intermediate=512, length=128, batch=8, dropout=0.0, classes=2
)
AXES: dict[str, tuple[int, ...]] = {
    "layers": (1, 2, 4, 8),
    "width": (64, 128, 256, 512),
    "batch": (2, 8, 32),
    "vocabulary": (2048, 8192, 32768),
    "length": (64, 256, 1024),
}
LIBRARIES = {"keras_tfm": (peers.ours, "token_type_ids"), "KerasHub": (peers.keras_hub, "segment_ids")}


def sizes(axis: str, value: int) -> dict:
    """The base's, with one changed."""
    changed = {**BASE, axis: value}
    return changed | ({"intermediate": 4 * value} if axis == "width" else {})


def measure(backend: str, rounds: int) -> dict:
    """Seconds of a step and floors, by axis and size."""
    import keras

    del backend
    rate = matrix_rate()
    found: dict = {"matrix_gflops": round(rate / 1e9, 1), "rows": []}
    for axis, values in AXES.items():
        for value in values:
            now = sizes(axis, value)
            steps = {
                name: peers.keras_step(make("gpt", now), "gpt", types, now) for name, (make, types) in LIBRARIES.items()
            }
            times = alternate(steps, rounds)
            found["rows"].append(
                {
                    "axis": axis,
                    "size": value,
                    "seconds": {name: statistics.median(seconds) for name, seconds in times.items()},
                    "floor": peers.flops("gpt", now) / rate,
                }
            )
            del steps
            keras.backend.clear_session()
            gc.collect()
        print(axis, file=sys.stderr, flush=True)
    return found


def _of(found: dict, axis: str, name: str) -> dict[int, float]:
    rows = (row for row in found["rows"] if row["axis"] == axis)
    return {row["size"]: row["floor"] if name == "floor" else row["seconds"][name] for row in rows}


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | what grows | a step | KerasHub | × at the ends | time grows as | KerasHub's | floor's |",
        "|---" * 8 + "|",
    ]
    for backend, found in results.items():
        for axis in AXES:
            mine, theirs, floor = (_of(found, axis, name) for name in (*LIBRARIES, "floor"))
            if not mine:
                continue
            ends = min(mine), max(mine)
            cells = [backend, f"{axis}, {ends[0]:,} to {ends[1]:,}"]
            cells += [f"{1e3 * of[ends[0]]:.0f} to {1e3 * of[ends[1]]:,.0f} ms" for of in (mine, theirs)]
            cells.append(" and ".join(f"{theirs[end] / mine[end]:.2f}" for end in ends))
            cells += [f"n^{exponent(of):.2f}" for of in (mine, theirs, floor)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict], path: Path) -> None:
    """Milliseconds of a step over each size, both axes logarithmic; a row a backend."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.1 * len(AXES), 2.9 * len(results)), dpi=90, layout="constrained")
    rows = figure.subplots(len(results), len(AXES), squeeze=False, sharey="row")
    styles = {"keras_tfm": "o-", "KerasHub": "s--", "floor": ":"}
    for (backend, found), row in zip(results.items(), rows, strict=True):
        for axes, axis in zip(row, AXES, strict=True):
            for name, style in styles.items():
                points = _of(found, axis, name)
                label = f"{name}, n^{exponent(points):.2f}"
                milliseconds = 1e3 * np.array(list(points.values()))
                axes.plot(
                    list(points),
                    milliseconds,
                    style,
                    label=label,
                    markersize=4,
                    color="gray" if name == "floor" else None,
                )
            axes.set(xscale="log", yscale="log", title=f"{backend}: {axis}")
            axes.set_xticks(list(points), [f"{size:,}" for size in points])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        row[0].set_ylabel("ms a step")
    figure.savefig(path)


if __name__ == "__main__":
    run_by_backend("scaling", __doc__ or "", measure, table, {"sizes": BASE, "axes": AXES}, rounds=7)
