"""The fused Adam step: Keras's own numbers, state and files, and other optimizers left alone."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy

from keras_tfm.ops.fused_adam import accelerate

X = np.random.default_rng(0).normal(size=(16, 5)).astype("float32")
Y = X @ np.arange(5, dtype="float32")


def trained(optimizer, fused, steps=7, dtype=None):
    keras.utils.set_random_seed(3)
    hidden = keras.layers.Dense(4, activation="tanh", dtype=dtype)
    model = keras.Sequential([keras.Input((5,)), hidden, keras.layers.Dense(1)])
    assert not fused or accelerate(optimizer) is (BACKEND != "jax")
    model.compile(optimizer, "mse")
    for _ in range(steps):
        model.train_on_batch(X, Y)
    return model


OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.1),
    "epsilon": lambda: keras.optimizers.Adam(1e-2, epsilon=0.3, beta_1=0.7, beta_2=0.9),
    "schedule": lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-2, 10)),
    "clipped": lambda: keras.optimizers.Adam(1e-2, global_clipnorm=0.1),
    "accumulated": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
    "ema": lambda: keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_keras(name):
    plain, fused = (trained(OPTIMIZERS[name](), fused) for fused in (False, True))
    start = trained(OPTIMIZERS[name](), False, steps=0)
    for a, b, first in zip(plain.weights, fused.weights, start.weights, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=2e-5, atol=1e-6)
        assert np.abs(numpy(a) - numpy(first)).max() > 1e-3
    for a, b in zip(plain.optimizer.variables, fused.optimizer.variables, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=2e-5, atol=1e-6)


def test_mixed_precision():
    plain, fused = (trained(keras.optimizers.Adam(1e-2), fused, dtype="mixed_bfloat16") for fused in (False, True))
    for a, b in zip(plain.weights, fused.weights, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), atol=2e-3)


def test_saves_and_goes_on_as_keras(tmp_path):
    model = trained(keras.optimizers.Adam(1e-2), True)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    again.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-5, atol=1e-6)


def test_leaves_others_alone():
    class Mine(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, learning_rate * gradient)

    for optimizer in (keras.optimizers.SGD(), keras.optimizers.Adam(amsgrad=True), keras.optimizers.Nadam(), "adam"):
        assert accelerate(optimizer) is False
    if BACKEND != "torch":
        assert accelerate(Mine()) is False


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "torch", reason="by torch.compile")
def test_steps_can_be_compiled():
    compiled, plain = trained(keras.optimizers.AdamW(1e-2), True, steps=0), trained(keras.optimizers.AdamW(1e-2), True)
    compiled.compile(compiled.optimizer, "mse", jit_compile=True)
    for _ in range(7):
        compiled.train_on_batch(X, Y)
    for a, b in zip(plain.variables, compiled.variables, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=2e-5, atol=1e-6)
