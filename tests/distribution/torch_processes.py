"""One of several processes of torch: `python torch_processes.py OUTPUT PROGRAM ...`, started by torchrun or its variables.

Each program is a function of this file; OUTPUT is a folder for what came of it. `test_torch_processes` runs them, and calls
`trained` in one process too.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import pytest
import torch

import keras_tfm as tfm
from keras_tfm import distribution
from keras_tfm.distribution.gradients import AveragedGradients
from keras_tfm.distribution.own_draws import own_draws
from keras_tfm.ops import processes
from keras_tfm.training.resuming.files import CheckpointFiles

WORDS = ["soup", "bean", "day", "sun"]
TEXTS = [" ".join(WORDS[(n * k) % 4] for k in range(1, 3 + n % 5)) for n in range(21)]  # ragged; 21 = 2 * 8 + 5
LABELS = [n % 2 for n in range(21)]
SIZES = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "vocabulary_size": 40, "max_sequence_length": 8}
STEPS = 3  # an epoch, of batches of 8


class Counting(tfm.TextClassifier):
    """Knows how many rows each of its steps had in this process."""

    def train_step(self, data):
        self.seen = [*getattr(self, "seen", ()), len(data[1])]
        return super().train_step(data)


def tokenizer(texts=TEXTS):
    return tfm.data.train_tokenizer(texts, 40, kind="bpe", max_length=8)  # the same wherever it is trained


def classifier(classes=2, dropout=0.0):
    keras.utils.set_random_seed(0)
    model = Counting(tfm.models.bert(**SIZES, dropout=dropout), classes, tokenizer=tokenizer())
    model.compile(keras.optimizers.AdamW(1e-2, weight_decay=0.1, epsilon=1e-3, global_clipnorm=0.1))
    return model


def language_model(optimizer, **options):
    keras.utils.set_random_seed(0)
    model = tfm.CausalLM(tfm.models.gpt(**SIZES, dropout=0.0), tokenizer=tokenizer())
    model.compile(optimizer, **options)
    return model


def accumulating():
    return language_model(keras.optimizers.SGD(0.5, global_clipnorm=0.2, gradient_accumulation_steps=2))


def low_rank():
    model = classifier()
    tfm.training.add_lora(model, rank=2)
    model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-3))
    return model


def recomputed():
    model = language_model(keras.optimizers.Adam(1e-2, epsilon=1e-3), loss="linear_crossentropy", metrics=None)
    model.backbone.recompute_blocks()
    return model


def regressor():
    """A loss of Keras's own, and one over weights."""
    model = classifier(classes=1)
    model.trainable_variables[0].regularizer = keras.regularizers.L2(0.1)
    return model


def distilled():
    student, teacher = classifier(), classifier()
    for variable in teacher.trainable_variables:
        variable.assign(variable * 1.5)
    model = tfm.training.Distiller(student, teacher, hidden=0.5)
    model.compile(keras.optimizers.SGD(0.3))
    return model


WAYS = {
    "classifier": (classifier, TEXTS, LABELS),
    "language_model": (lambda: language_model(keras.optimizers.SGD(0.5, clipnorm=0.1)), TEXTS, None),
    "accumulating": (accumulating, TEXTS, None),
    "low_rank": (low_rank, TEXTS, LABELS),
    "recomputed": (recomputed, TEXTS, None),
    "distilled": (distilled, TEXTS[:20], LABELS[:20]),
    "regressor": (regressor, TEXTS[:20], [float(n % 3) for n in range(20)]),
}


class Rows(keras.utils.PyDataset):
    """Two batches of 8 numbers, of which each process has as many."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        x = np.random.default_rng(index).normal(size=(8, 4)).astype("float32")
        mine = slice(processes.index(), None, processes.count())
        return x[mine], x[mine].sum(axis=1)


class Net(distribution.Together, keras.Model):
    """A model that is not this library's."""


def plain():
    keras.utils.set_random_seed(0)
    x = keras.Input((4,))
    model = Net(x, keras.layers.Dense(1)(keras.layers.Dense(8, activation="relu")(x)))
    model.compile(keras.optimizers.SGD(0.1, global_clipnorm=0.5), "mse")
    model.fit(Rows(), epochs=2, verbose=0)
    return model


def trained(output: Path) -> None:
    """Every way of training, as arrays by name."""
    results = {}
    for name, (make, texts, labels) in WAYS.items():
        model = make()
        before = [variable.numpy().copy() for variable in model.trainable_variables]
        if processes.index():  # what the others were given is not what is trained
            for variable in model.trainable_variables:
                variable.assign(variable + 1.0)
        validation = getattr(model, "student", model).dataset(texts, labels, batch_size=8)
        history = model.fit(texts, labels, batch_size=8, epochs=2, verbose=0, validation_data=validation).history
        for number, variable in enumerate(model.trainable_variables):
            results[f"{name}/weight{number}"] = variable.numpy()
        changes = [
            float(np.abs(v.numpy() - old).max()) for v, old in zip(model.trainable_variables, before, strict=True)
        ]
        assert max(changes) > 1e-4, (name, changes)
        results |= {f"{name}/{key}": np.array(values) for key, values in history.items()}
        found = model.evaluate(texts, labels, batch_size=8, verbose=0, return_dict=True)
        results |= {f"{name}/evaluated/{key}": np.array(value) for key, value in found.items()}
        results[f"{name}/predicted"] = model.predict(texts, batch_size=8)
        if name == "classifier":
            results["rows"] = np.array(model.seen)
    for number, weight in enumerate(plain().get_weights()):
        results[f"plain/weight{number}"] = weight
    np.savez(output / f"{processes.index()}_of_{processes.count()}.npz", **results)


