"""What the benchmarks compute beside times, and their command line; the times themselves are for quiet machines."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


def test_floors_count_the_pairs_that_attention_sees(monkeypatch):
    from benchmarks import long

    monkeypatch.setitem(long.SIZES, "window", 5)
    for length in (1, 4, 5, 6, 23):
        back = np.subtract.outer(np.arange(length), np.arange(length))
        assert long.seen("all", length) == back.size
        assert long.seen("causal", length) == (back >= 0).sum()
        assert long.seen("window", length) == ((back >= 0) & (back < 5)).sum()


def test_exponents_are_slopes_of_logarithms():
    from benchmarks.measure import exponent

    assert exponent({n: 3.0 * n**1.5 for n in (2048, 4096, 16384)}) == pytest.approx(1.5)
    assert exponent({1024: 1e9, 2048: 2.0, 4096: 4.0}, 2048) == pytest.approx(1.0)  # short ones say nothing
    assert math.isnan(exponent({2048: 2.0}))


def test_every_suite_has_a_measure_a_table_and_a_command():
    from benchmarks.__main__ import QUICK, SUITES

    for name in SUITES:
        suite = importlib.import_module(f"benchmarks.{name}")
        assert 'if __name__ == "__main__":' in (ROOT / "benchmarks" / f"{name}.py").read_text("utf-8")
        assert callable(suite.table)
        assert name not in QUICK or callable(suite.measure)


@pytest.mark.parametrize(
    "arguments, said", [(["nonsense"], "unknown suites"), (["--quick", "quantized"], "for a quick run")]
)
def test_unknown_suites_are_refused(arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_without_a_gpu_nothing_is_estimated():
    from benchmarks import gpu

    assert "jax | not run: it sees no GPU" in gpu.table({"jax": {"gpu": None}})
    row = {"seconds": {"keras_tfm": 0.1, "Hugging Face": 0.3}, "ratios": {"Hugging Face": 3.0}, "tokens": 100}
    rates = {"flops": 1e12, "bandwidth": 1e11}
    found = {
        "gpu": "one",
        "rates": rates,
        "training": {"gpt": {**row, "flops": 5e10}},
        "generation": {"1": {**row, "read": 2e9}},
        "long": {"length": 65_536, "seconds": 2.0},
    }
    lines = gpu.table({"torch": found}).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["torch", "GPT, training", "keras_tfm", "100.0 ms", "1,000", "50%", "–"]
    assert cells[1][5:] == ["17%", "3.00"]
    assert cells[2][5] == "20%"
    assert cells[4][1:5] == ["65,536 tokens, training", "keras_tfm", "2.0 s", "32,768"]
