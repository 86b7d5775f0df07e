"""Timing that survives a noisy machine: alternate single steps, quote medians of ratios, keep floors beside them."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np

BACKENDS = ("tensorflow", "jax", "torch")
RESULTS = Path(__file__).parent / "results"


def installed() -> list[str]:
    """The backends that can run here."""
    return [backend for backend in BACKENDS if find_spec(backend)]


def alternate(steps: dict[str, Callable[[], object]], rounds: int, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each step in each round; every round runs every step once, in turn, so that all meet the same noise."""
    for _ in range(warmup):
        for step in steps.values():
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for index in range(rounds):
        for name in names if index % 2 == 0 else reversed(names):  # no one always runs behind the same neighbour
            start = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], of: str, to: str) -> float:
    """The median over rounds of how many times longer `of` takes than `to`."""
    return statistics.median(a / b for a, b in zip(times[of], times[to], strict=True))


def exponent(values: dict[int, float], least: int = 0) -> float:
    """The slope of values over sizes, both as logarithms, fitted to all sizes from `least` on; NaN for fewer than two."""
    points = [(math.log(size), math.log(value)) for size, value in values.items() if size >= least and value > 0]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0]) if len(points) > 1 else float("nan")


def matrix_rate(seconds: float = 1.0, size: int = 1024) -> float:
    """Floating-point operations a second of a large float32 product on this machine's CPU (NumPy's BLAS)."""
    a, b = np.random.default_rng(0).random((2, size, size), dtype="float32")
    a @ b
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def reading_rate(size: int, threads: int, repeats: int = 40) -> float:
    """Bytes a second at which so many threads read an array of this many bytes over and over."""
    parts = np.array_split(np.ones(size // 4, np.float32), threads)

    def read(part: np.ndarray) -> None:
        for _ in range(repeats):
            part.max()

    rates = []
    for _ in range(5):
        workers = [threading.Thread(target=read, args=(part,)) for part in parts]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates.append(size * repeats / (time.perf_counter() - start))
    return statistics.median(rates)


def gradient_step(
    function: Callable, by: Sequence[np.ndarray], others: Sequence[np.ndarray] = ()
) -> Callable[[], object]:
    """What computes a scalar function of arrays and its gradients by the first of them, compiled and ready to run."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        given = [jax.device_put(x) for x in (*by, *others)]
        compiled = jax.jit(jax.value_and_grad(function, argnums=tuple(range(len(by))))).lower(*given).compile()
        return lambda: jax.block_until_ready(compiled(*given))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        variables, constants = [tf.constant(x) for x in by], [tf.constant(x) for x in others]

        @tf.function
        def traced():
            with tf.GradientTape() as tape:
                tape.watch(variables)
                value = function(*variables, *constants)
            return value, tape.gradient(value, variables)

        traced.get_concrete_function()
        return lambda: traced()[0].numpy()
    import torch

    leaves = [keras.ops.convert_to_tensor(x).requires_grad_() for x in by]
    constants = [keras.ops.convert_to_tensor(x) for x in others]

    def run():
        for leaf in leaves:
            leaf.grad = None
        function(*leaves, *constants).backward()
        if leaves[0].is_cuda:
            torch.cuda.synchronize()

    return run


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def resident() -> int:
    """Bytes that this process holds (Linux)."""
    return _status("VmRSS")


def available() -> int:
    """Bytes that this machine could still give (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def peak(step: Callable[[], object], above: int | None = None) -> int:
    """Bytes that the process holds at most while a step runs, above so many; default: what it holds already (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else it takes again, unseen, what earlier steps have given back
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    above = resident() if above is None else above
    step()
    return _status("VmHWM") - above


def in_processes(module: str, backends: Iterable[str], rounds: int) -> tuple[dict[str, dict], str]:
    """What `python -m module --json` says of each backend, each in a process of its own; and what failed ones printed."""
    results, failed = {}, ""
    for backend in backends:
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", module, "--json", "--backend", backend, "--rounds", str(rounds)]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
        if found:
            results[backend] = json.loads(found[0].removeprefix("RESULT "))
        else:
            failed += f"{backend} failed with {output.returncode}:\n{output.stdout}{output.stderr}"
    return results, failed


def run_by_backend(
    module: str,
    description: str,
    measure: Callable[[str, int], dict],
    table: Callable[[dict], str],
    about: dict,
    name: str | None = None,
    rounds: int = 7,
) -> None:
    """The command line of a benchmark: measure every backend or one, print the table, keep the JSON of all.

    `name` is that of the JSON, if not the module's; `rounds` their number, unless the command says another.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=BACKENDS)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--quick", action="store_true", help="one round, smaller where the suite says so; not kept")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rounds = 1
    if args.json:
        print("RESULT " + json.dumps(measure(args.backend, args.rounds)))
        return
    results, failed = in_processes(f"benchmarks.{module}", [args.backend] if args.backend else installed(), args.rounds)
    print(table(results))
    if failed:
        raise SystemExit(failed)
    if not args.backend and not args.quick:
        print("\nkept as", save(name or module, {**about, "results": results}))


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    packages = ("keras", "keras-hub", "tensorflow", "jax", "torch", "transformers", "x-transformers", "numpy")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        model = next(
            (line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
            model,
        )
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


def save(name: str, record: dict) -> Path:
    """Keep a result as JSON under benchmarks/results, with the machine and the date."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(
        json.dumps({"date": time.strftime("%Y-%m-%d"), "machine": machine(), **record}, indent=2) + "\n", "utf-8"
    )
    return path
