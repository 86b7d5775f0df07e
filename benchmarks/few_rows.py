"""What bounds a decoding step: products of a few rows with large matrices, under XLA, beside reading as many bytes.

    python -m benchmarks.few_rows

The matrices are those of the model of `benchmarks.generation`, in a chain within one compiled loop, as a step has them:
whole, split by columns so that both halves could be multiplied at once, with the weights, in another layout, as the left
factor, as a batch of parts of their rows, and as keras_tfm multiplies as many rows (`keras_tfm.ops.few_rows`).
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable

import numpy as np

from benchmarks.generation import SIZES
from benchmarks.measure import alternate, reading_rate, save

LOOPS = 200


def matrices() -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The token table, (vocabulary, width), and for each layer what four projections and two of the feed-forward hold."""
    random, s = np.random.default_rng(0), SIZES
    inner = s["intermediate"] + 2 * s["width"]  # 12 width² a layer, in two products
    pairs = []
    for _ in range(s["layers"]):
        up, down = (random.normal(size=shape) for shape in ((s["width"], inner), (inner, s["width"])))
        pairs.append((np.float32(up / 16), np.float32(down / 32)))
    return np.float32(random.normal(size=(s["vocabulary"], s["width"])) / 16), pairs


def chains() -> dict[str, tuple[Callable, object]]:
    """Name to a step, x and weights to x, and its weights."""
    import jax.numpy as jnp

    from keras_tfm.ops.backend import recording
    from keras_tfm.ops.few_rows import PARTS, by_table, product

    def normal(x, axis):
        return x / jnp.sqrt(jnp.mean(x * x, axis, keepdims=True) + 1e-6)

    def whole(x, weights):
        table, pairs = weights
        for up, down in pairs:
            x = normal(x + jnp.tanh(x @ up) @ down, -1)
        return x + 1e-3 * jnp.max(x @ table.T, -1, keepdims=True)

    def halves(x, weights):
        tables, pairs = weights
        for ups, downs in pairs:
            one, other = (jnp.tanh(x @ up) @ down for up, down in zip(ups, downs, strict=True))
            x = normal(x + one + other, -1)
        return x + 1e-3 * jnp.maximum(*(jnp.max(x @ table.T, -1, keepdims=True) for table in tables))

    def left(x, weights):
        table, pairs = weights
        x = x.T
        for up, down in pairs:
            x = normal(x + down @ jnp.tanh(up @ x), 0)
        return (x + 1e-3 * jnp.max(table @ x, 0, keepdims=True)).T

    def ours(x, weights):
        table, pairs = weights
        with recording():
            for up, down in pairs:
                x = normal(x + product(jnp.tanh(product(x, up, up.shape[1])), down, down.shape[1]), -1)
            logits = by_table(x, table)
        return x + 1e-3 * jnp.max(x @ table.T if logits is None else logits, -1, keepdims=True)

    def parts(x, weights):
        def multiplied(x, matrix):
            rows, width = x.shape
            cut = matrix.reshape(PARTS, width // PARTS, -1)
            return jnp.sum(x.reshape(rows, PARTS, -1).transpose(1, 0, 2) @ cut, 0)

        table, pairs = weights
        for up, down in pairs:
            x = normal(x + multiplied(jnp.tanh(multiplied(x, up)), down), -1)
        return x + 1e-3 * jnp.max(x @ table.T, -1, keepdims=True)

    table, pairs = matrices()
    halved = [(np.split(up, 2, axis=1), np.split(down, 2)) for up, down in pairs]
    return {
        "as they are": (whole, (table, pairs)),
        "in two halves": (halves, (np.split(table, 2), halved)),
        "weights left": (left, (table, [(up.T.copy(), down.T.copy()) for up, down in pairs])),
        "in parts": (parts, (table, pairs)),
        "as keras_tfm": (ours, (table, pairs)),
    }


def measure(rounds: int) -> dict:
    """Milliseconds of a step's products by rows and form; bytes a second of reading alone."""
    import jax
    from jax import lax

    table, pairs = matrices()
    size = 4 * (table.size + sum(up.size + down.size for up, down in pairs))
    found: dict[str, dict[str, float]] = {}
    for rows in (1, 8):
        x = jax.numpy.asarray(np.random.default_rng(1).normal(size=(rows, SIZES["width"])), "float32")
        steps = {}
        for name, (step, weights) in chains().items():
            loop = jax.jit(lambda x, weights, step=step: lax.fori_loop(0, LOOPS, lambda _, y: step(y, weights), x))
            given = jax.device_put(weights)
            steps[name] = lambda loop=loop, x=x, given=given: loop(x, given).block_until_ready()
        times = alternate(steps, rounds)
        found[str(rows)] = {name: statistics.median(seconds) / LOOPS * 1e3 for name, seconds in times.items()}
    reading = {str(threads): reading_rate(size, threads) for threads in (1, 2)}
    return {"bytes": size, "milliseconds": found, "reading": reading}


def table(record: dict) -> str:
    """The results as Markdown."""
    names = list(record["milliseconds"]["1"])
    size = record["bytes"]
    lines = ["| rows | " + " | ".join(names) + " | reading them, 1 core | 2 cores |", "|---" * (3 + len(names)) + "|"]
    for rows, times in record["milliseconds"].items():
        cells = [f"{times[name]:.2f} ms ({size / times[name] / 1e6:.0f} GB/s)" for name in names]
        cells += [f"{size / rate * 1e3:.2f} ms ({rate / 1e9:.0f} GB/s)" for rate in record["reading"].values()]
        lines.append(f"| {rows} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, keep the JSON."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    record = measure(parser.parse_args().rounds)
    print(table(record))
    print("\nkept as", save("few_rows", record))


if __name__ == "__main__":
    main()
