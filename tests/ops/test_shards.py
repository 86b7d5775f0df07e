"""On eight simulated devices, each computes its own rows, and all of them what one does."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BACKEND, simulated

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution lays out batches on JAX")

WORKER = Path(__file__).with_name("sharded.py")
WAYS = ["data", "fsdp", "data x tensor", "fsdp x tensor"]


@functools.cache
def results() -> dict:
    done = subprocess.run(
        [sys.executable, str(WORKER)], env=simulated(8), capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["loss", "experts", "experts, dropout", "blocks", "splash"])
def test_values_and_gradients_are_those_of_one_device(what, way):
    assert results()["differences"][way][what] < 1e-5


def test_a_model_on_one_device_stays_there():
    assert results()["differences"]["data"]["another's model"] < 1e-5


@pytest.mark.parametrize("how", ["eager", "by hand", "few rows", "value alone"])
def test_the_loss_may_be_called_anyhow(how):
    assert results()["differences"]["data"][how] < 1e-5


@pytest.mark.parametrize("way, how", [("data", "few rows"), ("data x tensor", "by hand"), ("data x tensor", "eager")])
def test_a_pallas_call_may_be_divided_anyhow(way, how):
    assert results()["differences"][way][f"splash, {how}"] < 1e-5


@pytest.mark.parametrize("way", ["fsdp", "data x tensor"])
def test_a_device_lowers_its_own_pallas_calls_for_tpus(way):
    """XLA would refuse to divide one; each of the three takes one device's rows and heads."""
    assert results()["for TPUs"][way] == [True] * 3


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["loss", "experts", "blocks"])
def test_a_device_computes_its_eighth(what, way):
    """All of the batch, as XLA has it without `by_device`, were 1 under data parallelism."""
    assert 0.9 / 8 < results()["operations"][way][what] < 1.1 / 8
