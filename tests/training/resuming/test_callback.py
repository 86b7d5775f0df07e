"""A run that was interrupted and taken up again is the run that was not, to the bit."""

from __future__ import annotations

import random

import keras
import numpy as np
import pytest
from helpers import BACKEND

import keras_tfm as tfm
from keras_tfm.training import Resume

STEPS, EPOCHS = 5, 3
WORDS = ["red", "green", "blue", "round", "square", "flat"]
TEXTS = [" ".join(WORDS[(n * k) % 6] for k in range(1, 3 + n % 4)) for n in range(19)]
LABELS = [n % 2 for n in range(19)]
TOKENIZER = tfm.data.train_tokenizer(TEXTS, 40, kind="wordpiece", max_length=8)
IDS = np.random.default_rng(0).integers(5, 30, (19, 6)).astype("int32")
pytestmark = pytest.mark.filterwarnings("ignore:.*pooler.*")


EAGERLY = BACKEND != "jax"  # where each run would trace a model of its own; JAX keeps what it has compiled


@pytest.fixture(scope="module", autouse=True)
def kept_programs(tmp_path_factory):
    if BACKEND != "jax":
        yield
        return
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("programs")))
    jax.config.update(names[1], 0.0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


class Stop(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    """Raises after so many batches."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            raise Stop


def sizes(**options):
    return {
        **dict(num_layers=1, hidden_dim=8, num_heads=2, vocabulary_size=40, max_sequence_length=8, dropout=0.3),
        **options,
    }


def classifier(optimizer=None, run_eagerly=EAGERLY, **options):
    model = tfm.TextClassifier(tfm.models.bert(**sizes()), 2, tokenizer=TOKENIZER)
    model.compile(
        optimizer or keras.optimizers.AdamW(1e-2),
        run_eagerly=run_eagerly,
        jit_compile=BACKEND == "jax" and not run_eagerly,
        **options,
    )
    return model


def compiled():
    return classifier(run_eagerly=False)


def masked():
    model = tfm.MaskedLM(tfm.models.bert(**sizes()), tokenizer=TOKENIZER)
    model.compile(keras.optimizers.AdamW(1e-2), run_eagerly=EAGERLY)
    return model


def own():
    """A functional model of Keras, small enough to be compiled often."""
    ids = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(40, 8)(ids)
    x = keras.layers.Dropout(0.2)(keras.layers.GlobalAveragePooling1D()(x))
    model = keras.Model(ids, keras.layers.Dense(2, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=BACKEND == "jax")
    return model


class Augmented(keras.utils.PyDataset):
    """Draws from NumPy's generator as it is read."""

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        rows = np.random.permutation(4) + 4 * min(index, 3)  # noqa: NPY002
        return IDS[rows], np.array(LABELS)[rows]


class Reordered(Augmented):
    """Changes between epochs, and says how."""

    def __init__(self):
        super().__init__()
        self.offset = 0

    def on_epoch_end(self):
        self.offset += 1

    def get_state(self):
        return self.offset

    def set_state(self, state):
        self.offset = state

    def __getitem__(self, index):
        rows = (np.arange(4) + 4 * index + self.offset) % 19
        return IDS[rows], np.array(LABELS)[rows]


def endless():
    draws = np.random.default_rng(1)
    while True:
        rows = draws.integers(0, 19, 4)
        yield IDS[rows], np.array(LABELS)[rows]


def on_texts(model, resume, **options):
    return model.fit(TEXTS, LABELS, batch_size=4, epochs=EPOCHS, **options)


def on_texts_alone(model, resume, **options):
    return model.fit(TEXTS, batch_size=4, epochs=EPOCHS, **options)


def on_arrays(model, resume, **options):
    return model.fit(IDS, np.array(LABELS), batch_size=4, epochs=EPOCHS, **options)


def on_dataset(dataset):
    def fit(model, resume, **options):
        if resume is not None and not isinstance(model, tfm.TextClassifier):
            resume.data = dataset()
            return model.fit(resume.data, epochs=EPOCHS, **options)
        return model.fit(dataset(), epochs=EPOCHS, **options)

    return fit


def on_generator(model, resume, **options):
    return model.fit(endless(), steps_per_epoch=STEPS, epochs=EPOCHS, **options)


def on_generator_by_hand(model, resume, **options):
    data = endless()
    if resume is not None:
        data = resume.ready(data, steps_per_epoch=STEPS)
    return model.fit(data, steps_per_epoch=STEPS, epochs=EPOCHS, **options)


def on_grain(model, resume, **options):
    grain = pytest.importorskip("grain")
    rows = [(IDS[row], np.int32(LABELS[row])) for row in range(19)]
    return model.fit(grain.MapDataset.source(rows).shuffle(seed=3).batch(4), epochs=EPOCHS, **options)


def on_tf_data(model, resume, **options):
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices((IDS, np.array(LABELS))).shuffle(19, seed=1).repeat().batch(4)
    return model.fit(data, steps_per_epoch=STEPS, epochs=EPOCHS, **options)


CASES = {
    "texts": (classifier, on_texts),
    "texts, compiled": (compiled, on_texts),
    "masked texts": (masked, on_texts_alone),
    "arrays": (classifier, on_arrays),
    "arrays, own model": (own, on_arrays),
    "dataset": (classifier, on_dataset(Augmented)),
    "dataset with a state": (own, on_dataset(Reordered)),
    "generator": (classifier, on_generator),
    "generator, own model": (own, on_generator_by_hand),
    "grain": (classifier, on_grain),
}
if BACKEND == "tensorflow":
    CASES["tf.data"] = (classifier, on_tf_data)


def run(make, fit, directory=None, after=None, seed=0, resume=None, **options):
    """One process's part of a run: the model and its history, or None if it was interrupted."""
    keras.utils.set_random_seed(seed)
    random.seed(seed)
    model = make()
    callbacks = list(options.pop("callbacks", []))
    if after is not None:
        callbacks.append(Interrupt(after))
    if directory is not None:
        resume = Resume(directory, **{"every_steps": 1, "every_minutes": None, **(resume or {})})
        callbacks.append(resume)
    try:
        history = fit(model, resume if directory else None, verbose=0, callbacks=callbacks, **options)
    except Stop:
        return None
    return model, history


def weights(model):
    return [keras.ops.convert_to_numpy(variable.value) for variable in [*model.variables, *model.optimizer.variables]]


def assert_same(found, expected):
    for (path, ours), theirs in zip(
        (
            (v.path, w)
            for v, w in zip([*found[0].variables, *found[0].optimizer.variables], weights(found[0]), strict=True)
        ),
        weights(expected[0]),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
    assert found[1].history == expected[1].history
    assert found[1].epoch == expected[1].epoch


@pytest.mark.parametrize("case", CASES)
def test_an_interrupted_run_ends_as_one_that_was_not(case, tmp_path):
    make, fit = CASES[case]
    expected = run(make, fit)
    # What draws goes on as in the checkpoint; but TensorFlow shuffles by the seed of the process.
    seeds = (0, 0, 0) if "arrays" in case or "tf.data" in case else (0, 5, 6)
    assert run(make, fit, tmp_path, after=3, seed=seeds[0]) is None  # in the first epoch
    assert run(make, fit, tmp_path, after=6, seed=seeds[1]) is None  # in the second
    assert_same(run(make, fit, tmp_path, seed=seeds[2]), expected)
    again = run(make, fit, tmp_path, seed=seeds[2])  # nothing is left to do
    assert_same(again, expected)


@pytest.mark.parametrize("after", [2, 4, 5, 10, 14])
def test_wherever_it_is_interrupted(after, tmp_path):
    held_out = (IDS[:6], np.array(LABELS[:6]))
    fit = lambda *args, **options: on_arrays(*args, **options, validation_data=held_out)  # noqa: E731
    expected = run(own, fit)
    assert run(own, fit, tmp_path, after=after) is None
    assert_same(run(own, fit, tmp_path), expected)


@pytest.mark.parametrize("every", [2, 3, 7])
def test_what_was_trained_since_the_last_save_is_trained_again(every, tmp_path):
    expected = run(own, on_arrays)
    assert run(own, on_arrays, tmp_path, after=9, resume={"every_steps": every}) is None
    assert_same(run(own, on_arrays, tmp_path, resume={"every_steps": every}), expected)


def test_steps_per_execution_and_accumulated_gradients(tmp_path):
    def make():
        optimizer = keras.optimizers.AdamW(1e-2, gradient_accumulation_steps=3)
        return classifier(optimizer, run_eagerly=False, steps_per_execution=1 if BACKEND == "torch" else 2)

    def fit(model, resume, **options):
        return model.fit(IDS[:16], np.array(LABELS[:16]), batch_size=4, epochs=EPOCHS, **options)

    expected = run(make, fit)
    assert run(make, fit, tmp_path, after=3) is None
    assert_same(run(make, fit, tmp_path), expected)


def test_other_callbacks_go_on_where_they_were(tmp_path):
    def part(directory=None, after=None, epochs=9, seed=0):
        early = keras.callbacks.EarlyStopping("loss", patience=2, min_delta=10.0, restore_best_weights=True)
        options = {"callbacks": [early]}
        fit = lambda model, resume, **o: model.fit(IDS, np.array(LABELS), batch_size=4, epochs=epochs, **o)  # noqa: E731
        return run(own, fit, directory, after, seed, resume={"callbacks": [early]}, **options)

    expected = part()
    assert len(expected[1].epoch) == 3  # a bound that nothing reaches
    assert part(tmp_path, after=8) is None
    assert_same(part(tmp_path), expected)
    assert_same(part(tmp_path), expected)  # it was stopped, and stays so


def test_more_epochs_continue_a_finished_run(tmp_path):
    def fit(epochs):
        return lambda model, resume, **o: model.fit(IDS, np.array(LABELS), batch_size=4, epochs=epochs, **o)

    expected = run(own, fit(3))
    run(own, fit(2), tmp_path)
    assert_same(run(own, fit(3), tmp_path), expected)


def test_one_callback_serves_two_fits(tmp_path):
    keras.utils.set_random_seed(0)
    model, resume = classifier(), Resume(tmp_path)
    model.fit(TEXTS, LABELS, batch_size=4, epochs=1, callbacks=resume, verbose=0)
    history = model.fit(TEXTS, LABELS, batch_size=4, epochs=2, callbacks=[resume], verbose=0)
    assert history.epoch == [0, 1]
    assert model.fit(TEXTS, LABELS, batch_size=4, epochs=1, verbose=0).epoch == [0]  # without it, a fit of its own


def test_a_distiller_too(tmp_path):
    def make():
        model = tfm.training.Distiller(classifier(), classifier())
        model.compile(keras.optimizers.AdamW(1e-2), run_eagerly=EAGERLY)
        return model

    expected = run(make, on_texts)
    assert run(make, on_texts, tmp_path, after=7) is None
    assert_same(run(make, on_texts, tmp_path, seed=9), expected)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"keep": 1}, "keep must be at least 2"),
        ({"every_steps": 0}, "every_steps must be"),
        ({"every_minutes": 0}, "every_minutes must be positive"),
        ({"every_minutes": None}, "Give every_steps or every_minutes"),
        ({"on_sigterm": "die"}, "on_sigterm must be"),
    ],
)
def test_options_are_checked(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Resume(tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    assert run(classifier, on_texts, tmp_path, after=3) is None

    def wider():
        model = tfm.TextClassifier(tfm.models.bert(**sizes(hidden_dim=16)), 2, tokenizer=TOKENIZER)
        model.compile("adam")
        return model

    with pytest.raises(ValueError, match=r"another run: .* had the shape \(40, 8\), .* has \(40, 16\)"):
        run(wider, on_texts, tmp_path)
    with pytest.raises(ValueError, match="other data: an epoch had 5 batches, one of these has 10"):
        run(classifier, lambda model, resume, **o: model.fit(TEXTS, LABELS, batch_size=2, epochs=3, **o), tmp_path)
    other = tfm.data.train_tokenizer([text.upper() for text in TEXTS], 40, kind="bpe", max_length=8)

    def retrained():
        model = classifier()
        model.tokenizer = other
        return model

    for make, texts in ((retrained, TEXTS), (classifier, TEXTS[::-1])):
        with pytest.raises(
            ValueError, match=r"other data: .*'lengths'.* then, .* now.* save it beside the checkpoints"
        ):
            run(make, lambda model, resume, texts=texts, **o: model.fit(texts, LABELS, batch_size=4, **o), tmp_path)
    with pytest.raises(ValueError, match="another run: its optimizer had"):
        run(lambda: classifier(keras.optimizers.SGD(0.1)), on_texts, tmp_path)
    with pytest.raises(ValueError, match=r"callbacks \[\]; Resume was given \['EarlyStopping'\]"):
        run(classifier, on_texts, tmp_path, resume={"callbacks": [keras.callbacks.EarlyStopping("loss")]})


def test_data_without_a_position_are_refused(tmp_path):
    class Shuffled(Augmented):
        def on_epoch_end(self):
            np.random.shuffle(IDS)  # noqa: NPY002

    with pytest.raises(ValueError, match="Shuffled changes at on_epoch_end"):
        run(classifier, on_dataset(Shuffled), tmp_path)
    with pytest.raises(ValueError, match="PyDataset that is read with steps_per_epoch"):
        run(classifier, on_texts, tmp_path, steps_per_epoch=2)

    def unsaid(model, resume, **options):
        resume.data = endless()
        return model.fit(IDS, np.array(LABELS), batch_size=4, epochs=3, **options)

    assert run(own, unsaid, tmp_path, after=8) is None
    with pytest.raises(ValueError, match="Of one pass over data, give"):
        run(own, unsaid, tmp_path)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.data")
def test_orders_that_tensorflow_forgets_are_refused(tmp_path):
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((IDS, np.array(LABELS)))
    with pytest.raises(ValueError, match="keeps nowhere how often it was shuffled"):
        run(classifier, on_dataset(lambda: data.shuffle(19, seed=1).batch(4)), tmp_path)
    fixed = data.shuffle(19, seed=1, reshuffle_each_iteration=False).batch(4)
    expected = run(classifier, on_dataset(lambda: fixed))
    assert run(classifier, on_dataset(lambda: fixed), tmp_path, after=7) is None
    assert_same(run(classifier, on_dataset(lambda: fixed), tmp_path), expected)
    keras.utils.set_random_seed(0)
    model = classifier()
    tf.random.set_seed(None)
    with pytest.raises(ValueError, match="cannot be had again unless it is seeded"):
        on_arrays(model, None, callbacks=[Resume(tmp_path / "new")])
