"""Models of published sizes on one GPU, in bfloat16: training, generating, and a very long text.

    python -m benchmarks.gpu                 JAX and torch, each in its own process; "not run" where they see no GPU
    python -m benchmarks.gpu --backend jax   this backend alone
    python -m benchmarks.gpu --quick         tiny sizes on whatever is here, to see that it runs; nothing is kept

GPT-2 (124 M, 1024 tokens a row) and BERT-base (512), weights in float32 and computing in bfloat16, Adam, no dropout; beside
torch's steps those of Hugging Face's models, compiled, under autocast, from the same weights. Generation is GPT-2's, all in
bfloat16, beside Hugging Face's, eager. Floors are operations over the rate of a large bfloat16 product, and bytes of
weights over the bandwidth of a large copy, both by the same backend; each call that is timed is waited for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.measure import alternate, in_processes, installed, ratio, save

GPT = dict(vocabulary=50_257, width=768, layers=12, heads=12, intermediate=3072, length=1024, batch=16, dropout=0.0)
BERT = dict(
    vocabulary=30_522, width=768, layers=12, heads=12, intermediate=3072, length=512, batch=32, dropout=0.0, classes=2
)
LONG = 65_536
NEW = 256
TINY = dict(vocabulary=256, width=64, layers=2, heads=2, intermediate=128, length=32, batch=2)
NOT_RUN = "not run"


def sizes(kind: str, tiny: bool) -> dict[str, Any]:
    """Of a model and its batch."""
    return {**(GPT if kind == "gpt" else BERT), **(TINY if tiny else {})}


def gpu(backend: str) -> str | None:
    """The name of the GPU that the backend computes on; None without one."""
    if backend == "jax":
        import jax

        return jax.devices()[0].device_kind if jax.default_backend() == "gpu" else None
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def waited(backend: str, x: Any) -> Any:
    """A result, once it is there."""
    if backend == "jax":
        import jax

        return jax.block_until_ready(x)
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return x


def least(backend: str, call: Callable[[], Any], times: int = 10) -> float:
    """Seconds of the quickest of some calls, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        start = time.perf_counter()
        waited(backend, call())
        found.append(time.perf_counter() - start)
    return min(found[1:])


def rates(backend: str, tiny: bool) -> dict[str, float]:
    """Operations a second of a large product, and bytes a second that a large copy reads."""
    import keras
    from keras import ops

    size = 256 if tiny else 8192
    a, b = (keras.random.normal((size, size), dtype="bfloat16", seed=seed) for seed in (0, 1))
    large = ops.zeros(((1 if tiny else 512) * 2**20,), "float32")
    if backend == "jax":
        import jax

        product, copy = jax.jit(ops.matmul), jax.jit(lambda x: x + 1)
    else:
        product, copy = ops.matmul, lambda x: x + 1
    return {
        "flops": 2 * size**3 / least(backend, lambda: product(a, b)),
        "bandwidth": large.nbytes / least(backend, lambda: copy(large)),
    }


def training(backend: str, kind: str, rounds: int, tiny: bool) -> dict[str, Any]:
    """Seconds of a step by library, and the step's operations."""
    import keras

    s = sizes(kind, tiny)
    keras.config.set_dtype_policy("mixed_bfloat16")
    mine = peers.ours(kind, s)
    steps = {"keras_tfm": peers.keras_step(mine, kind, sizes=s)}
    if backend == "torch":
        import torch

        def logits(model, ids, mask):
            return model(input_ids=ids, attention_mask=mask.long()).logits

        with tempfile.TemporaryDirectory() as folder:
            mine.save_pretrained(folder)
            face = peers.hugging_face(kind, folder, s).to("cuda" if torch.cuda.is_available() else "cpu")
        steps["Hugging Face, compiled"] = peers.torch_step(
            torch.compile(face), kind, logits, fused=True, sizes=s, bfloat16=True
        )
    times = alternate(steps, rounds)
    found = {"seconds": {name: statistics.median(values) for name, values in times.items()}}
    others = [name for name in times if name != "keras_tfm"]
    return {
        **found,
        "ratios": {name: ratio(times, name, "keras_tfm") for name in others},
        "flops": peers.flops(kind, s),
        "tokens": s["batch"] * s["length"],
    }


