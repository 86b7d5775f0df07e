"""What Keras's own training loop gets wrong under MirroredStrategy, on 4 logical devices, as JSON: true where it is right.

python plain_keras.py, with KERAS_BACKEND=tensorflow. Run by `test_strategies`. Nothing of this library is used.
"""

from __future__ import annotations

import contextlib
import json
import warnings

import keras
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # each program runs a few times
STRATEGY = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(4)])
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(16, 8)).astype("float32")
Y = RANDOM.integers(0, 3, 16)
# The second replica's rows, whose gradient overflows in float16, as the loss is scaled, and in no other replica.
LARGE = np.where(np.arange(16)[:, None] % 8 == 2, 300.0, X).astype("float32")
WEIGHTS = np.linspace(0.0, 1.0, 16)
IDS = np.where(np.arange(6) < RANDOM.integers(1, 7, (16, 1)), RANDOM.integers(1, 9, (16, 6)), 0)


def classifier():
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])


def tagger():
    embedding = keras.layers.Embedding(9, 8, mask_zero=True)
    return keras.Sequential([keras.Input((6,)), embedding, keras.layers.Dense(9)])


def trained(strategy, optimizer=None, make=classifier, x=X, y=Y, rows=16, reduction="sum_over_batch_size", **options):
    """The weights after two epochs."""
    keras.utils.set_random_seed(0)
    fitting = {name: options.pop(name) for name in ("sample_weight",) if name in options}
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        model = make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
        model.compile(optimizer() if optimizer else keras.optimizers.SGD(0.1), loss, **options)
    model.fit(x[:rows], y[:rows], batch_size=8, epochs=2, shuffle=False, verbose=0, **fitting)
    return np.concatenate([np.ravel(variable) for variable in model.get_weights()])


def right(**options):
    """Whether four replicas train the weights of one device."""
    one = trained(None, **options)
    assert np.isfinite(one).all()
    try:
        return bool(np.allclose(trained(STRATEGY, **options), one, atol=1e-5))
    except (tf.errors.OpError, RuntimeError, ValueError):
        return False


def of(**options):
    return lambda: right(optimizer=lambda: keras.optimizers.SGD(0.1, **options))


def float16():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        return right(x=LARGE)
    finally:
        keras.config.set_dtype_policy("float32")


def boolean_inputs():
    def make():
        inputs = keras.Input((8,), dtype="bool")
        return keras.Model(inputs, keras.layers.Dense(3)(keras.ops.cast(inputs, "float32")))

    return right(make=make, x=X > 0)


def dropout():
    """Whether replicas draw masks of their own."""
    with STRATEGY.scope():
        layer = keras.layers.Dropout(0.5)
        layer.build((1, 64))
    step = tf.function(lambda: STRATEGY.run(lambda: layer(tf.ones((1, 64)), training=True)))
    first, second, *_ = STRATEGY.experimental_local_results(step())
    return not np.array_equal(first, second)


def repeated_tokens():
    """Whether Adam takes the sum of what equal tokens add to an embedding's gradient; on one device too."""
    ends = []
    for sparse in (False, True):
        table = keras.Variable(np.zeros((3, 2), "float32"))
        adam = keras.optimizers.Adam(1e-2, epsilon=1e-5)
        adam.build([table])
        for sign in (1.0, -0.4):
            rows = tf.constant([[1.0, 2.0], [3.0, -1.0]]) * sign
            gradient = tf.IndexedSlices(rows, tf.constant([0, 0]), tf.constant([3, 2]))
            adam.apply([gradient if sparse else tf.convert_to_tensor(gradient)])
        ends.append(np.asarray(table))
    return np.allclose(*ends, atol=1e-6)


def predict_on_batch():
    with STRATEGY.scope():
        model = classifier()
    return len(model.predict_on_batch(X[:8])) == 8


CHECKS = {
    "works": lambda: right() and right(optimizer=lambda: keras.optimizers.AdamW(1e-2)),
    "float16": float16,
    "jit_compile": lambda: right(jit_compile=True),
    "gradient_accumulation_steps": of(gradient_accumulation_steps=2),
    "steps_per_execution": lambda: right(steps_per_execution=2),
    "clipnorm": of(clipnorm=0.01),
    "global_clipnorm": of(global_clipnorm=0.01),
    "clipvalue": of(clipvalue=0.01),
    "uneven last batch": lambda: right(rows=14),
    "empty replica": lambda: right(rows=3),
    "masked tokens": lambda: right(make=tagger, x=IDS, y=IDS),
    "mean_with_sample_weight": lambda: right(reduction="mean_with_sample_weight", sample_weight=WEIGHTS),
    "boolean inputs": boolean_inputs,
    "dropout": dropout,
    "predict_on_batch": predict_on_batch,
    "repeated tokens": repeated_tokens,
}


def main() -> None:
    warnings.simplefilter("ignore")
    print("RESULT " + json.dumps({name: check() for name, check in CHECKS.items()}))


if __name__ == "__main__":
    main()
