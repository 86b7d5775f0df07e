"""A character GPT on Tiny Shakespeare: how fast it learns, beside the same model in plain torch, eager.

    python -m benchmarks.char_gpt                 every installed backend, each in its own process
    python -m benchmarks.char_gpt --backend jax   this backend alone

nanoGPT's settings for a CPU: 4 layers of width 128, 0.80 M parameters, blocks of 64 characters, 12 to a batch, 2000 steps
without dropout. The text is `$KERAS_TFM_DATA/shakespeare/input.txt`; the last tenth is held out.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.measure import alternate, matrix_rate, ratio, run_by_backend

SIZES = dict(layers=4, width=128, heads=4, block=64, batch=12, steps=2000, warmup=100, peak=1e-3, end=1e-4)
AT_ONCE = 50  # steps of ours between two looks by Python, where the backend can
STRETCH = 100  # steps that are timed together


def characters() -> tuple[np.ndarray, np.ndarray, int]:
    """Ids to train on, ids held out, and how many different characters there are."""
    folder = os.environ.get("KERAS_TFM_DATA")
    if not folder:
        raise SystemExit("KERAS_TFM_DATA is not set: it names the folder that has shakespeare/input.txt.")
    text = (Path(folder) / "shakespeare" / "input.txt").read_text("utf-8")
    alphabet = sorted(set(text))
    ids = np.array([alphabet.index(character) for character in text], "int32")
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(alphabet)


def blocks(ids: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows, block) inputs and the characters that follow them."""
    places = starts[:, None] + np.arange(SIZES["block"])
    return ids[places], ids[places + 1]


def drawn(ids: np.ndarray, steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blocks from anywhere, for so many steps."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - SIZES["block"] - 1, steps * SIZES["batch"])
    return blocks(ids, starts)


def learning_rate(step: int) -> float:
    """Linear warmup, then half a cosine."""
    s = SIZES
    if step < s["warmup"]:
        return s["peak"] * step / s["warmup"]
    progress = (step - s["warmup"]) / (s["steps"] - s["warmup"])
    return s["end"] + 0.5 * (s["peak"] - s["end"]) * (1 + math.cos(math.pi * progress))


def ours(vocabulary: int, jit_compile: bool | str = "auto"):
    """The model, compiled with Keras's `jit_compile`."""
    import keras

    import keras_tfm as tfm

    s = SIZES
    keras.utils.set_random_seed(0)
    backbone = tfm.models.gpt(
        num_layers=s["layers"],
        hidden_dim=s["width"],
        num_heads=s["heads"],
        vocabulary_size=vocabulary,
        max_sequence_length=s["block"],
        dropout=0.0,
        initializer_range=0.02
        / 0.88,  # nanoGPT does not cut its normal: cut at two, this one has its deviation of 0.02
    )
    model = tfm.CausalLM(backbone)
    schedule = tfm.training.WarmupSchedule(s["peak"], s["warmup"], s["steps"], "cosine", end=s["end"])
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_2=0.99, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    at_once = 1 if keras.backend.backend() == "torch" else AT_ONCE
    model.compile(optimizer, metrics=None, steps_per_execution=at_once, jit_compile=jit_compile)
    return model


def plain_torch(vocabulary: int, ids: np.ndarray) -> Callable[[], float]:
    """The same model as a few modules and a loop; calling it takes a stretch of steps and gives the last loss."""
    import torch
    from torch import nn
    from torch.nn import functional

    s = SIZES

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(s["width"]) for _ in range(2))
            self.qkv, self.out = nn.Linear(s["width"], 3 * s["width"]), nn.Linear(s["width"], s["width"])
            self.up, self.down = nn.Linear(s["width"], 4 * s["width"]), nn.Linear(4 * s["width"], s["width"])

        def forward(self, x):
            rows, length, width = x.shape
            heads = self.qkv(self.norms[0](x)).view(rows, length, 3, s["heads"], -1).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(*heads, is_causal=True)
            x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
            return x + self.down(functional.gelu(self.up(self.norms[1](x))))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.places = nn.Embedding(vocabulary, s["width"]), nn.Embedding(s["block"], s["width"])
            self.blocks = nn.ModuleList(Block() for _ in range(s["layers"]))
            self.norm = nn.LayerNorm(s["width"])
            for table in (self.tokens, self.places):
                nn.init.normal_(table.weight, std=0.02)

        def forward(self, ids):
            x = self.tokens(ids) + self.places.weight
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.tokens.weight.T

    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=s["peak"], betas=(0.9, 0.99), weight_decay=0.1)
    data = torch.from_numpy(ids.astype("int64"))
    state = {"step": 0}

    def stretch() -> float:
        for _ in range(STRETCH):
            starts = torch.randint(len(data) - s["block"] - 1, (s["batch"],))
            x = torch.stack([data[start : start + s["block"]] for start in starts])
            y = torch.stack([data[start + 1 : start + 1 + s["block"]] for start in starts])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state["step"])
            loss = functional.cross_entropy(model(x).view(-1, vocabulary), y.view(-1))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            state["step"] += 1
        return loss.item()

    return stretch


def flops(vocabulary: int) -> float:
    """Matrix-product operations of one training step: forward, and twice that backward."""
    s = SIZES
    tokens, width = s["batch"] * s["block"], s["width"]
    block = 2 * tokens * 12 * width**2 + 4 * tokens * s["block"] * width
    return 3 * (s["layers"] * block + 2 * tokens * width * vocabulary)


def measure(backend: str, rounds: int) -> dict:
    """All figures of one backend, in this process; on torch as Keras compiles by default, not at all, and by Inductor."""
    train, held_out, vocabulary = characters()
    x, y = drawn(train, SIZES["steps"])
    starts = np.arange(0, len(held_out) - SIZES["block"] - 1, SIZES["block"])
    found: dict = {}
    models = {}
    for name in ("", *(["jit_compile=True"] if backend == "torch" else [])):
        model = models[name] = ours(vocabulary, bool(name) or "auto")
        start = time.perf_counter()
        model.fit(x, y, batch_size=SIZES["batch"], shuffle=False, verbose=0)
        seconds = time.perf_counter() - start
        loss = model.evaluate(*blocks(held_out, starts), batch_size=AT_ONCE, verbose=0)
        found[name] = {"loss": float(np.ravel(loss)[0]), "seconds": seconds, "parameters": model.count_params()}
    x, y = drawn(train, STRETCH, seed=1)
    options = {"batch_size": SIZES["batch"], "shuffle": False, "verbose": 0}
    steps: dict[str, Callable] = {name: functools.partial(model.fit, x, y, **options) for name, model in models.items()}
    times = alternate({**steps, "torch": plain_torch(vocabulary, train)}, rounds, warmup=1)
    ms = {name: 1e3 * statistics.median(values) / STRETCH for name, values in times.items()}
    for name, row in found.items():
        row |= {"ms": ms[name], "ratio": ratio(times, "torch", name)}
    return {"rows": found, "torch_ms": ms["torch"], "floor_ms": 1e3 * flops(vocabulary) / matrix_rate()}


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| backend | held-out loss after 2000 steps | all of it | a step | torch, eager | × | floor |",
        "|---" * 7 + "|",
    ]
    for backend, found in results.items():
        for name, row in found["rows"].items():
            lines.append(
                f"| {backend}{name and f', `{name}`'} | {row['loss']:.3f} | {row['seconds']:.0f} s | {row['ms']:.1f} ms | "
                f"{found['torch_ms']:.1f} ms | {row['ratio']:.2f} | {found['floor_ms']:.1f} ms |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("char_gpt", __doc__ or "", measure, table, {"sizes": SIZES})
