"""The most memory that a training step of BERT-base holds: KerasHub's, this library's, and this one's that saves memory.

    python -m benchmarks.bert_memory                 every installed backend; some 20 minutes
    python -m benchmarks.bert_memory --backend jax   this backend alone

Masked words, 8 rows of 512 tokens, float32, Adam. Memory is the peak of the process during a second step above what it held
before the model was made: weights, gradients, Adam's means and all that the step computes. Each model has its own process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.measure import BACKENDS, installed, peak, resident, save
from benchmarks.peers import options_of

SIZES = dict(
    vocabulary=30_522, width=768, layers=12, heads=12, intermediate=3072, length=512, dropout=0.1, batch=8, masked=76
)
WAYS = {
    "KerasHub": "KerasHub",
    "plain": "keras_tfm",
    "remat": "blocks computed again",
    "both": "and the loss in chunks",
    "scanned": "and blocks in one program",  # JAX: `scan_blocks`, whose loop keeps XLA from finding the two passes equal
}


def batch() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids (rows, length), places of masked tokens (rows, masked), and what they were."""
    random = np.random.default_rng(0)
    s = SIZES
    ids = random.integers(1, s["vocabulary"], (s["batch"], s["length"])).astype("int32")
    places = np.stack([np.sort(random.permutation(s["length"])[: s["masked"]]) for _ in range(s["batch"])])
    return ids, places.astype("int32"), np.take_along_axis(ids, places, axis=1)


def keras_hub() -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    """KerasHub's model, its inputs and labels."""
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone(**options_of(SIZES))
    model = keras_hub.models.BertMaskedLM(backbone, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss=loss, weighted_metrics=None, metrics=None)
    ids, places, labels = batch()
    x = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": np.ones_like(ids, bool), "mask_positions": places}
    return model, x, labels


def ours(way: str) -> tuple[Any, dict[str, np.ndarray], np.ndarray]:
    """This library's model, its inputs and labels."""
    import keras

    import keras_tfm as tfm

    backbone = tfm.models.bert(**options_of(SIZES))
    backbone.recompute_blocks(way != "plain")
    if way == "scanned":
        backbone.scan_blocks()
    model = tfm.MaskedLM(backbone)
    loss = "linear_crossentropy" if way in ("both", "scanned") else "auto"
    model.compile(keras.optimizers.Adam(1e-4), loss=loss, metrics=None)
    ids, places, words = batch()
    labels = np.full(ids.shape, -100, "int32")
    np.put_along_axis(labels, places, words, axis=1)
    return model, {"token_ids": ids, "token_type_ids": 0 * ids, "padding_mask": np.ones_like(ids, bool)}, labels


def in_this_process(way: str) -> dict:
    """Bytes and seconds of a second step."""
    import keras

    for library in ("keras_hub", "keras_tfm"):
        importlib.import_module(library)
    keras.ops.convert_to_numpy(keras.ops.ones((8, 8)) @ keras.ops.ones((8, 8)))  # the backend's own beginnings
    start = resident()
    model, x, labels = keras_hub() if way == "KerasHub" else ours(way)
    model.train_on_batch(x, labels)
    seconds: list[float] = []

    def step():
        begun = time.perf_counter()
        model.train_on_batch(x, labels)
        seconds.append(time.perf_counter() - begun)

    return {"bytes": peak(step, start), "seconds": seconds[0], "parameters": model.count_params()}


def measure(backends: list[str]) -> dict[str, dict]:
    """What each way takes on each backend, each in a process of its own."""
    results: dict[str, dict] = {}
    for backend in backends:
        for way in WAYS:
            if way == "scanned" and backend != "jax":
                continue
            environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, "-m", "benchmarks.bert_memory", "--way", way]
            output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                raise SystemExit(output.stdout + output.stderr)
            found = results.setdefault(backend, {})[way] = json.loads(lines[0].removeprefix("RESULT "))
            print(f"{backend}, {WAYS[way]}: {found['bytes'] / 2**20:,.0f} MiB", file=sys.stderr, flush=True)
    return results


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = ["| backend | " + " | ".join(f"{title} | a step" for title in WAYS.values()) + " | of KerasHub's |"]
    lines.append("|---" * (2 * len(WAYS) + 2) + "|")
    for backend, found in results.items():
        cells = [
            f"{found[way]['bytes'] / 2**20:,.0f} MiB | {found[way]['seconds']:.1f} s" if way in found else "– | –"
            for way in WAYS
        ]
        least = min(of["bytes"] for way, of in found.items() if way != "KerasHub")
        lines.append(f"| {backend} | " + " | ".join(cells) + f" | {least / found['KerasHub']['bytes']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print("RESULT " + json.dumps(in_this_process(args.way)))
        return
    results = measure([args.backend] if args.backend else installed())
    print(table(results))
    if not args.backend:
        print("\nkept as", save("bert_memory", {"sizes": SIZES, "results": results}))


if __name__ == "__main__":
    main()
