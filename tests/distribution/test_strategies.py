"""Replicas of `tf.distribute` train what one device does, and what Keras gets wrong there is refused."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from helpers import BACKEND

import keras_tfm as tfm
from keras_tfm.distribution.strategies import replicas_of, scope_of, strategy_of

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's")
HERE = Path(__file__).parent
KINDS = [
    "encoder", "decoder", "linear", "encoder_decoder", "texts", "tokens, PyDataset", "masked, tf.data", "answers, clipnorm",
    "experts, clipvalue", "weights, rates", "recomputed, lora",
]  # fmt: skip


def started(script: str, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(HERE / script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen, timeout: float = 900) -> dict:
    """The JSON that a worker prints, within so many seconds."""
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    assert lines, errors[-4000:]
    return json.loads(lines[0].removeprefix("RESULT "))


@functools.cache
def outcome(script: str) -> dict:
    """Of a worker, which runs once: a failure is kept too."""
    try:
        return result(started(script))
    except (AssertionError, subprocess.TimeoutExpired) as error:
        return {"failed": f"{type(error).__name__}: {error}"}


def mirrored() -> dict:
    found = outcome("mirrored.py")
    assert "failed" not in found, found["failed"]
    return found


def plain() -> dict:
    found = outcome("plain_keras.py")
    if "failed" in found:  # no AssertionError, which is expected of what Keras gets wrong
        raise RuntimeError(found["failed"])
    return found


def of(name: str):
    found = mirrored()[name]
    assert not (isinstance(found, dict) and "error" in found), found["error"]
    return found


@on_tensorflow
@pytest.mark.parametrize("kind", KINDS)
def test_mirrored_on_4_logical_devices_same_weights_as_one_device_after_two_epochs(kind):
    found = of(f"same {kind}")
    assert found["trained"] > 1e-3  # what was compared has been trained
    assert found["difference"] < 1e-5
    ours, theirs = found["losses"]
    # Rows that fill the last batch up count for nothing in it, and for rows in Keras's mean over batches.
    assert ours == pytest.approx(theirs, rel=0.02 if kind == "texts" else 1e-5)


@on_tensorflow
def test_mirrored_bfloat16_is_one_device_to_its_rounding():
    found = of("same bfloat16")
    assert found["trained"] > 1e-2
    assert found["difference"] < 0.2 * found["trained"]
    ours, theirs = found["losses"]
    assert ours == pytest.approx(theirs, rel=2e-3)


@on_tensorflow
def test_keras_mean_of_means_is_another_training():
    """Without the sum over replicas the same comparison fails: it is no vacuous one."""
    assert of("plain_mean") > 1e-3


@on_tensorflow
def test_raw_rows_and_batches_come_back_as_on_one_device():
    found = of("raw_rows")
    assert found["predict"] < 1e-5
    assert found["batch"] < 1e-5
    assert found["accuracy"][0] == pytest.approx(found["accuracy"][1], abs=1e-6)


@on_tensorflow
def test_fit_compiles_in_the_models_strategy_and_leaves_adam_alone():
    assert of("defaults_outside_of_the_scope") == {"finite": True, "fused": False}


@on_tensorflow
def test_files_go_from_replicas_to_one_device_and_back():
    found = of("saved")
    assert found["to one"] == found["from one"] == 0.0
    assert found["to one, trained on"] < 1e-5
    assert found["from one, trained on"] < 1e-5


@on_tensorflow
def test_generate_is_as_on_one_device():
    assert of("generated") == {"same": True}


@on_tensorflow
def test_each_replica_draws_its_own_dropout():
    found = of("dropout")
    assert found["first as alone"]
    assert 0.46 < found["agreement"][0] <= found["agreement"][1] < 0.54  # 5 standard deviations of 4096 draws
    assert all(0.46 < kept < 0.54 for kept in found["kept"])


@on_tensorflow
def test_a_distiller_trains_and_logs_what_one_device_does():
    found = of("distilled")
    assert found["difference"] < 1e-5
    ours, theirs = found["losses"]
    assert ours.keys() == theirs.keys()
    assert len(ours) == 4
    for name, losses in ours.items():
        assert losses == pytest.approx(theirs[name], rel=1e-4), name


@on_tensorflow
def test_the_page_runs():
    assert of("page") == 2


@on_tensorflow
def test_auto_does_not_choose_xla():
    assert of("jit_auto") == {"one": True, "many": False}


REFUSED = {
    "float16": "another one's overflow",
    "jit": "jit_compile=True fails with 4 replicas",
    "steps": "steps_per_execution=2 fails with 4 replicas",
    "accumulation": "gradient_accumulation_steps=2 fails under tf.distribute",
    "mean": 'reduction="mean_with_sample_weight"',
    "batch size": "batch_size=6 is to be shared by 4 devices, which do not divide it; take 4 or 8",
    "last rows": "The last batch of 13 rows has 5, which 4 devices cannot share: give 12 rows, or raw rows",
    "tensors": "The last batch of 13 rows has 5",
    "split": "The last batch of 14 rows has 6",
    "tf.data": "4 replicas cannot share a batch evenly",
    "fixed tf.data": "4 replicas cannot share a batch of 6 rows evenly",
    "PyDataset": "4 replicas cannot share a batch of 5 rows evenly",
    "generator": "4 replicas cannot share a batch of 13 rows evenly",
    "validation": "The last batch of 13 rows has 5",
    "other loss": "compile with a loss that leaves labels of -100 out",
    "model": "was built outside of any strategy's scope, and is to be trained in a MirroredStrategy",
    "backbone": "was made outside of the scope of the MirroredStrategy",
    "optimizer": "was made outside of the scope of the model's MirroredStrategy",
    "other strategy": "was built in the scope of another MirroredStrategy",
}


@on_tensorflow
@pytest.mark.parametrize("name", REFUSED)
def test_what_keras_gets_wrong_is_refused(name):
    assert REFUSED[name] in of("refused")[name]


@on_tensorflow
def test_plain_keras_works_where_nothing_is_refused():
    assert plain()["works"]


@on_tensorflow
@pytest.mark.parametrize("fault", [
    "float16", "jit_compile", "gradient_accumulation_steps", "steps_per_execution", "clipnorm", "global_clipnorm",
    "clipvalue", "uneven last batch", "empty replica", "masked tokens", "mean_with_sample_weight", "boolean inputs",
    "dropout", "predict_on_batch", "repeated tokens",
])  # fmt: skip
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="Keras 3.15.1 under MirroredStrategy")
def test_plain_keras_is_right(fault):
    """When one of these passes, what refuses or works around it can go."""
    assert plain()[fault] is True


@functools.cache
def several(kind: str) -> tuple[dict, ...]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        ports = [str(one.getsockname()[1]) for one in (first, second)]
    if kind == "parameters":
        return (result(started("several_workers.py", kind, *ports), 120),)
    both = [started("several_workers.py", kind, index, *ports) for index in ("0", "1")]
    return tuple(result(process, 120) for process in both)


@on_tensorflow
@pytest.mark.parametrize("kind", ["mirrored", "parameters"])
def test_strategies_of_several_machines_are_refused(kind):
    name = {"mirrored": "MultiWorkerMirroredStrategy of 2 workers", "parameters": "ParameterServerStrategy"}[kind]
    for found in several(kind):
        assert name in found["refused"]
        assert "KERAS_BACKEND=jax" in found["refused"]


@on_tensorflow
@pytest.mark.parametrize("kind", ["mirrored", "parameters"])
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="Keras 3.15.1 fails with several machines")
def test_plain_keras_trains_on_several_machines(kind):
    assert all(found["fit"] == "works" for found in several(kind))


def test_without_a_strategy_nothing_is_checked_or_changed():
    layer = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    layer.compile(keras.optimizers.SGD(gradient_accumulation_steps=2), "mse")
    tfm.distribution.check_strategy(layer)
    assert strategy_of(layer) is None
    assert replicas_of(layer) == 1
    with scope_of(layer) as scope:
        assert scope is None
