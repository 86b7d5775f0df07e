"""One of two processes on this machine, four simulated devices each: `python two_processes.py PORT INDEX OUTPUT [DIRECTORY]`.

With INDEX -1, one process with eight devices trains the same.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import keras
import numpy as np

import keras_tfm as tfm
from keras_tfm import distribution
from keras_tfm.ops import processes

TEXTS = [" ".join(["soup", "bean", "day", "sun"][(n * k) % 4] for k in range(1, 3 + n % 5)) for n in range(21)]


def refused(message, call):
    try:
        call()
    except ValueError as error:
        assert re.search(message, str(error)), error  # noqa: PT017 - this is no test
    else:
        raise AssertionError(f"taken: {message}")


def refuse(model, index, folder):
    """What would train, or predict, other things in each process, and what one process cannot write."""
    ones, labels = np.ones((8, 4), "int32"), [n % 2 for n in range(len(TEXTS))]
    refused("On several hosts, arrays are not shared", lambda: model.fit(ones, ones[:, 0], verbose=0))
    refused("raw rows .* or arrays, the same in each; got generator", lambda: model.predict(x for x in [ones]))
    refused("predict takes no steps", lambda: model.predict(ones, steps=1))
    refused("Processes differ in the rows of x: process 0", lambda: model.fit(TEXTS[index:], labels[index:]))
    texts = [*reversed(TEXTS)] if index else TEXTS
    refused("Processes differ in the rows of x: .*lengths", lambda: model.fit(texts, labels))
    refused("Processes differ in the rows of x: .*lengths", lambda: model.predict(texts))
    refused("Processes differ in a batch", lambda: model.evaluate(TEXTS, [(n + index) % 2 for n in labels]))
    refused("Processes differ in the arrays", lambda: model.predict(ones + index))
    refused("Processes differ in the method called", lambda: (model.fit, model.evaluate)[index](TEXTS, labels))
    refused("Processes differ in epochs", lambda: model.fit(TEXTS, labels, epochs=1 + index))
    writer = keras.callbacks.ModelCheckpoint(folder / "split.keras")
    refused("ModelCheckpoint writes from one process", lambda: model.fit(TEXTS, labels, callbacks=[writer]))
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    refused("BackupAndRestore brings back one process", lambda: model.fit(TEXTS, labels, callbacks=[backup]))
    other = tfm.data.train_tokenizer(TEXTS, 40, kind="bpe", lowercase=bool(index), max_length=8)
    tokenizer, model.tokenizer = model.tokenizer, other
    refused("Processes differ in tokenizer", lambda: model.fit(TEXTS, labels))
    model.tokenizer = tokenizer
    (folder / "a file").touch()
    try:
        model.save_pretrained(folder / "a file" / "below")
    except (OSError, RuntimeError) as error:
        assert isinstance(error, RuntimeError) == bool(index), error  # noqa: PT017 - this is no test
    else:
        raise AssertionError("written below a file")


def refuse_alone(tokenizer):
    """What would train a model in each process."""
    import jax

    def model():
        backbone = tfm.models.bert(num_layers=1, hidden_dim=8, num_heads=2, vocabulary_size=40, max_sequence_length=8)
        return tfm.TextClassifier(backbone, 2, tokenizer=tokenizer)

    own = model()
    labels = [n % 2 for n in range(len(TEXTS))]
    for method in (lambda: own.fit(TEXTS, labels), lambda: own.evaluate(TEXTS, labels), lambda: own.predict(TEXTS)):
        refused("2 processes are connected, and no distribution is set", method)
    mesh = keras.distribution.DeviceMesh((4,), ("data",), [f"cpu:{device.id}" for device in jax.local_devices()])
    with distribution.data_parallel(mesh).scope():
        own = model()
        refused("the distribution's mesh has devices of 1 of them", lambda: own.fit(TEXTS, labels))


def main():
    port, index, output, *rest = sys.argv[1:]
    if int(index) >= 0:
        found = distribution.initialize(f"127.0.0.1:{port}", 2, int(index), timeout=60)
        assert found.count == 2, found
    import jax

    assert len(jax.devices()) == 8
    keras.utils.set_random_seed(0)
    tokenizer = tfm.data.train_tokenizer(TEXTS, 40, kind="bpe", max_length=8)
    results, folder = {}, Path(output).parent
    for name, layouts in (
        ("data", distribution.data_parallel()),
        ("fsdp", distribution.fsdp(distribution.mesh(data=8))),
        ("tensor", distribution.tensor_parallel(distribution.mesh(data=2, model=4))),
    ):
        keras.utils.set_random_seed(0)
        with layouts.scope():
            backbone = tfm.models.bert(
                num_layers=1, hidden_dim=64, num_heads=4, vocabulary_size=40, max_sequence_length=8, dropout=0.1
            )
            model = tfm.TextClassifier(backbone, 2, tokenizer=tokenizer)
            model.compile(keras.optimizers.SGD(0.1))
            callbacks = [keras.callbacks.CSVLogger(output.replace(".npz", f".{name}.csv"))]
            if name == "data":
                callbacks.append(keras.callbacks.ModelCheckpoint(output.replace(".npz", ".keras")))
            elif name == "fsdp":
                callbacks.append(keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True))
            elif name == "tensor" and int(index) >= 0:
                charts, batch = output.replace(".npz", "-charts"), (TEXTS[:4], [0, 1, 0, 1])
                callbacks.append(tfm.training.TensorBoard(charts, batch, 3, texts=TEXTS[:2], histograms=True))
            if rest:
                kept = callbacks[1:] if name == "fsdp" else []
                callbacks.append(
                    tfm.training.Resume(f"{rest[0]}/{name}", every_steps=2, every_minutes=None, callbacks=kept)
                )
            labels = [n % 2 for n in range(len(TEXTS))]
            history = model.fit(
                TEXTS, labels, batch_size=8, epochs=2, verbose=2, callbacks=callbacks, validation_data=(TEXTS, labels)
            ).history
            results |= {f"{name}/{key}": np.array(values) for key, values in history.items()}
            results[f"{name}/evaluated"] = np.array(model.evaluate(TEXTS, labels, batch_size=8, verbose=0))
            results[f"{name}/predicted"] = model.predict(TEXTS, batch_size=8)
            ids = np.array([[n % 40, 1 + n % 7, 3, 2] for n in range(21)], "int32")
            inputs = {"token_ids": ids[:16] if int(index) < 0 else ids}  # 16 rows: eight devices share them
            results[f"{name}/predicted arrays"] = model.predict(inputs, batch_size=8, verbose=0)[:16]
            if name == "tensor":
                keras.utils.set_random_seed(0)
                decoder = tfm.models.gpt(
                    num_layers=1, hidden_dim=64, num_heads=4, vocabulary_size=40, max_sequence_length=16
                )
                language_model = tfm.CausalLM(decoder, tokenizer=tokenizer)
                for options in ({"temperature": 0.0}, {"seed": 1}):
                    texts = language_model.generate(TEXTS[:2], max_new_tokens=6, **options)
                    results[f"generated/{options}"] = np.frombuffer("|".join(texts).encode(), np.uint8)
                results["score"] = language_model.score(TEXTS[1:2])[0].log_probs
            model.save_pretrained(folder / f"{name} of {'both' if int(index) >= 0 else Path(output).stem}")
            for variable in model.trainable_variables:
                results[f"{name}/{variable.path}"] = processes.whole(variable)
    if int(index) >= 0:
        with layouts.scope():
            refuse(model, int(index), folder)
        refuse_alone(tokenizer)
    np.savez(output, **results)


main()
