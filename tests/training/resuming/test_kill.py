"""Processes that are killed, and one that is told to end, in the midst of training."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

RUN = Path(__file__).with_name("run.py")
STEPS = 6 * 4
pytestmark = pytest.mark.slow


def run(*arguments):
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "result.npz"
    done = run(path)
    assert done.returncode == 0, done.stderr[-2000:]
    return path


def assert_same(path, expected):
    ours, theirs = np.load(path), np.load(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_killed_ten_times_at_random(expected, tmp_path):
    """Each life gets at least as far as it needs to save: two batches past the last save."""
    directory, result = tmp_path / "run", tmp_path / "result.npz"
    directory.mkdir()
    draws = np.random.default_rng()
    kills = 0
    while kills < 10:
        numbers = sorted(int(path.stem.rpartition("-")[2]) for path in directory.glob("checkpoint-*.safetensors"))
        at = numbers[-1] if numbers else 0
        within = at % 6  # batches of this epoch that are read and left, which are counted too
        done = run(result, directory, within + int(draws.integers(3, 6)) if at < STEPS - 4 else within + 1)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        kills += 1
    assert kills >= 5
    done = run(result, directory)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same(result, expected)


@pytest.mark.parametrize("after", [3, 6])
def test_told_to_end(after, expected, tmp_path):
    """It saves what it has, even between its saves, and says so."""
    directory, result = tmp_path / "run", tmp_path / "result.npz"
    directory.mkdir()
    done = run(result, directory, after, int(signal.SIGTERM))
    assert done.returncode == 128 + signal.SIGTERM, done.stderr[-2000:]
    assert f"Told to end: saved to {directory} after {after} batches." in done.stdout
    assert not result.exists()
    assert run(result, directory).returncode == 0
    assert_same(result, expected)
