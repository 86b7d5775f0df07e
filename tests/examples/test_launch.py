"""The files that start a run on several hosts: well formed, and the script that they start, with two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BACKEND, simulated

LAUNCH = Path(__file__).parents[2] / "examples" / "launch"
TINY = [
    "--layers",
    "1",
    "--width",
    "32",
    "--heads",
    "4",
    "--vocabulary-size",
    "300",
    "--context",
    "16",
    "--batch-size",
    "16",
]


@pytest.mark.once
@pytest.mark.parametrize("name", ["jobset_tpu.yaml", "jobset_gpu.yaml"])
def test_job_sets_start_the_script_in_every_pod(name):
    yaml = pytest.importorskip("yaml")
    (job,) = (
        part["template"]["spec"] for part in yaml.safe_load((LAUNCH / name).read_text())["spec"]["replicatedJobs"]
    )
    (container,) = job["template"]["spec"]["containers"]
    assert job["parallelism"] == job["completions"]
    assert container["command"][:2] == ["python", "train.py"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    if "gpu" in name:
        assert int(environment["JAX_NUM_PROCESSES"]) == job["completions"]
        assert environment["JAX_COORDINATOR_ADDRESS"].endswith(f":{container['ports'][0]['containerPort']}")


@pytest.mark.once
def test_the_slurm_script_is_one_of_bash():
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sh")], check=True)


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution connects processes on JAX")
def test_two_processes_of_a_launcher_and_going_on(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{n} red soups, {n + 1} green beans\n" for n in range(300)))
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    arguments = ["--text", tmp_path / "text.txt", "--output", tmp_path / "run", "--model", "2", "--fsdp", *TINY]

    def run(*more, hosts=2):
        started = []
        for index in range(hosts):
            environment = simulated(8 // hosts)
            if hosts > 1:
                environment |= {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "WORLD_SIZE": str(hosts),
                    "RANK": str(index),
                }
            command = [sys.executable, "train.py", *map(str, [*arguments, *more])]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=environment, cwd=LAUNCH, **pipes))
        outputs = [process.communicate(timeout=300) for process in started]
        assert [process.returncode for process in started] == [0] * hosts, outputs[0][1][-3000:]
        return [out for out, _ in outputs]

    first, second = run("--epochs", "1", "--save-every", "4")
    assert "started by torchrun" in first
    assert "8 devices" in first
    assert "loss" in first
    assert "loss" not in second
    (alone,) = run("--epochs", "2", "--save-every", "4", hosts=1)
    assert "Epoch 2/2" in alone
    assert "Epoch 1/2" not in alone


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="torch.distributed connects processes of torch")
def test_torchrun_starts_the_script_and_one_process_goes_on(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"{n} red soups, {n + 1} green beans\n" for n in range(150)))
    arguments = ["train.py", "--text", tmp_path / "text.txt", "--output", tmp_path / "run", "--save-every", "4", *TINY]
    environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}

    def run(*command):
        command = [sys.executable, *map(str, command)]
        done = subprocess.run(
            command, env=environment, cwd=LAUNCH, capture_output=True, text=True, timeout=240, check=False
        )
        return done.returncode, done.stdout, done.stderr

    status, first, errors = run(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments, "--epochs", "1"
    )
    assert status == 0, errors[-3000:]
    assert first.count("torchrun") == 2  # of two processes, whose words may be mixed
    assert first.count("2 devices") == 1
    assert first.count("step - loss") == 1
    status, alone, errors = run(*arguments, "--epochs", "2")
    assert status == 0, errors[-3000:]
    assert "Epoch 2/2" in alone
    assert "Epoch 1/2" not in alone
    status, _, errors = run(*arguments, "--fsdp")
    assert status == 2
    assert "set KERAS_BACKEND=jax" in errors