class Told(keras.callbacks.Callback):
    """The last process is told to end while it trains on the second batch of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if processes.index() == processes.count() - 1 and self.model.optimizer.iterations == STEPS + 2:
            os.kill(os.getpid(), signal.SIGTERM)


def slowly(self, number, saved, plain=CheckpointFiles.write):
    """The first process writes for a while longer, in which the others may not look for what it writes."""
    time.sleep(0.5)
    plain(self, number, saved)


def resumed(output: Path) -> None:
    """Training that is interrupted, and gone on with: to where it would have been, dropout and logs included."""
    CheckpointFiles.write = slowly

    def run(directory=None, dropout=0.2, callbacks=()):
        model = classifier(dropout=dropout)
        if directory is not None:
            resume = tfm.training.Resume(output / directory, every_steps=2, every_minutes=None)
            callbacks = [*callbacks, resume]
        model.fit(TEXTS, LABELS, batch_size=8, epochs=3, verbose=0, callbacks=list(callbacks))
        return model

    def interrupted(directory, **options):
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            run(directory, callbacks=[Told()], **options)

    whole = run()
    interrupted("run")
    again = run("run")
    assert len(again.seen) == STEPS + 1, again.seen  # one batch of the second epoch was left, and the third epoch
    for one, other in zip(whole.trainable_variables, again.trainable_variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)
    for key, values in whole.history.history.items():
        np.testing.assert_allclose(again.history.history[key], values, rtol=1e-6, err_msg=key)
    interrupted("for_one", dropout=0.0)  # which one process goes on with


def gradients(output: Path) -> None:
    """Means of gradients, of which a process may lack some."""
    me, size = processes.index(), processes.count()
    shapes = {"a": (3,), "b": (2, 5), "c": (4,), "d": (), "e": (7,)}
    variables = {name: keras.Variable(np.ones(shape), name=name) for name, shape in shapes.items()}
    variables["half"] = keras.Variable(np.ones(3), dtype="float16")
    averaged = AveragedGradients(list(variables.values()), bucket=48)
    assert len(averaged._buckets) > 2
    weights = {"a": me + 1.0, "b": 10.0 * (me + 1), "d": 1.0, "half": 2.0 + me}
    if me == 0:
        weights["e"] = 6.0  # the others have no gradient of it, and nobody has one of c
    for _ in range(2):
        for variable in variables.values():
            variable.value.grad = None
        with averaged.step():
            sum(weight * variables[name].value.sum().float() for name, weight in weights.items()).backward()
        means = {"a": (size + 1) / 2, "b": 10 * (size + 1) / 2, "d": 1.0, "half": 2 + (size - 1) / 2, "e": 6.0 / size}
        for name, mean in means.items():
            np.testing.assert_allclose(
                variables[name].value.grad.numpy(), np.full(variables[name].shape, mean), rtol=1e-3
            )
        assert variables["c"].value.grad is None
    assert averaged.is_of(list(variables.values()))
    assert not averaged.is_of(list(variables.values())[1:])
    for passes in (0, 2):
        with pytest.raises(RuntimeError, match=f"this one had {passes}"), averaged.step():
            [variables["a"].value.sum().backward() for _ in range(passes)]
    averaged.close()
    variables["a"].value.grad = None
    (variables["a"].value.sum() * (me + 1)).backward()  # alone again
    assert float(variables["a"].value.grad[0]) == me + 1


def draws(output: Path) -> None:
    """Dropout differs from process to process, and the generators are equal again afterwards."""
    layers = [tfm.layers.Dropout(0.5), tfm.layers.Dropout(0.5, seed=3), keras.layers.Dropout(0.5, seed=4)]
    layers.append(keras.layers.Dropout(0.5))
    model = keras.Sequential([keras.Input((64,)), *layers])
    x = np.ones((1, 64), "float32")

    def draw():
        return [layer(x, training=True).numpy().tolist() for layer in layers] + [torch.rand(8).tolist()]

    def states():
        return [layer.seed_generator.state.numpy().tolist() for layer in layers if hasattr(layer, "seed_generator")]

    assert len(states()) >= 2
    keras.utils.set_random_seed(5)
    assert_equal(draw())
    before = torch.get_rng_state()
    with own_draws(model):
        first = processes.gathered(draw())
    for number, masks in enumerate(zip(*first, strict=True)):
        assert len({str(mask) for mask in masks}) == processes.count(), f"layer {number} draws the same everywhere"
    assert_equal([states(), torch.get_rng_state().tolist()])
    assert not torch.equal(before, torch.get_rng_state())
    with own_draws(model):
        assert draw() != first[processes.index()]
    assert_equal(draw())


def assert_equal(value) -> None:
    first, *others = processes.gathered(value)
    assert all(other == first for other in others)


def refused(output: Path) -> None:
    """What would train apart is an error in every process, and nothing is out of step afterwards."""
    me = processes.index()
    model = classifier()
    dataset = model.dataset(TEXTS, LABELS, batch_size=8)
    other = classifier()
    other.tokenizer = tokenizer(["quite another text"] if me else TEXTS)
    calls = {
        r"Processes differ in epochs: process 0 has 1, process 1 2": lambda: model.fit(dataset, epochs=1 + me),
        r"differ in the rows of x: .*\"rows\": 21.*\"rows\": 20": lambda: model.fit(
            TEXTS[: 21 - me], LABELS[: 21 - me], batch_size=8
        ),
        r"differ in the method called: process 0 has fit, process 1 evaluate": lambda: (
            model.evaluate if me else model.fit
        )(dataset),
        r"differ in model: process 0 has Counting of": lambda: classifier(classes=2 + me).fit(
            TEXTS, LABELS, batch_size=8
        ),
        r"differ in the rows of x: .*\"lengths\"": lambda: model.fit(
            TEXTS[::-1] if me else TEXTS, LABELS, batch_size=8
        ),
        r"differ in a batch: ": lambda: model.fit(TEXTS, LABELS[me:] + LABELS[:me], batch_size=8),
        r"differ in tokenizer: .* load it in all processes": lambda: other.fit(dataset),
        r"batch_size=7 is to be shared by 2 devices": lambda: model.fit(TEXTS, LABELS, batch_size=7),
        r"On several hosts, arrays are not shared": lambda: model.fit(np.ones((8, 4), "int32"), np.zeros(8, "int32")),
        r"train_on_batch in one of 2 connected": lambda: model.train_on_batch(np.ones((8, 4), "int32"), np.zeros(8)),
        r"BackupAndRestore brings back one": lambda: model.fit(
            dataset, callbacks=[keras.callbacks.BackupAndRestore(output / "backup")]
        ),
    }
    for match, call in calls.items():
        with pytest.raises(ValueError, match=match):
            call()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(reduction="sum"), metrics=None)
    with pytest.raises(ValueError, match='has reduction="sum"'):
        model.fit(TEXTS[:16], LABELS[:16], batch_size=8)
    model = classifier()
    model.compile(keras.optimizers.SGD(0.1 * (1 + me)))
    with pytest.raises(ValueError, match=r"differ in compiled: .*SGD"):
        model.fit(dataset)
    found = tfm.training.Resume(output / f"run{me or ''}", every_steps=2, every_minutes=None)  # `resumed` wrote "run"
    with pytest.raises(ValueError, match="Processes find other checkpoints"):
        classifier().fit(dataset, callbacks=[found])


def callbacks(output: Path) -> None:
    """The first process alone writes and shows; all of them stop together."""
    me = processes.index()

    class Odd(keras.callbacks.Callback):
        """What this process alone does in between."""

        def on_epoch_end(self, epoch, logs=None):
            self.seen = [*getattr(self, "seen", ()), dict(logs)]
            if processes.index() == 0:
                self.model.predict(TEXTS[:3])
                self.model.test_on_batch(*self.model.collate(TEXTS[:2], LABELS[:2]))

    model = classifier(dropout=0.1)
    odd = Odd()
    written = [
        odd,
        keras.callbacks.ModelCheckpoint(output / f"model{me}.keras"),
        keras.callbacks.CSVLogger(output / f"log{me}.csv"),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=100.0),
        keras.callbacks.EarlyStopping("loss", patience=1, min_delta=100.0),
    ]
    history = model.fit(TEXTS, LABELS, batch_size=8, epochs=9, verbose=2, callbacks=written)
    assert len(history.epoch) == 2
    assert_equal([odd.seen, float(model.optimizer.learning_rate)])
    assert_equal([variable.numpy().tolist() for variable in model.trainable_variables])
    print(f"process {me} is through", flush=True)


def hanging(output: Path) -> None:
    """Process 1 stops in the middle of an epoch, for longer than the other waits, and then goes on."""

    class Stopping(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if processes.index() == 1 and batch == 1:
                time.sleep(6)

    begun = time.monotonic()
    try:
        classifier().fit(TEXTS, LABELS, batch_size=8, epochs=2, verbose=0, callbacks=[Stopping()])
    except RuntimeError as error:
        (output / f"hanging{processes.index()}").write_text(f"{time.monotonic() - begun:.1f} s: {error}")
        raise


def main() -> None:
    torch.set_num_threads(1)
    output, *programs = sys.argv[1:]
    found = distribution.initialize(timeout=60, collective_timeout=float(os.environ.get("TEST_TIMEOUT", "60")))
    assert (found.count, found.launcher) == (int(os.environ["WORLD_SIZE"]), "torchrun")
    for program in programs:
        begun = time.monotonic()
        globals()[program](Path(output))
        print(f"{program}: {time.monotonic() - begun:.1f} s", flush=True)


if __name__ == "__main__":
    main()
