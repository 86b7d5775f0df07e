"""A small run that saves each few batches, for tests to kill: `python run.py RESULT [DIRECTORY [KILL_AFTER [SIGNAL]]]`."""

from __future__ import annotations

import os
import sys
import time

import keras
import numpy as np

import keras_tfm as tfm

TEXTS = [" ".join(["soup", "bean", "day", "sun"][(n * k) % 4] for k in range(1, 3 + n % 4)) for n in range(22)]
EPOCHS, BATCH = 4, 4


class Kill(keras.callbacks.Callback):
    """Sends this process a signal after so many batches."""

    def __init__(self, after: int, number: int):
        super().__init__()
        self.left, self.number = after, number

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), self.number)
            time.sleep(0.01)


def main():
    result, *rest = sys.argv[1:]
    tokenizer = tfm.data.train_tokenizer(TEXTS, 40, kind="bpe", max_length=8)
    keras.utils.set_random_seed(len(rest) and int(time.time() * 1e6) % 2**31)  # a checkpoint brings its own
    if len(rest) < 2 or not any(name.endswith(".safetensors") for name in os.listdir(rest[0])):
        keras.utils.set_random_seed(0)  # also where a life before was killed before its first save was written
    backbone = tfm.models.bert(
        num_layers=1, hidden_dim=8, num_heads=2, vocabulary_size=40, max_sequence_length=8, dropout=0.3
    )
    model = tfm.TextClassifier(backbone, 2, tokenizer=tokenizer)
    model.compile(keras.optimizers.AdamW(1e-2), jit_compile=keras.backend.backend() == "jax")
    callbacks = []
    if len(rest) > 1:
        callbacks.append(Kill(int(rest[1]), int(rest[2]) if len(rest) > 2 else 9))
    if rest:
        callbacks.append(tfm.training.Resume(rest[0], every_steps=2, every_minutes=None))
    labels = [n % 2 for n in range(len(TEXTS))]
    history = model.fit(
        TEXTS, labels, batch_size=BATCH, epochs=EPOCHS, callbacks=callbacks, verbose=0, validation_data=(TEXTS, labels)
    )
    arrays = {str(place): keras.ops.convert_to_numpy(v.value) for place, v in enumerate(model.variables)}
    np.savez(result, **arrays, loss=history.history["loss"], val_loss=history.history["val_loss"])


main()
