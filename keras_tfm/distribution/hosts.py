"""Several processes, each with devices of its own, as one: who they are, by the variables that launchers set."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from keras_tfm.distribution import connecting
from keras_tfm.distribution.meeting import meet
from keras_tfm.ops import processes as connected_processes
from keras_tfm.ops.backend import NAME

PORT = 47331  # of the first process, where the launcher names none


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        coordinator: "host:port" of the first one.
        count: How many there are.
        index: Which one this is, from 0.
        launcher: Whose variables said so.
    """

    coordinator: str
    count: int
    index: int
    launcher: str


def processes(environ: Mapping[str, str] | None = None) -> Processes | None:
    """What the launcher's variables say; None where there are none.

    In this order:

    - Keras's: KERAS_DISTRIBUTION_JOB_ADDRESSES, KERAS_DISTRIBUTION_NUM_PROCESSES, KERAS_DISTRIBUTION_PROCESS_ID
    - JAX's: JAX_COORDINATOR_ADDRESS, with JAX_NUM_PROCESSES and JAX_PROCESS_ID, or NNODES and NODE_RANK
    - Kubeflow's JAXJob: COORDINATOR_ADDRESS, COORDINATOR_PORT, NUM_PROCESSES, PROCESS_ID
    - torchrun and Kubeflow's PyTorchJob: MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK
    - TF_CONFIG, and Vertex AI's CLUSTER_SPEC
    - Slurm: SLURM_STEP_NODELIST or SLURM_JOB_NODELIST, SLURM_NTASKS, SLURM_PROCID

    Args:
        environ: Default: `os.environ`.

    Raises:
        ValueError: for variables that are incomplete or contradict each other, naming them.
    """
    given = os.environ if environ is None else environ
    for read in (_keras, _jax, _kubeflow, _torchrun, _tf_config, _vertex, _slurm):
        found = read(given)
        if found is not None:
            return _checked(found)
    return None


def initialize(
    coordinator: str | None = None,
    count: int | None = None,
    index: int | None = None,
    *,
    timeout: float = 300.0,
    collective_timeout: float | None = None,
) -> Processes:
    """Let several processes train one model, on JAX and on torch: before anything is computed, in each of them.

    Who they are is given, or read from the launcher's variables (`processes`). They meet first, so that one that never
    comes is named. On JAX, `keras.distribution.initialize` then makes their devices one mesh. On torch,
    `torch.distributed.init_process_group` connects them, by nccl between GPUs, of which each process takes its own, by gloo
    between CPUs; `fit`, `evaluate` and `predict` of task models then share batches and average gradients. All processes
    have the same random seed afterwards.

    Args:
        coordinator: "host:port" of the first process, which must be free there.
        count: How many processes there are.
        index: Which one this is, from 0.
        timeout: Seconds to wait for the others.
        collective_timeout: On torch, seconds that a process waits for the others while it trains, before it ends with an
            error; of one that has ended it hears at once. Default: torch's, half an hour by gloo, ten minutes by nccl.

    Returns:
        Who is who. Where processes are connected already, by Ray say, that.

    Raises:
        ValueError: on TensorFlow; without variables of a launcher; for some that are incomplete; if processes run other
            versions of Python, Keras, the backend or keras_tfm; on torch, if a process finds no GPU of its own.
        TimeoutError: when the time is up, naming who is missing.
    """
    if NAME == "tensorflow":
        raise ValueError(
            "Several hosts are connected by JAX or torch: set KERAS_BACKEND=jax, or torch, before keras is imported (it is "
            "tensorflow, on which tf.distribute.MirroredStrategy serves one machine)."
        )
    for name, seconds in (("timeout", timeout), ("collective_timeout", collective_timeout)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} must be positive seconds; got {seconds!r}.")
    if collective_timeout is not None and NAME == "jax":
        raise ValueError("collective_timeout is of torch; JAX's processes notice by themselves when one is gone.")
    connected = _connected_already()
    if connected is not None:
        return connected
    if coordinator is not None and count is not None and index is not None:
        for name, value in (("count", count), ("index", index)):
            if not isinstance(value, int):
                raise ValueError(f"{name} must be a whole number; got {value!r}.")
        found = _checked(Processes(str(coordinator), count, index, "arguments"))
    elif coordinator is count is index is None:
        told = processes()
        if told is None and NAME == "jax" and _is_tpu_slice(os.environ):
            import jax

            keras.distribution.initialize()  # JAX knows a slice's hosts by itself
            return Processes("", jax.process_count(), jax.process_index(), "TPU slice")
        if told is None:
            raise ValueError(
                "No launcher's variables are set (of Keras, JAX, Kubeflow, torchrun, TF_CONFIG, Vertex AI, Slurm, or a TPU "
                "slice). Give coordinator='host:port', count and index."
            )
        found = told
    else:
        given = {"coordinator": coordinator, "count": count, "index": index}
        missing = [name for name, value in given.items() if value is None]
        raise ValueError(f"Give coordinator, count and index, or none of them; {', '.join(missing)} is missing.")
    if found.count > 1:
        meet(found.coordinator, found.count, found.index, timeout)
        if NAME == "torch":
            connecting.connect(found.coordinator, found.count, found.index, timeout, collective_timeout)
            return found
        import jax

        config: Any = jax.config
        if config.jax_platforms == "cpu" or os.environ.get("JAX_PLATFORMS") == "cpu":
            config.update("jax_cpu_collectives_implementation", "gloo")
        keras.distribution.initialize(found.coordinator, found.count, found.index)
    return found


