"""Rates by layer: as with an optimizer of that rate for each, under every step, schedule, file; gradual unfreezing."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy

import keras_tfm
from keras_tfm.training import GradualUnfreezing, WarmupSchedule, freeze, layer_rates
from training.models import SIZES, X, Y, classifier, not_jax

DECAY = 0.5
DEPTHS = {"head": 0, "pooler": 0, "block_1": 1, "block_0": 2}  # the embeddings: 3


def factor(path, decay=DECAY):
    return decay ** DEPTHS.get(path.split("/")[0], 3)


OPTIMIZERS = {
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.3),
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "adam": lambda rate: keras.optimizers.Adam(rate, global_clipnorm=0.3, use_ema=True),
    "lion": lambda rate: keras.optimizers.Lion(rate, weight_decay=0.1),
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate),
    "adagrad": lambda rate: keras.optimizers.Adagrad(rate),
    "adadelta": lambda rate: keras.optimizers.Adadelta(rate),
    "adamax": lambda rate: keras.optimizers.Adamax(rate),
    "lamb": lambda rate: keras.optimizers.Lamb(rate),
}
# Alone: the optimizer on gradients made by hand, which is quick; a model's own step is below.
SHAPES = {
    "block_0/a/kernel": (3, 2),
    "block_1/a/kernel": (2,),
    "head/kernel": (2, 2),
    "token_embedding/table/embeddings": (4, 2),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("adamw", "sgd") else not_jax) for name in OPTIMIZERS]
)
def test_equals_an_optimizer_for_each(name):
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=shape).astype("float32") for path, shape in SHAPES.items()}
    gradients = [{path: rng.normal(size=shape).astype("float32") for path, shape in SHAPES.items()} for _ in range(3)]

    def variables():
        made = [keras.Variable(value, name=path.split("/")[-1]) for path, value in values.items()]
        for variable, path in zip(made, SHAPES, strict=True):
            variable._path = path
        return made

    def apply(optimizer, variables, gradients):
        optimizer.apply([keras.ops.convert_to_tensor(gradients[path]) for path in SHAPES], variables)

    model = classifier(fill=0)
    plain = OPTIMIZERS[name](0.01)
    together, ours = layer_rates(model, DECAY, plain), variables()
    for given in gradients:
        apply(together, ours, given)
    for place, path in enumerate(SHAPES):
        alone, theirs = OPTIMIZERS[name](0.01 * factor(path)), variables()
        for given in gradients:
            apply(alone, theirs, given)
        np.testing.assert_allclose(numpy(ours[place]), numpy(theirs[place]), rtol=2e-5, atol=1e-7)
        assert np.abs(numpy(ours[place]) - values[path]).max() > 1e-6


def test_in_a_compiled_step_and_a_file(tmp_path):
    """Adam's first step has the size of its rate, whatever the gradient; the fused kernel must not bypass it."""
    model = classifier()
    before = {v.path: numpy(v) for v in model.weights}
    optimizer = keras.optimizers.AdamW(WarmupSchedule(1e-2, 1, decay="constant", first_step=1), weight_decay=0.0)
    optimizer = layer_rates(model, DECAY, optimizer)
    model.compile(optimizer, metrics=[])
    model.train_on_batch(X, Y)
    after = {v.path: numpy(v) for v in model.weights}
    for path, value in after.items():
        if path.endswith("key/bias"):
            continue  # has no gradient: softmax does not see it
        moved = np.abs(value - before[path]).max()
        assert moved == pytest.approx(1e-2 * factor(path), rel=1e-2), path
    if BACKEND == "tensorflow":
        assert "update_step" in vars(optimizer)  # the fused kernel
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras").optimizer
    assert again.get_config() == optimizer.get_config()
    assert again._group_of == optimizer._group_of
    for a, b in zip(again.variables, optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append({v.path: numpy(v) for v in self.model.weights})


def test_gradual_unfreezing():
    model, record = classifier(num_layers=1), Record()
    start = {v.path: numpy(v) for v in model.weights}
    depths = {"head": 0, "pooler": 0, "block_0": 1}
    optimizer = keras.optimizers.Adam(1e-2, global_clipnorm=0.1)
    model.compile(layer_rates(model, 1.0, optimizer), metrics=[])
    fit = dict(batch_size=8, shuffle=False, verbose=0)
    model.fit(X, Y, epochs=4, callbacks=[GradualUnfreezing(), record], **fit)
    for epoch, weights in enumerate(record.epochs):
        earlier = record.epochs[epoch - 1] if epoch else start
        changed = {path for path in weights if not np.array_equal(weights[path], earlier[path])}
        assert changed == {path for path in weights if depths.get(path.split("/")[0], 2) <= epoch}, epoch
    np.testing.assert_array_equal(numpy(model.optimizer._rate_factors), np.ones(3, "float32"))

    frozen = classifier(num_layers=1)  # the first epoch is that of a model whose other layers are frozen
    freeze(frozen, "embeddings", "blocks")
    frozen.compile(keras.optimizers.Adam(1e-2, global_clipnorm=0.1), metrics=[])
    frozen.train_on_batch(X, Y)
    for v in frozen.weights:
        np.testing.assert_allclose(numpy(v), record.epochs[0][v.path], rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_stages_take_epochs():
    model = classifier(fill=0)
    model.compile(layer_rates(model, 0.5), metrics=[])
    callback = GradualUnfreezing(epochs=2)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, expected in enumerate([[0, 0, 0, 1]] * 2 + [[0, 0, 0.5, 1]] * 2 + [[0, 0.25, 0.5, 1]] * 2):
        callback.on_epoch_begin(epoch)
        np.testing.assert_array_equal(numpy(model.optimizer._rate_factors), expected)
    callback.on_epoch_begin(9)
    np.testing.assert_array_equal(numpy(model.optimizer._rate_factors), [0.125, 0.25, 0.5, 1])


@pytest.mark.once
def test_stacks_and_tables():
    model = keras_tfm.Seq2SeqLM(keras_tfm.models.transformer(num_layers=1, tie_embeddings=False, **SIZES))
    optimizer = layer_rates(model, 0.5, "sgd")
    optimizer.build(model.trainable_variables)
    factors = {
        v.path: optimizer.rate_groups[group][0]
        for v, group in zip(model.trainable_variables, optimizer._group_of, strict=True)
    }
    for path, value in factors.items():
        if path.endswith("reverse_embeddings"):
            expected = 1.0
        else:
            expected = {"decoder_block_0": 0.5, "block_0": 0.25}.get(path.split("/")[0], 0.125)
        assert value == expected or "final_norm" in path, path


@pytest.mark.once
def test_keeps_what_is_not_in_the_config():
    model = classifier(fill=0)
    optimizer = keras.optimizers.AdamW(1e-2, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer = layer_rates(model, 0.5, optimizer)
    optimizer.build(model.trainable_variables)
    used = {v.path.split("/")[-1] for v in model.trainable_variables if optimizer._use_weight_decay(v)}
    assert "kernel" in used
    assert "bias" not in used


@pytest.mark.once
def test_refuses():
    model = classifier(fill=0)
    for decay in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match="decay must be above 0"):
            layer_rates(model, decay)
    with pytest.raises(ValueError, match="must be one of Keras's"):
        layer_rates(model, 0.9, "nadam")
    used = keras.optimizers.SGD()
    used.build(model.trainable_variables)
    with pytest.raises(ValueError, match="has not been used"):
        layer_rates(model, 0.9, used)
    with pytest.raises(ValueError, match="share their weights"):
        layer_rates(keras_tfm.models.bert(num_layers=3, layer_groups=1, **SIZES), 0.9)
    with pytest.raises(ValueError, match="epochs must be a positive integer"):
        GradualUnfreezing(0)
    model.compile()
    with pytest.raises(ValueError, match=r"compiled with keras_tfm\.training\.layer_rates"):
        model.fit(X, Y, verbose=0, callbacks=[GradualUnfreezing()])
