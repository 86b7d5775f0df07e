"""One training step of a BERT-like and a GPT-like model, beside what users would take instead.

    python -m benchmarks.training                 every installed backend, each in its own process
    python -m benchmarks.training --backend jax   this backend alone

KerasHub and Keras's own layers on every backend; on torch also Hugging Face, eager and compiled, and x-transformers. All
have the same sizes, data, loss and optimizer; where a library takes the same weights, outputs are compared first. Steps
alternate in one process.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks import peers
from benchmarks.measure import alternate, matrix_rate, ratio, run_by_backend
from benchmarks.peers import SIZES

PRODUCTS = "its products alone"
COMPILED = "Hugging Face, compiled", "keras_tfm, jit_compile=True"


def measure(backend: str, rounds: int) -> dict:
    """The table's rows for one backend, in this process; a quick look leaves out what compiles for minutes."""
    rows = {}
    rate = matrix_rate()
    for kind in peers.KINDS:
        steps = peers.steps(kind, backend)
        quick = rounds <= 3
        if quick:
            steps = {name: step for name, step in steps.items() if name not in COMPILED}
        times = alternate({**steps, PRODUCTS: peers.products(kind)}, rounds, warmup=1 if quick else 3)
        if quick:  # of two rounds no median: the first ones may still ask for memory
            times = {name: [min(found)] for name, found in times.items()}
        rows[kind] = {
            "ms": {name: round(1e3 * statistics.median(times[name]), 1) for name in steps},
            "products_ms": round(1e3 * statistics.median(times[PRODUCTS]), 1),
            "speedup": {name: round(ratio(times, name, "keras_tfm"), 3) for name in steps},
            "floor_ms": round(1e3 * peers.flops(kind) / rate, 1),
            "rounds": rounds,
        }
    return {"matrix_gflops": round(rate / 1e9, 1), "rows": rows}


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    columns = ["backend", "model", "library", "a step", "tokens/s", PRODUCTS, "floor", "reached", "times keras_tfm's"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for backend, result in results.items():
        for kind, row in result["rows"].items():
            for name, ms in row["ms"].items():
                rate = 1e3 * SIZES["batch"] * SIZES["length"] / ms
                cells = [backend, kind.upper(), name, f"{ms} ms", f"{rate:,.0f}"]
                cells += [f"{row['products_ms']} ms", f"{row['floor_ms']} ms"]
                cells += [f"{row['floor_ms'] / ms:.0%}", f"{row['speedup'][name]:.2f}"]
                lines.append("| " + " | ".join(cells) + " |")
    best = best_to_best(results)
    if best:
        lines += ["", "Best backend to best backend: " + "; ".join(best) + "."]
    return "\n".join(lines)


def summary(results: dict[str, dict]) -> str:
    """The results in a line for each backend and model: how many times this library's step the others' take."""
    names = dict.fromkeys(n for result in results.values() for row in result["rows"].values() for n in row["ms"])
    others = [name for name in names if name != "keras_tfm"]
    columns = ["backend", "model", "keras_tfm, ms", "tokens/s", *(f"× {name}" for name in others), "floor, ms"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for backend, result in results.items():
        for kind, row in result["rows"].items():
            ms = row["ms"]["keras_tfm"]
            cells = [backend, kind.upper(), f"{ms}", f"{1e3 * SIZES['batch'] * SIZES['length'] / ms:,.0f}"]
            cells += [f"{row['speedup'][name]:.2f}" if name in row["speedup"] else "–" for name in others]
            lines.append("| " + " | ".join([*cells, f"{row['floor_ms']}"]) + " |")
    return "\n".join(lines)


def best_to_best(results: dict[str, dict]) -> list[str]:
    """What each library takes on the backend that suits it best, beside ours on ours."""
    said = []
    for kind in peers.KINDS:
        found: dict[str, float] = {}
        for result in results.values():
            for name, ms in result["rows"].get(kind, {"ms": {}})["ms"].items():
                library = name.split(",")[0]
                found[library] = min(ms, found.get(library, ms))
        if len(found) > 1:
            others = (
                f"{library} {ms / found['keras_tfm']:.2f}" for library, ms in found.items() if library != "keras_tfm"
            )
            said.append(f"{kind.upper()} in {found['keras_tfm']} ms, and {', '.join(others)} times that")
    return said


def plot(results: dict[str, dict], path: Path) -> None:
    """How many times longer each library's step takes than this one's, a panel a backend."""
    from matplotlib.figure import Figure

    counts = [sum(len(row["ms"]) for row in result["rows"].values()) for result in results.values()]
    figure = Figure(figsize=(9, 0.32 * sum(counts) + 1.1 * len(counts)), dpi=90, layout="constrained")
    panels = figure.subplots(len(counts), 1, squeeze=False, sharex=True, height_ratios=counts)[:, 0]
    for (backend, result), axes in zip(results.items(), panels, strict=True):
        bars = [
            (f"{name}, {kind.upper()}", row["speedup"][name])
            for kind, row in result["rows"].items()
            for name in row["ms"]
        ]
        names, values = zip(*reversed(bars), strict=True)
        colors = ["tab:blue" if name.startswith("keras_tfm") else "silver" for name in names]
        drawn = axes.barh(names, values, color=colors)
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=8)
        axes.axvline(1.0, color="black", lw=0.8)
        axes.set_title(f"{backend}: time of a training step, in keras_tfm's", fontsize=10)
        axes.tick_params(labelsize=8)
        axes.margins(x=0.08)
    figure.savefig(path)


if __name__ == "__main__":
    run_by_backend("training", __doc__ or "", measure, table, {"sizes": SIZES}, rounds=15)