def _connected_already() -> Processes | None:
    """What somebody else has connected, such as Ray's `JaxTrainer` and `TorchTrainer`."""
    if NAME == "jax":
        import jax

        is_connected = jax.distributed.is_initialized()
    else:
        is_connected = connected_processes.is_connected()
        if is_connected:
            connecting.share_seed()
    if not is_connected:
        return None
    return Processes("", connected_processes.count(), connected_processes.index(), "connected already")


def _checked(found: Processes) -> Processes:
    host, _, port = found.coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{found.launcher}: the coordinator must be 'host:port'; got {found.coordinator!r}.")
    if found.count < 1 or not 0 <= found.index < found.count:
        raise ValueError(
            f"{found.launcher}: a process's index is from 0 to one below their count; got index {found.index} of "
            f"{found.count}."
        )
    return found


def _is_tpu_slice(given: Mapping[str, str]) -> bool:
    return "," in given.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in given


def _numbers(given: Mapping[str, str], launcher: str, *names: str) -> list[int]:
    """Variables as whole numbers."""
    found = []
    for name in names:
        value = given.get(name)
        if value is None:
            raise ValueError(f"{launcher}: the variable {name} is missing.")
        if not re.fullmatch(r"\d+", value.strip()):
            raise ValueError(f"{launcher}: {name} must be a whole number; got {value!r}.")
        found.append(int(value))
    return found


def _keras(given: Mapping[str, str]) -> Processes | None:
    addresses = given.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
    if not addresses:
        return None
    names = ("KERAS_DISTRIBUTION_NUM_PROCESSES", "KERAS_DISTRIBUTION_PROCESS_ID")
    count, index = _numbers(given, "Keras", *names)
    several = addresses.split(",")
    if len(several) not in (1, count):
        raise ValueError(
            f"Keras: KERAS_DISTRIBUTION_JOB_ADDRESSES names {len(several)} processes, {names[0]} is {count}."
        )
    return Processes(several[0].strip(), count, index, "Keras")


def _jax(given: Mapping[str, str]) -> Processes | None:
    address = given.get("JAX_COORDINATOR_ADDRESS")
    if not address:
        return None
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if "JAX_NUM_PROCESSES" in given else ("NNODES", "NODE_RANK")
    count, index = _numbers(given, "JAX", *names)
    port = given.get("JAX_COORDINATOR_PORT", str(PORT))
    return Processes(address if ":" in address else f"{address}:{port}", count, index, "JAX")


def _kubeflow(given: Mapping[str, str]) -> Processes | None:
    address = given.get("COORDINATOR_ADDRESS")
    if not address:
        return None
    count, index, port = _numbers(given, "Kubeflow", "NUM_PROCESSES", "PROCESS_ID", "COORDINATOR_PORT")
    return Processes(f"{address}:{port}", count, index, "Kubeflow")


def _torchrun(given: Mapping[str, str]) -> Processes | None:
    address = given.get("MASTER_ADDR")
    if not address:
        return None
    count, index, port = _numbers(given, "torchrun", "WORLD_SIZE", "RANK", "MASTER_PORT")
    # torchrun's own store listens there.
    return Processes(f"{address}:{port + 1}", count, index, "torchrun")


def _tf_config(given: Mapping[str, str]) -> Processes | None:
    return _cluster(given, "TF_CONFIG", ("chief", "master", "worker"))


def _vertex(given: Mapping[str, str]) -> Processes | None:
    return _cluster(given, "CLUSTER_SPEC", ("workerpool0", "workerpool1", "workerpool2", "workerpool3"))


def _cluster(given: Mapping[str, str], name: str, jobs: tuple[str, ...]) -> Processes | None:
    """A JSON of {"cluster": {job: [address, ...]}, "task": {"type": job, "index": n}}, the first job's first leading."""
    text = given.get(name)
    if not text:
        return None
    try:
        spec = json.loads(text)
        cluster, task = spec["cluster"], (spec["task"]["type"], int(spec["task"]["index"]))
        tasks = [(job, place) for job in jobs for place in range(len(cluster.get(job, ())))]
        first = cluster[tasks[0][0]][0] if tasks else ""
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{name} is no JSON of a cluster and a task: {error!r}.") from None
    if task not in tasks:
        raise ValueError(f"{name}: this task, {task[0]} {task[1]}, is none of those that train: {tasks}.")
    host, _, port = first.rpartition(":")
    # The port in the list is for gRPC of TensorFlow's, which is not begun here.
    return Processes(first if host and port.isdigit() else f"{first}:{PORT}", len(tasks), tasks.index(task), name)


def _slurm(given: Mapping[str, str]) -> Processes | None:
    if "SLURM_PROCID" not in given:
        return None
    count, index = _numbers(given, "Slurm", "SLURM_NTASKS", "SLURM_PROCID")
    if count == 1:
        return None  # a job of one process, such as an interactive one
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ValueError("Slurm: the variable SLURM_STEP_NODELIST is missing; start the program with srun.")
    job = given.get("SLURM_JOB_ID", "0")
    # Jobs that share a node take ports of their own.
    port = 61000 - int(job) % 4096 if job.isdigit() else PORT
    return Processes(f"{first_node(nodes)}:{port}", count, index, "Slurm")


def first_node(nodes: str) -> str:
    """The first of Slurm's list of nodes: "node[003-007,012],other" is node003 and so on.

    Raises:
        ValueError: for what is no such list.
    """
    match = re.match(r"([^\[\],\s]+)(?:\[(\d+)[^\]]*\]([^\[\],\s]*))?(?:,|$)", nodes.strip())
    if not match:
        raise ValueError(f"Slurm: {nodes!r} is no list of nodes.")
    name, number, rest = match.groups()
    return name + (number or "") + (rest or "")
