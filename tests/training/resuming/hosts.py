"""A small run on two processes, or one, that are told to end: `python hosts.py RESULT DIRECTORY PORT INDEX [WHEN AFTER]`.

Each has two simulated devices; with INDEX -1, one process has four. WHEN is "batch" or "validation", AFTER how many of these
the process is sent SIGTERM. Without a directory ("-") nothing is saved on the way.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import keras
import numpy as np

import keras_tfm as tfm
from keras_tfm import distribution

TEXTS = [" ".join(["soup", "bean", "day", "sun"][(n * k) % 4] for k in range(1, 3 + n % 4)) for n in range(24)]


class Told(keras.callbacks.Callback):
    """Sends this process SIGTERM; batches take a little while, as those of real runs do."""

    def __init__(self, when: str, after: int):
        super().__init__()
        self.when, self.left = when, after

    def count(self, what):
        self.left -= what == self.when
        if what == self.when and self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

    def on_train_batch_end(self, batch, logs=None):
        self.count("batch")

    def on_test_batch_end(self, batch, logs=None):
        self.count("validation")


def main():
    result, directory, port, index, *told = sys.argv[1:]
    if int(index) >= 0:
        distribution.initialize(f"127.0.0.1:{port}", 2, int(index), timeout=60)
    keras.utils.set_random_seed(0)
    tokenizer = tfm.data.train_tokenizer(TEXTS, 40, kind="bpe", max_length=8)
    with distribution.fsdp().scope():
        backbone = tfm.models.bert(
            num_layers=1, hidden_dim=64, num_heads=2, vocabulary_size=40, max_sequence_length=8, dropout=0.3
        )
        model = tfm.TextClassifier(backbone, 2, tokenizer=tokenizer)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9))  # AdamW makes much of rounding
        callbacks = [Told(*told[:1], int(told[1]))] if told else []
        if directory != "-":
            callbacks.append(tfm.training.Resume(directory, every_steps=50, every_minutes=None))
        labels = [n % 2 for n in range(len(TEXTS))]
        history = model.fit(
            TEXTS,
            labels,
            batch_size=4,
            epochs=6,
            callbacks=callbacks,
            verbose=0,
            validation_data=(TEXTS, labels),
        ).history
        arrays = {str(place): keras.ops.convert_to_numpy(v.value) for place, v in enumerate(model.variables)}
        np.savez(result, **arrays, loss=history["loss"], val_loss=history["val_loss"])


main()
