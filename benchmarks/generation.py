"""Tokens a second of greedy generation: keras_tfm, KerasHub and Hugging Face, with the same weights.

    python -m benchmarks.generation                 every installed backend, each in its own process
    python -m benchmarks.generation --backend jax   this backend alone

Whole calls alternate in one process (Hugging Face's torch model beside each backend), after all gave the same tokens.
Beside them stand the floor of a step, which is to read the weights once, and what a long text costs, beside how long all
cores take to read the weights and the cache again and again.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from benchmarks.measure import alternate, ratio, reading_rate, run_by_backend

SIZES = dict(vocabulary=8192, width=256, layers=4, heads=4, intermediate=1024, prompt=32, new=256, positions=1024)
OURS, PEERS = ("keras_tfm", "jit_compile"), ("KerasHub", "Hugging Face")


def models():
    """The model in KerasHub, in Hugging Face, and ours, one set of weights in all."""
    import keras
    import keras_hub
    import transformers

    import keras_tfm as tfm

    s = SIZES
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=s["vocabulary"],
        num_layers=s["layers"],
        num_heads=s["heads"],
        hidden_dim=s["width"],
        intermediate_dim=s["intermediate"],
        max_sequence_length=s["positions"],
        dropout=0.0,
    )
    for variable in backbone.weights:  # livelier than at the start, so that the likeliest token is never in doubt
        variable.assign(4.0 * keras.ops.convert_to_tensor(variable))
    hub = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    hub.compile(sampler="greedy")
    ours = tfm.from_keras_hub(hub)
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        face = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    face.generation_config.eos_token_id = face.generation_config.pad_token_id = None
    return hub, face, ours


def calls(hub, face, ours, batch: int) -> dict[str, Callable[[], np.ndarray]]:
    """Each library's whole call, giving (batch, new) ids."""
    import keras
    import torch

    s = SIZES
    prompts = np.random.default_rng(1).integers(1, s["vocabulary"], (batch, s["prompt"])).astype("int32")
    padded = np.zeros((batch, s["prompt"] + s["new"]), "int32")
    padded[:, : s["prompt"]] = prompts
    given = {
        "token_ids": padded,
        "padding_mask": np.broadcast_to(np.arange(padded.shape[1]) < s["prompt"], padded.shape),
    }
    ids, mask = torch.from_numpy(prompts.astype("int64")), torch.ones((batch, s["prompt"]), dtype=torch.int64)

    def theirs():
        with torch.no_grad():
            out = face.generate(ids, attention_mask=mask, max_new_tokens=s["new"], do_sample=False, use_cache=True)
        return out[:, s["prompt"] :].numpy()

    compiled = {"jit_compile": lambda: np.stack(ours.generate(prompts, s["new"], jit_compile=True))}
    return {
        "keras_tfm": lambda: np.stack(ours.generate(prompts, s["new"])),
        **(compiled if keras.backend.backend() == "torch" else {}),
        "KerasHub": lambda: np.asarray(hub.generate(given, stop_token_ids=None)["token_ids"])[:, s["prompt"] :],
        "Hugging Face": theirs,
    }


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that a large copy reads."""
    source = np.ones(megabytes << 17)
    target = np.empty_like(source)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return source.nbytes / best


def seconds(call: Callable[[], object], rounds: int) -> float:
    """The median time of a call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def lengths(ours, rounds: int, jit_compile: bool | None = None) -> dict[str, float]:
    """What long texts cost: the time to the first token, and of a token early and late, beside reading what it reads."""
    import keras

    from keras_tfm.generation.request import Request

    prompt = np.random.default_rng(2).integers(1, SIZES["vocabulary"], 16).tolist()

    def first(limit: int) -> float:
        def call():
            batch = Request(ours, prompt, limit, jit_compile=jit_compile).batch()
            batch.advance(1)
            batch.tokens()

        call()
        return seconds(call, 4 * rounds)

    few, many = first(20), first(1000)
    batch = Request(ours, prompt, 1000, jit_compile=jit_compile).batch()
    while batch.advance(50):  # compiles what is needed
        pass
    parts: dict[int, list[float]] = {}
    weights = sum(x.nbytes for x in ours.get_weights())
    read: dict[int, int] = {}  # bytes of weights and of the cache
    for _ in range(max(rounds // 2, 2)):
        batch = Request(ours, prompt, 1000, jit_compile=jit_compile).batch()
        for begin in range(0, 1000, 50):
            start = time.perf_counter()
            batch.advance(50)
            parts.setdefault(begin, []).append((time.perf_counter() - start) / 50)
            read[begin] = weights + sum(np.asarray(x).nbytes for x in keras.tree.flatten(batch.state["cache"]))
    found = {"first token of 20": few, "first token of 1000": many}
    for begin in (50, 950):
        found[f"token {begin}-{begin + 50}"] = statistics.median(parts[begin])
        found[f"reading {begin}-{begin + 50}"] = read[begin] / reading_rate(read[begin], os.cpu_count() or 1)
    return found


def measure(backend: str, rounds: int) -> dict:
    """All figures of one backend, in this process."""
    hub, face, ours = models()
    weights = sum(
        variable.nbytes if hasattr(variable, "nbytes") else 0 for variable in map(np.asarray, ours.get_weights())
    )
    bandwidth = copy_bandwidth()
    results: dict = {"floor": weights / bandwidth, "bandwidth": bandwidth, "weights": weights, "rows": {}}
    for batch in (1, 8):
        every = calls(hub, face, ours, batch)
        tokens = {name: call() for name, call in every.items()}  # compiles, too
        same = {name: float((found == tokens["keras_tfm"]).mean()) for name, found in tokens.items()}
        if min(same.values()) < 0.99:
            raise SystemExit(f"The models disagree, so their times say nothing: {same} of the tokens are ours.")
        times = alternate(every, rounds, warmup=1)
        for mine in OURS:
            if mine in times:
                seconds = {name: statistics.median(times[name]) for name in PEERS}
                results["rows"][f"{batch}, {mine}" if mine != OURS[0] else str(batch)] = {
                    "seconds": {"keras_tfm": statistics.median(times[mine]), **seconds},
                    "ratios": {name: ratio(times, name, mine) for name in PEERS},
                    "tokens": batch * SIZES["new"],
                }
    results["lengths"] = {OURS[0]: lengths(ours, rounds)}
    if backend == "torch":
        results["lengths"][OURS[1]] = lengths(ours, rounds, jit_compile=True)
    results["backend"] = backend
    return results


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | batch | keras_tfm | KerasHub | Hugging Face | × KerasHub | × Hugging Face | a step | its floor |",
        "|---" * 9 + "|",
    ]
    for backend, found in results.items():
        for batch, row in found["rows"].items():
            rate = {name: f"{row['tokens'] / value:,.0f} tokens/s" for name, value in row["seconds"].items()}
            step = row["seconds"]["keras_tfm"] / SIZES["new"] * 1e3
            lines.append(
                f"| {backend} | {batch} | {rate['keras_tfm']} | {rate['KerasHub']} | {rate['Hugging Face']} | "
                f"{row['ratios']['KerasHub']:.2f} | {row['ratios']['Hugging Face']:.2f} | {step:.2f} ms | "
                f"{found['floor'] * 1e3:.2f} ms |"
            )
    names = "first token, of 20 | of 1000 | a token at 50-100 | reading alone | at 950-1000 | reading alone"
    lines += [
        "",
        f"| backend | {names} | late / early | reading alone |",
        "|---" * 9 + "|",
    ]
    for backend, found in results.items():
        for mine, values in found["lengths"].items():
            cells = " | ".join(f"{value * 1e3:.2f} ms" for value in values.values())
            _, _, early, read_early, late, read_late = values.values()
            name = backend if mine == OURS[0] else f"{backend}, {mine}"
            lines.append(f"| {name} | {cells} | {late / early:.2f} | {read_late / read_early:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("generation", __doc__ or "", measure, table, {"sizes": SIZES})
