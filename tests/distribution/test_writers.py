"""Which callbacks a process has, of several that train one model."""

from __future__ import annotations

import keras
import pytest
from helpers import BACKEND

from keras_tfm import distribution
from keras_tfm.distribution.writers import OfOneHost, of_this_process
from keras_tfm.ops import processes


class Seeing(keras.callbacks.Callback):
    """Notes which distribution is set when it is called."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, logs, keras.distribution.distribution(), self.model, self.params))
        if logs == "fail":
            raise OSError("full")


class Writing(Seeing):
    of_first_process = True


def of_process(index, monkeypatch, options, model=None):
    monkeypatch.setattr(processes, "index", lambda: index)
    return of_this_process(keras.Sequential() if model is None else model, options)


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_process_has_those_that_write(index, monkeypatch, tmp_path):
    writer, seeing = Writing(), Seeing()
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    found = of_process(index, monkeypatch, {"callbacks": [writer, seeing, logger], "verbose": 2, "epochs": 3})
    assert found["epochs"] == 3
    kept = [getattr(callback, "callback", callback) for callback in found["callbacks"]]
    assert kept == ([seeing] if index else [writer, seeing, logger])
    assert found["verbose"] == (0 if index else 2)
    of_one_host = [isinstance(callback, OfOneHost) for callback in found["callbacks"]]
    assert of_one_host == ([False] if index else [BACKEND == "jax", False, BACKEND == "jax"])
    again = of_process(index, monkeypatch, found)  # `evaluate` within `fit` is given the same
    assert again["callbacks"] == found["callbacks"]

    listed = keras.callbacks.CallbackList([writer, seeing])
    found = of_process(index, monkeypatch, {"callbacks": listed})
    assert found["callbacks"] is listed
    assert [getattr(callback, "callback", callback) for callback in listed.callbacks] == (
        [seeing] if index else [writer, seeing]
    )
    for given, expected in ((None, []), (seeing, [seeing])):
        assert of_process(index, monkeypatch, {"callbacks": given})["callbacks"] == expected


def test_what_one_process_cannot_write(monkeypatch, tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="BackupAndRestore brings back one process"):
        of_process(1, monkeypatch, {"callbacks": keras.callbacks.BackupAndRestore(tmp_path)}, model)
    checkpoint = {"callbacks": [keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")]}
    assert len(of_process(0, monkeypatch, checkpoint, model)["callbacks"]) == 1
    monkeypatch.setattr(processes, "has_whole", lambda x: False)
    for index in (0, 1):
        with pytest.raises(ValueError, match=r"ModelCheckpoint writes from one process, which has a part of .*kernel"):
            of_process(index, monkeypatch, checkpoint, model)


@pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution lays out variables on JAX")
def test_it_sees_no_distribution():
    seeing = Seeing()
    alone = OfOneHost(seeing)
    model = keras.Sequential()
    layouts = distribution.data_parallel()
    with layouts.scope():
        alone.set_model(model)
        alone.set_params({"epochs": 1})
        alone.on_epoch_end(0, {"loss": 1.0})
        assert keras.distribution.distribution() is layouts
        with pytest.raises(OSError, match="full"):
            alone.on_epoch_end(1, "fail")
        assert keras.distribution.distribution() is layouts
    assert seeing.seen == [(0, {"loss": 1.0}, None, model, {"epochs": 1}), (1, "fail", None, model, {"epochs": 1})]
    assert "on_train_batch_end" not in vars(alone)  # Keras waits for each batch where there is a hook for it