def generation(backend: str, batch: int, rounds: int, tiny: bool) -> dict[str, Any]:
    """Seconds of a call by library, and the bytes of weights that each of its steps must read."""
    import keras

    s, new = sizes("gpt", tiny), 8 if tiny else NEW
    keras.config.set_dtype_policy("bfloat16")
    mine = peers.ours("gpt", s)
    prompts = np.random.default_rng(1).integers(1, s["vocabulary"], (batch, 16)).astype("int32")
    calls: dict[str, Callable[[], Any]] = {"keras_tfm": lambda: mine.generate(prompts, new)}
    if backend == "torch":
        import torch

        calls["keras_tfm, jit_compile=True"] = lambda: mine.generate(prompts, new, jit_compile=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with tempfile.TemporaryDirectory() as folder:
            mine.save_pretrained(folder)
            face = peers.hugging_face("gpt", folder, s).to(device, torch.bfloat16).eval()
        face.generation_config.eos_token_id = face.generation_config.pad_token_id = None
        ids = torch.from_numpy(prompts.astype("int64")).to(device)

        def theirs():
            with torch.no_grad():
                mask = torch.ones_like(ids)
                return face.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False).cpu()

        calls["Hugging Face"] = theirs
    times = alternate(calls, rounds, warmup=2)
    best = min((name for name in times if name != "Hugging Face"), key=lambda name: statistics.median(times[name]))
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratios": {"Hugging Face": ratio(times, "Hugging Face", best)} if "Hugging Face" in times else {},
        "tokens": batch * new,
        "read": new * 2 * mine.count_params(),
    }


def long(tiny: bool) -> dict[str, float]:
    """Seconds of a second step of GPT-2 with rotary positions on one very long row."""
    import keras

    import keras_tfm as tfm

    keras.config.set_dtype_policy("mixed_bfloat16")
    length = 256 if tiny else LONG
    s = {**sizes("gpt", tiny), "length": length, "batch": 1}
    backbone = tfm.models.gpt(**peers.options_of(s), position="rotary")
    backbone.recompute_blocks()
    model = tfm.CausalLM(backbone)
    model.compile(keras.optimizers.Adam(1e-4), loss="linear_crossentropy", metrics=None)
    ids, _, labels = peers.data("gpt", s)
    losses, start = [], 0.0
    for _ in range(2):
        start = time.perf_counter()
        losses.append(float(np.ravel(model.train_on_batch(ids, labels))[0]))
    if not np.isfinite(losses).all():
        raise SystemExit(f"{length} tokens: the losses are {losses}.")
    return {"length": length, "seconds": time.perf_counter() - start}


def measure(backend: str, rounds: int) -> dict[str, Any]:
    """All figures of one backend, in this process; none without a GPU, but with one round, which is of tiny sizes."""
    name, tiny = gpu(backend), rounds == 1
    if name is None and not tiny:
        return {"gpu": None}
    return {
        "gpu": name,
        "rates": rates(backend, tiny),
        "training": {kind: training(backend, kind, rounds, tiny) for kind in peers.KINDS},
        "generation": {batch: generation(backend, batch, rounds, tiny) for batch in ((1, 2) if tiny else (1, 64))},
        "long": long(tiny),
    }


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = ["| backend | | library | a step, or a call | tokens/s | of the floor | × keras_tfm |", "|---" * 7 + "|"]
    for backend, found in results.items():
        if "rates" not in found:
            lines.append(f"| {backend} | {NOT_RUN}: it sees no GPU | – | – | – | – | – |")
            continue
        rows = [(kind.upper() + ", training", row) for kind, row in found["training"].items()]
        rows += [(f"generating, batch {batch}", row) for batch, row in found["generation"].items()]
        for title, row in rows:
            needed = (
                row["flops"] / found["rates"]["flops"] if "flops" in row else row["read"] / found["rates"]["bandwidth"]
            )
            for name, seconds in row["seconds"].items():
                times = f"{row['ratios'][name]:.2f}" if name in row["ratios"] else "–"
                cells = [backend, title, name, f"{1e3 * seconds:,.1f} ms", f"{row['tokens'] / seconds:,.0f}"]
                lines.append("| " + " | ".join([*cells, f"{needed / seconds:.0%}", times]) + " |")
        row = found["long"]
        rate = f"{row['length'] / row['seconds']:,.0f}"
        lines.append(
            f"| {backend} | {row['length']:,} tokens, training | keras_tfm | {row['seconds']:.1f} s | {rate} | – | – |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("jax", "torch"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes on whatever is here; not kept")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.json:
        print("RESULT " + json.dumps(measure(args.backend, args.rounds)))
        return
    backends = [args.backend] if args.backend else [name for name in ("jax", "torch") if name in installed()]
    results, failed = in_processes("benchmarks.gpu", backends, 1 if args.quick else args.rounds)
    print(table(results))
    if failed:
        raise SystemExit(failed)
    if not args.quick and not args.backend and any(found["gpu"] for found in results.values()):
        print("\nkept as", save("gpu", {"sizes": {"gpt": GPT, "bert": BERT}, "results": results}))


if __name__ == "__main__":
    main()
