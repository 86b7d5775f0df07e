"""An epoch of `fit` over rows of unequal length: padding computed, rows grouped by length, and rows packed.

    python -m benchmarks.padded                 every installed backend, each in its own process; some 8 minutes
    python -m benchmarks.padded --backend jax   this backend alone

A GPT and rows of up to 256 tokens, of which 40 % are filled in the mean. The same rows and the same model each way; losses
are compared first. Epochs alternate in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.measure import alternate, matrix_rate, ratio, run_by_backend

SIZES = {**peers.SIZES, "length": 256, "dropout": 0.0, "rows": 128, "filled": 0.4}
WAYS = "padded", "grouped by length", "packed"


def examples() -> list[dict[str, np.ndarray]]:
    """Rows without padding: ids, and the token that follows each."""
    random = np.random.default_rng(0)
    drawn = random.beta(2, 3, SIZES["rows"])  # whose mean is 0.4
    drawn *= SIZES["filled"] / drawn.mean()
    found = []
    for length in np.clip(np.round(drawn * SIZES["length"]), 2, SIZES["length"]).astype(int):
        ids = random.integers(1, SIZES["vocabulary"], length + 1).astype("int32")
        found.append({"token_ids": ids[:-1], "labels": ids[1:]})
    return found


def padded(rows: list[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and labels, each row filled up to the longest there may be."""
    ids = np.zeros((len(rows), SIZES["length"]), "int32")
    labels = np.full(ids.shape, -100, "int32")
    for place, row in enumerate(rows):
        ids[place, : len(row["token_ids"])], labels[place, : len(row["labels"])] = row["token_ids"], row["labels"]
    return {"token_ids": ids, "padding_mask": labels >= 0}, labels


def packed(rows: list[dict[str, np.ndarray]]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs and labels of packed rows."""
    from keras_tfm.data import pack

    found = pack(rows, SIZES["length"])
    return {name: found[name] for name in ("token_ids", "padding_mask", "segment_ids", "positions")}, found["labels"]


def measure(backend: str, rounds: int) -> dict:
    """Seconds of an epoch each way, in this process."""
    import keras

    import keras_tfm as tfm

    del backend
    rows, batch = examples(), SIZES["batch"]
    model = peers.ours("gpt", SIZES)
    model.compile(keras.optimizers.Adam(1e-4), metrics=None)
    few = rows[:batch]
    losses = [float(np.ravel(model.evaluate(*way(few), batch_size=batch, verbose=0))[0]) for way in (padded, packed)]
    if abs(losses[0] - losses[1]) > 1e-4 * losses[0]:
        raise SystemExit(f"Packed rows have another loss than padded ones: {losses}")
    options: dict[str, Any] = {"batch_size": batch, "verbose": 0}
    whole, full, loose = padded(rows), packed(rows), tfm.data.Examples(rows)
    epochs: dict[str, Callable[[], object]] = {
        "padded": lambda: model.fit(*whole, **options),
        "grouped by length": lambda: model.fit(loose, **options),
        "packed": lambda: model.fit(*full, **options),
    }
    times = alternate(epochs, rounds, warmup=2)
    tokens = sum(len(row["token_ids"]) for row in rows)
    per_token = peers.flops("gpt", SIZES) / (batch * SIZES["length"])
    return {
        "seconds": {way: statistics.median(times[way]) for way in WAYS},
        "ratios": {way: ratio(times, way, "padded") for way in WAYS},
        "filled": tokens / whole[0]["token_ids"].size,
        "packed": tokens / full[0]["token_ids"].size,
        "floor": tokens * per_token / matrix_rate(),
    }


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | padding computed | grouped by length | × | packed | × | filled | packed rows filled | floor |",
        "|---" * 9 + "|",
    ]
    for backend, found in results.items():
        seconds, ratios = found["seconds"], found["ratios"]
        cells = [backend, f"{seconds['padded']:.2f} s"]
        for way in WAYS[1:]:
            cells += [f"{seconds[way]:.2f} s", f"{ratios[way]:.2f}"]
        cells += [f"{found['filled']:.0%}", f"{found['packed']:.0%}", f"{found['floor']:.2f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("padded", __doc__ or "", measure, table, {"sizes": SIZES}, rounds=3)
