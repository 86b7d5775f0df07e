"""The example of many devices: a short run in a process of its own, and bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BACKEND, QUICKLY

EXAMPLE = Path(__file__).parents[2] / "examples" / "many_devices.py"
pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="the example is JAX's")


def run(*arguments, backend="jax"):
    environment = {**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": QUICKLY}
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.slow
def test_a_run(tmp_path):
    ways = ["tensor parallel", "fsdp x tensor parallel"]
    done = run(
        "--ways",
        *ways,
        "--devices",
        "simulated",
        "--steps",
        3,
        "--batch-size",
        8,
        "--length",
        16,
        "--num-layers",
        1,
        "--output",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["rows"] == {"batches": 3, "devices": 8}
    losses = found["history"]
    assert len(losses) == 3
    for name, values in losses.items():
        assert values == pytest.approx(losses["one device"], rel=1e-5), name
    results = found["results"]
    apart = {name: value for name, value in results.items() if name.startswith("weights apart")}
    assert len(apart) == 2
    assert max(apart.values()) < 1e-4
    # Shoeybi et al. 2019: 2 forward, 2 backward; queries, keys and values sum their inputs' gradients apart, gate and up too.
    assert results["collectives of a block, tensor parallel: all-reduce"] == 7
    assert results["collectives of a block, fsdp x tensor parallel: all-gather"] == 7  # its matrices
    assert results["share of the bytes on a device, fsdp x tensor parallel"] < 0.14


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--devices", "simulated", "--batch-size", 12], "--batch-size 12 is to be shared by 8 devices"),
        (["--hidden-dim", 20], "--hidden-dim must be a multiple of 8"),
    ],
)
def test_bad_input(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
