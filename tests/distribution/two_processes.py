"""One of two processes on this machine, four simulated devices each: `python two_processes.py PORT INDEX OUTPUT [DIRECTORY]`.

With INDEX -1, one process with eight devices trains the same.
"""

from __future__ import annotations

import sys

import keras
import numpy as np

import keras_tfm as tfm
from keras_tfm import distribution

TEXTS = [" ".join(["soup", "bean", "day", "sun"][(n * k) % 4] for k in range(1, 3 + n % 5)) for n in range(21)]


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
            for variable in model.trainable_variables:
                if int(index) >= 0:
                    from jax.experimental import multihost_utils

                    value = multihost_utils.process_allgather(variable.value, tiled=True)
                else:
                    value = variable.value
                results[f"{name}/{variable.path}"] = np.asarray(value)
    if int(index) >= 0:
        try:
            model.fit(np.ones((8, 4), "int32"), np.zeros(8, "int32"), verbose=0)
        except ValueError as error:
            assert "On several hosts, arrays are not shared" in str(error)  # noqa: PT017 - this is no test
        else:
            raise AssertionError("arrays were taken")
    np.savez(output, **results)


main()
