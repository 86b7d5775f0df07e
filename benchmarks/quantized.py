"""What fewer bits cost and save in generation: weights in int8 and int4, keys and values in int8.

    python -m benchmarks.quantized                 every installed backend, each in its own process
    python -m benchmarks.quantized --backend jax   this backend alone

Tokens a second are of the model of `benchmarks.generation`, whole calls alternating in one process. The perplexity is that
of a real model, stories260k, on a story of its own, where KERAS_TFM_DATA says where that lies.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import numpy as np

from benchmarks.generation import SIZES
from benchmarks.measure import alternate, ratio, run_by_backend

VARIANTS = {
    "float32": (None, None),
    "int8 weights": ("int8", None),
    "int4 weights": ("int4", None),
    "int8 cache": (None, "int8"),
    "int8 weights and cache": ("int8", "int8"),
}


def made(mode: str | None):
    """The model with its weights in `mode`."""
    import keras

    import keras_tfm as tfm

    keras.utils.set_random_seed(0)
    s = SIZES
    model = tfm.CausalLM(
        tfm.models.gpt(
            num_layers=s["layers"],
            hidden_dim=s["width"],
            num_heads=s["heads"],
            intermediate_dim=s["intermediate"],
            vocabulary_size=s["vocabulary"],
            max_sequence_length=s["positions"],
        )
    )
    if mode is not None:
        model.quantize(mode)
    return model


def perplexities() -> dict[str, float]:
    """Of stories260k, by variant; empty without the data."""
    import keras_tfm as tfm

    folder = Path(os.environ.get("KERAS_TFM_DATA", "nowhere")) / "stories260k-hf"
    if not (folder / "golden.json").is_file():
        return {}
    golden = json.loads((folder / "golden.json").read_text("utf-8"))
    ids, found = golden["ids"], {}
    for name, (mode, dtype) in VARIANTS.items():
        model = tfm.CausalLM.from_pretrained(folder)
        if mode is not None:
            model.quantize(mode)
        # Through the cache, a token at a time, whatever it is kept in.
        written = model.generate(ids[:1], len(ids) - 1, forced_tokens=ids[1:], cache_dtype=dtype, return_details=True)
        found[name] = written.perplexity
    return found


def cache_bytes(model, dtype: str | None) -> int:
    """Of keys and values, for one token of one row."""
    import keras

    capacity = 128
    arrays = keras.tree.flatten([part["attention"] for part in model.backbone.make_cache(1, capacity, dtype)])
    return sum(keras.ops.convert_to_numpy(x).nbytes for x in arrays if len(x.shape) == 4) // capacity


def measure(backend: str, rounds: int) -> dict:
    """All figures of one backend, which is this process's."""
    del backend
    prompts = np.random.default_rng(1).integers(1, SIZES["vocabulary"], (1, SIZES["prompt"])).astype("int32")
    models = {mode: made(mode) for mode in (None, "int8", "int4")}
    calls = {
        name: lambda mode=mode, dtype=dtype: models[mode].generate(prompts, SIZES["new"], cache_dtype=dtype)
        for name, (mode, dtype) in VARIANTS.items()
    }
    times = alternate(calls, rounds, warmup=1)
    perplexity = perplexities()
    return {
        name: {
            "tokens/s": SIZES["new"] / statistics.median(times[name]),
            "speed": ratio(times, "float32", name),
            "weights": sum(np.asarray(w).nbytes for w in models[mode].get_weights()),
            "cache": cache_bytes(models[mode], dtype),
            "perplexity": perplexity.get(name),
        }
        for name, (mode, dtype) in VARIANTS.items()
    }


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = ["| backend | | tokens/s | × float32 | weights | cache, a token | perplexity |", "|---" * 7 + "|"]
    for backend, rows in results.items():
        for name, row in rows.items():
            perplexity = "–" if row["perplexity"] is None else f"{row['perplexity']:.3f}"
            lines.append(
                f"| {backend} | {name} | {row['tokens/s']:,.0f} | {row['speed']:.2f} | {row['weights'] / 2**20:.1f} MiB | "
                f"{row['cache']:,} bytes | {perplexity} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("quantized", __doc__ or "", measure, table, {"sizes": SIZES})
