"""Launchers' variables, processes that meet, and two of them that train what one does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKEND, simulated
from safetensors.numpy import load_file

from keras_tfm.distribution import Processes, initialize, meeting, processes
from keras_tfm.distribution.hosts import first_node

WORKER = Path(__file__).with_name("two_processes.py")
CLUSTER = {"chief": ["a:2222"], "worker": ["b:2222", "c:2222"], "evaluator": ["d:2222"]}


def tf_config(kind, index, name="TF_CONFIG", cluster=CLUSTER):
    return {name: json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


@pytest.mark.once
@pytest.mark.parametrize(
    "environ, expected",
    [
        ({}, None),
        ({"RANK": "1", "SHELL": "/bin/sh"}, None),
        (
            {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1, b:2",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": "1",
            },
            ("a:1", 2, 1, "Keras"),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:99", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"},
            ("a:99", 4, 3, "JAX"),
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a", "JAX_COORDINATOR_PORT": "7", "NNODES": "4", "NODE_RANK": "0"},
            ("a:7", 4, 0, "JAX"),
        ),
        (
            {"COORDINATOR_ADDRESS": "a", "COORDINATOR_PORT": "6666", "NUM_PROCESSES": "2", "PROCESS_ID": "0"},
            ("a:6666", 2, 0, "Kubeflow"),
        ),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "29500", "WORLD_SIZE": "8", "RANK": "5"},
            ("a:29501", 8, 5, "torchrun"),
        ),
        (tf_config("chief", 0), ("a:2222", 3, 0, "TF_CONFIG")),
        (tf_config("worker", 1), ("a:2222", 3, 2, "TF_CONFIG")),
        (
            tf_config("workerpool1", 1, "CLUSTER_SPEC", {"workerpool0": ["a:2222"], "workerpool1": ["b:1", "c:1"]}),
            ("a:2222", 3, 2, "CLUSTER_SPEC"),
        ),
        (
            {
                "SLURM_PROCID": "2",
                "SLURM_NTASKS": "4",
                "SLURM_STEP_NODELIST": "gpu[03-05],gpu9",
                "SLURM_JOB_ID": "4097",
            },
            ("gpu03:60999", 4, 2, "Slurm"),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
    ],
)
def test_what_launchers_say(environ, expected):
    assert processes(environ) == (None if expected is None else Processes(*expected))


@pytest.mark.once
@pytest.mark.parametrize(
    "environ, message",
    [
        ({"MASTER_ADDR": "a", "WORLD_SIZE": "2", "RANK": "0"}, "torchrun: the variable MASTER_PORT is missing"),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "x", "WORLD_SIZE": "2", "RANK": "0"},
            "MASTER_PORT must be a whole number; got 'x'",
        ),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "2"},
            "from 0 to one below their count; got index 2 of 2",
        ),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "99999", "WORLD_SIZE": "2", "RANK": "1"},
            "must be 'host:port'; got 'a:100000'",
        ),
        ({"TF_CONFIG": "{"}, "TF_CONFIG is no JSON of a cluster and a task"),
        ({"TF_CONFIG": "[]"}, "TF_CONFIG is no JSON of a cluster and a task"),
        (tf_config("evaluator", 0), "this task, evaluator 0, is none of those that train"),
        (tf_config("worker", 2), "this task, worker 2, is none"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "SLURM_STEP_NODELIST is missing; start the program with srun"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "[1]"}, "is no list of nodes"),
        (
            {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1,b:1,c:1",
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": "1",
            },
            "names 3 processes, KERAS_DISTRIBUTION_NUM_PROCESSES is 2",
        ),
    ],
)
def test_what_launchers_cannot_mean(environ, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        processes(environ)


@pytest.mark.once
def test_lists_of_nodes():
    for nodes, first in {
        "node1": "node1",
        "node1,node2": "node1",
        "n[003-007,012],other": "n003",
        "a-b[1,3]": "a-b1",
        "gpu[01-02].cluster": "gpu01.cluster",
    }.items():
        assert first_node(nodes) == first


# Meeting --------------------------------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def met(count, indices, timeout=30.0, first_after=0.0):
    """What each process says, run as threads: None, or its error."""
    port, errors = free_port(), {}

    def run(place, index):
        time.sleep(first_after if index == 0 else 0)
        try:
            meeting.meet(f"127.0.0.1:{port}", count, index, timeout)
            errors[place] = None
        except Exception as error:
            errors[place] = error

    threads = [threading.Thread(target=run, args=item) for item in enumerate(indices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return port, errors


@pytest.mark.once
def test_all_are_there_and_the_port_is_free_again():
    port, errors = met(5, range(5))
    assert errors == dict.fromkeys(range(5))
    with socket.create_server(("", port)):
        pass


@pytest.mark.once
@pytest.mark.parametrize("first_after", [0.0, 1.0])
def test_those_who_are_missing_are_named(first_after):
    _, errors = met(4, [0, 2], 3.0, first_after)  # whoever came before the first hears it when its own time is over
    assert len(errors) == 2
    for error in errors.values():
        assert isinstance(error, TimeoutError)
        assert "Processes [1, 3] of 4 have not come within 3 s; here are 0 (" in str(error)
    _, errors = met(2, [1], timeout=1.0)
    assert "has not answered process 1" in str(errors[0])


@pytest.mark.once
def test_two_of_the_same_index():
    _, errors = met(3, [0, 1, 1], timeout=20)
    assert all(isinstance(error, (ValueError, TimeoutError)) for error in errors.values())
    assert "Two processes have the index 1" in str(errors[0])


@pytest.mark.once
def test_other_versions_are_named(monkeypatch):
    found = meeting.versions()
    assert found.keys() >= {"Python", "keras", "keras_tfm"}
    answers = iter([found, {**found, "keras": "0.0"}])
    lock = threading.Lock()

    def versions():
        with lock:
            return next(answers)

    monkeypatch.setattr(meeting, "versions", versions)
    _, errors = met(2, [0, 1])
    for error in errors.values():
        assert isinstance(error, ValueError)
        assert "runs keras " in str(error)
        assert "0.0" in str(error)


@pytest.mark.once
def test_strangers_are_ignored():
    port, errors = free_port(), []

    def first():
        try:
            meeting.meet(f"127.0.0.1:{port}", 2, 0, 30)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    for _ in meeting._until(30 + time.monotonic()):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            break
        except OSError:
            continue
    meeting.meet(f"127.0.0.1:{port}", 2, 1, 30)
    thread.join(30)
    assert errors == []


def test_initialize_says_what_is_missing(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM", "MASTER", "JAX_COORD", "TF_CONFIG", "TPU_", "COORDINATOR", "KERAS_DISTRIBUTION")):
            monkeypatch.delenv(name)
    if BACKEND == "tensorflow":
        with pytest.raises(ValueError, match="set KERAS_BACKEND=jax, or torch"):
            initialize("a:1", 2, 0)
        return
    with pytest.raises(ValueError, match="No launcher's variables are set"):
        initialize()
    with pytest.raises(ValueError, match="count, index is missing"):
        initialize("a:1")
    with pytest.raises(ValueError, match="count must be a whole number; got '2'"):
        initialize("a:1", "2", 0)
    with pytest.raises(ValueError, match="must be 'host:port'; got 'a'"):
        initialize("a", 2, 0)
    with pytest.raises(ValueError, match="timeout must be positive"):
        initialize("a:1", 2, 0, timeout=0)
    with pytest.raises(
        ValueError, match="collective_timeout" + (" is of torch" if BACKEND == "jax" else " must be positive")
    ):
        initialize("a:1", 2, 0, collective_timeout=1.0 if BACKEND == "jax" else -1.0)
    assert initialize("a:1", 1, 0) == Processes("a:1", 1, 0, "arguments")  # nobody to meet
    with pytest.raises(TimeoutError, match="has not answered process 1"):
        initialize(f"127.0.0.1:{free_port()}", 2, 1, timeout=0.5)


# Two processes --------------------------------------------------------------------------------------------------------


def start(index, port, *rest):
    environment = simulated(8 if index < 0 else 4)
    command = [sys.executable, str(WORKER), str(port), str(index), *map(str, rest)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*started):
    """What each of them printed."""
    printed = []
    try:
        for process in started:
            output, errors = process.communicate(timeout=400)
            assert process.returncode == 0, errors[-4000:]
            printed.append(output)
        return printed
    finally:
        for process in started:
            process.kill()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution connects processes on JAX")
def test_two_processes_train_what_one_does_and_one_goes_on_where_they_were(tmp_path):
    port, run = free_port(), tmp_path / "run"
    printed = finish(*(start(index, port, tmp_path / f"{index}.npz", run) for index in (0, 1)))
    assert [output.count("Epoch 2/2") for output in printed] == [3, 0]
    written = {path.name for path in tmp_path.iterdir() if path.suffix in (".csv", ".keras")}
    assert written == {"0.data.csv", "0.fsdp.csv", "0.tensor.csv", "0.keras"}
    assert [path.name for path in tmp_path.glob("*-charts")] == ["0-charts"]
    for way in run.iterdir():  # as if they had been killed after batch 4 of 6
        last = sorted(way.glob("checkpoint-*"))[-1]
        assert last.name.endswith("6.safetensors")
        last.unlink()
    gone_on = tmp_path / "gone_on"
    shutil.copytree(run, gone_on)
    finish(start(-1, 0, tmp_path / "one.npz"))
    finish(start(-1, 0, tmp_path / "gone_on.npz", gone_on))
    expected = np.load(tmp_path / "one.npz")
    for name in ("0", "1", "gone_on"):
        found = np.load(tmp_path / f"{name}.npz")
        assert found.keys() == expected.keys()
        for key in expected:
            np.testing.assert_allclose(found[key], expected[key], atol=2e-6, err_msg=f"{name}: {key}")
    for way in ("data", "fsdp", "tensor"):
        saved, alone = (load_file(tmp_path / f"{way} of {name}" / "model.safetensors") for name in ("both", "one"))
        assert saved.keys() == alone.keys()
        for key in alone:
            np.testing.assert_allclose(saved[key], alone[key], atol=2e-6, err_msg=f"{way}: {key}")
