"""One of two processes on this machine, four simulated devices each: `python two_processes.py PORT INDEX OUTPUT [DIRECTORY]`.

With INDEX -1, one process with eight devices trains the same.
"""

from __future__ import annotations

import re
import sys

import keras
import numpy as np

import keras_tfm as tfm
from keras_tfm import distribution

TEXTS = [" ".join(["soup", "bean", "day", "sun"][(n * k) % 4] for k in range(1, 3 + n % 5)) for n in range(21)]


def refused(message, call):
    try:
        call()
    except ValueError as error:
        assert re.search(message, str(error)), error  # noqa: PT017 - this is no test
    else:
        raise AssertionError(f"taken: {message}")


def main():
    port, index, output, *rest = sys.argv[1:]
    if int(index) >= 0:
        found = distribution.initialize(f"127.0.0.1:{port}", 2, int(index), timeout=60)
        assert found.count == 2, found
    import jax

    assert len(jax.devices()) == 8
    keras.utils.set_random_seed(0)
    tokenizer = tfm.data.train_tokenizer(TEXTS, 40, kind="wordpiece", max_length=8)
    results = {}
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
            callbacks = []
            if rest:
                callbacks = [tfm.training.Resume(f"{rest[0]}/{name}", every_steps=2, every_minutes=None)]
            labels = [n % 2 for n in range(len(TEXTS))]
            history = model.fit(
                TEXTS, labels, batch_size=8, epochs=2, verbose=0, callbacks=callbacks, validation_data=(TEXTS, labels)
            ).history
            results |= {f"{name}/{key}": np.array(values) for key, values in history.items()}
            results[f"{name}/evaluated"] = np.array(model.evaluate(TEXTS, labels, batch_size=8, verbose=0))
            results[f"{name}/predicted"] = model.predict(TEXTS, batch_size=8)
            ids = np.array([[n % 40, 1 + n % 7, 3, 2] for n in range(21)], "int32")
            inputs = {"token_ids": ids[:16] if int(index) < 0 else ids}  # 16 rows: eight devices share them
            results[f"{name}/predicted arrays"] = model.predict(inputs, batch_size=8, verbose=0)[:16]
            for variable in model.trainable_variables:
                if int(index) >= 0:
                    from jax.experimental import multihost_utils

                    value = multihost_utils.process_allgather(variable.value, tiled=True)
                else:
                    value = variable.value
                results[f"{name}/{variable.path}"] = np.asarray(value)
    if int(index) >= 0:
        ones = np.ones((8, 4), "int32")
        refused("On several hosts, arrays are not shared", lambda: model.fit(ones, ones[:, 0], verbose=0))
        refused("raw rows .* or arrays, the same in each; got generator", lambda: model.predict(x for x in [ones]))
        refused("predict takes no steps", lambda: model.predict(ones, steps=1))
    np.savez(output, **results)


main()
