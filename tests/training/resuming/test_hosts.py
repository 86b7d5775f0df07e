"""Two processes, of which one or both are told to end: both save the same and end, and the run is taken up."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKEND, simulated

RUN = Path(__file__).with_name("hosts.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution connects processes on JAX"),
]


def start(index, *arguments):
    environment = simulated(4 if index < 0 else 2)
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(*started, status=0):
    """What they print."""
    try:
        outputs = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == status, errors[-4000:]
    return [output for output, _ in outputs]


def pair(directory, *told):
    """Two processes, and of each what it is told: the batch that both have saved, which is the same."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    both = [start(index, "-", directory, port, index, *told[index]) for index in (0, 1)]
    outputs = finished(*both, status=128 + signal.SIGTERM)
    found = [re.findall(r"Told to end: saved to .* after (\d+) batches", output) for output in outputs]
    assert found[0] == found[1] != [], outputs
    return int(found[0][0])


def test_all_hosts_end_at_the_same_batch_and_the_run_is_taken_up(tmp_path):
    directory, result, expected = tmp_path / "run", tmp_path / "result.npz", tmp_path / "expected.npz"
    first = pair(directory, [], ["batch", 3])  # one is told
    assert 3 <= first < 36
    assert [path.name for path in directory.glob("*.safetensors")] == [f"checkpoint-{first:012}.safetensors"]
    second = pair(directory, ["validation", 8], ["validation", 9])
    assert first < second < 36
    finished(start(-1, result, directory, 0, -1), start(-1, expected, "-", 0, -1))
    ours, theirs = np.load(result), np.load(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], atol=5e-5, err_msg=name)
