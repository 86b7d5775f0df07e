"""Two processes of torch, started by torchrun, train what one does; the first that dies or hangs ends the others."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKEND

from keras_tfm.distribution import hosts
from keras_tfm.distribution.connecting import local_device

WORKER = Path(__file__).with_name("torch_processes.py")
torch_only = pytest.mark.skipif(BACKEND != "torch", reason="torch.distributed connects processes of torch")


def environment(**more):
    threads = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, "KERAS_BACKEND": "torch", **threads, **more}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes wrote and printed."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(WORKER)]
    programs = ["gradients", "draws", "trained", "callbacks", "resumed", "refused"]
    done = subprocess.run(
        [*command, str(folder), *programs],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("[rank")]  # not torchrun's own words
    assert done.returncode == 0, "\n".join([done.stdout[-1000:], *said])[-8000:]
    return folder, done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What this process writes for the same program."""
    from distribution import torch_processes

    folder = tmp_path_factory.mktemp("alone")
    torch_processes.trained(folder)
    return np.load(folder / "0_of_1.npz")


@torch_only
def test_two_processes_train_what_one_does(together, alone):
    folder, _ = together
    for name in ("0_of_2", "1_of_2"):
        found = np.load(folder / f"{name}.npz")
        assert found.keys() == alone.keys()
        for key in alone.keys() - {"rows"}:
            np.testing.assert_allclose(found[key], alone[key], atol=5e-6, err_msg=f"{name}: {key}")


@torch_only
def test_each_has_its_rows(together, alone):
    folder, _ = together
    first, second = (np.load(folder / f"{name}.npz")["rows"] for name in ("0_of_2", "1_of_2"))
    assert sorted(alone["rows"]) == [5, 5, 8, 8, 8, 8]
    np.testing.assert_array_equal(first + second, alone["rows"])
    assert sorted(second) == [2, 2, 4, 4, 4, 4]


@torch_only
def test_the_first_process_alone_writes_and_shows(together):
    folder, printed = together
    assert [path.name for path in sorted(folder.glob("model*"))] == ["model0.keras"]
    assert [path.name for path in folder.glob("log*")] == ["log0.csv"]
    assert printed.count("Epoch 1/9") == 1
    assert "Epoch 3/9" not in printed  # stopped early
    assert printed.count("is through") == 2


@torch_only
def test_one_process_goes_on_where_two_were(together, alone):
    import keras_tfm as tfm
    from distribution import torch_processes

    folder, _ = together
    resume = tfm.training.Resume(folder / "for_one", every_steps=2, every_minutes=None)
    model = torch_processes.classifier()
    model.fit(torch_processes.TEXTS, torch_processes.LABELS, batch_size=8, epochs=3, verbose=0, callbacks=[resume])
    assert len(model.seen) == 4
    whole = torch_processes.classifier()
    history = whole.fit(torch_processes.TEXTS, torch_processes.LABELS, batch_size=8, epochs=3, verbose=0).history
    for one, other in zip(model.trainable_variables, whole.trainable_variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=5e-6)
    for key, values in history.items():
        np.testing.assert_allclose(model.history.history[key], values, atol=1e-5, err_msg=key)


@torch_only
def test_one_that_hangs_or_dies_ends_the_others(tmp_path):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    started = []
    for rank in range(2):
        variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
        command = [sys.executable, str(WORKER), str(tmp_path), "hanging"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment(TEST_TIMEOUT="2", **variables), **pipes))
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [1, 1], errors
    # Process 1 slept for six seconds: the first did not wait so long, and was gone when the second came back.
    for rank, limit in enumerate((6.0, 9.0)):
        seconds, _, said = (tmp_path / f"hanging{rank}").read_text().partition(" s: ")
        assert float(seconds) < limit
        assert said.startswith(f"Process {rank} of 2 waited for the others in vain")


def test_a_process_takes_the_gpu_of_its_place():
    assert local_device(4, 6, {"LOCAL_RANK": "2"}) == 2
    assert local_device(4, 6, {"SLURM_LOCALID": "3"}) == 3
    assert local_device(4, 6, {}) == 2
    assert local_device(1, 6, {"LOCAL_RANK": "2"}) == 0  # others are hidden from it
    with pytest.raises(ValueError, match="LOCAL_RANK=4, and this process sees 2 GPUs"):
        local_device(2, 4, {"LOCAL_RANK": "4"})


@torch_only
def test_alone_nothing_is_connected():
    found = hosts.initialize("127.0.0.1:1", 1, 0)
    assert found.count == 1
