"""Distillation: the textbook's loss and gradient, a teacher left alone, plain `fit` at hard=1, and every kind of data."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, numpy, weight_gradients
from scipy.special import log_softmax, softmax

import keras_tfm
from keras_tfm.training import Distiller
from training.models import SIZES, X, Y, classifier, not_jax, quickly, writer

TEXTS = [f"{word} words of a text that has {word} words" for word in ["one", "two", "three", "four", "five", "six"]]
TOKENIZER = keras_tfm.data.train_tokenizer(TEXTS, 60, kind="wordpiece", lowercase=True, max_length=12)
TEXT_SIZES = {**SIZES, "vocabulary_size": TOKENIZER.vocabulary_size, "max_sequence_length": 12}
LABELS = np.array([0, 1, 2, 0, 1, 2], "int32")


def reader(num_layers=1, fill=0.3, **options):
    backbone = keras_tfm.models.bert(num_layers=num_layers, **TEXT_SIZES)
    model = keras_tfm.TextClassifier(backbone, num_classes=3, tokenizer=TOKENIZER, **options)
    return fill_weights(model, fill)


def tagger(num_layers=1, fill=0.3, num_classes=3, **options):
    backbone = keras_tfm.models.bert(num_layers=num_layers, pooler=False, **{**SIZES, **options})
    return fill_weights(keras_tfm.TokenClassifier(backbone, num_classes), fill)


def values(model):
    return {variable.path: numpy(variable) for variable in model.variables}


def same(left, right):
    return all(np.array_equal(left[path], right[path]) for path in left)


def kl(student, teacher, temperature):
    theirs, ours = log_softmax(teacher / temperature, -1), log_softmax(student / temperature, -1)
    return (np.exp(theirs) * (theirs - ours)).sum(-1) * temperature**2


def evaluated(distiller, *data, **options):
    return distiller.evaluate(*data, verbose=0, return_dict=True, **options)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=quickly), 4.0])
def test_loss_of_labelled_tokens_by_hand(temperature):
    student, teacher = tagger(), tagger(2, fill=0.5)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(X.shape) < 0.4, -100, rng.integers(0, 3, X.shape)).astype("int32")
    weights = rng.random(len(X)).astype("float32")
    distiller = Distiller(student, teacher, temperature=temperature, hard=0.3)
    distiller.compile(keras.optimizers.SGD(0.1))
    logits, taught = numpy(student(X)), numpy(teacher(X))
    tokens = (y >= 0) * weights[:, None]
    soft = (kl(logits, taught, temperature) * tokens).sum() / tokens.sum()
    losses = -np.take_along_axis(log_softmax(logits, -1), np.maximum(y, 0)[..., None], -1)[..., 0]
    hard = (losses * tokens).sum() / tokens.sum()
    found = evaluated(distiller, X, y, sample_weight=weights)
    assert found["soft_loss"] == pytest.approx(soft, rel=1e-4)
    assert found["hard_loss"] == pytest.approx(hard, rel=1e-4)
    assert found["loss"] == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-4)
    assert found["accuracy"] == pytest.approx((logits.argmax(-1) == y)[y >= 0].mean(), abs=1e-5)


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=quickly), 3.0])
def test_gradient_in_closed_form(temperature):
    """Of the bias of the projection: T (softmax(student / T) - softmax(teacher / T)), the mean over rows."""
    student, teacher = classifier(1), classifier(1, fill=0.6)
    distiller = Distiller(student, teacher, temperature=temperature, hard=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))

    def loss():
        return distiller.compute_loss(X, None, distiller(X, training=False))

    found = weight_gradients(distiller, loss)
    (bias,) = [gradient for path, gradient in found.items() if path.endswith("bias") and gradient.shape == (3,)]
    chances = [softmax(numpy(model(X)) / temperature, axis=-1) for model in (student, teacher)]
    assert_close(bias, temperature * (chances[0] - chances[1]).mean(0), 1e-5)
    assert {variable.path for variable in distiller.trainable_variables} == {
        variable.path for variable in student.trainable_variables
    }


@quickly
def test_hot_gradient_is_that_of_centred_logits():
    """For a large T, T² KL is half the mean square of differences of centred logits (Hinton et al. 2015, section 2.1)."""
    student, teacher = classifier(1), classifier(1, fill=0.6)
    distiller = Distiller(student, teacher, temperature=50.0, hard=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    logits, taught = (numpy(model(X)).astype("float64") for model in (student, teacher))
    difference = (logits - logits.mean(-1, keepdims=True)) - (taught - taught.mean(-1, keepdims=True))
    expected = (difference**2).sum(-1).mean() / (2 * 3)
    assert evaluated(distiller, X)["loss"] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("data", ["arrays", pytest.param("strings", marks=quickly)])
def test_hard_alone_is_plain_fit(data):
    x, y = (X, Y) if data == "arrays" else (TEXTS, LABELS)
    made = (lambda: classifier(1, dropout=0.1)) if data == "arrays" else reader
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)  # dropout's states too
        models.append(made())
    plain, student = models
    keras.utils.set_random_seed(3)
    history = plain.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    distiller = Distiller(student, made(), hard=1.0)
    keras.utils.set_random_seed(3)
    distilled = distiller.fit(x, y, batch_size=4, epochs=2, verbose=0).history
    for left, right in zip(values(plain).values(), values(student).values(), strict=True):
        if BACKEND == "jax":  # XLA fuses the step otherwise where one more mean is kept, and rounds otherwise
            assert_close(left, right, 1e-5)
        else:
            np.testing.assert_array_equal(left, right)
    assert distilled["loss"] == pytest.approx(history["loss"], rel=1e-6)
    assert distilled["accuracy"] == history["accuracy"]


def test_student_learns_from_unlabelled_rows_and_teacher_stays():
    student, teacher = classifier(1), classifier(2, fill=0.8, dropout=0.1)
    before = values(teacher)
    distiller = Distiller(student, teacher, temperature=2.0, hard=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    first = kl(numpy(student(X)), numpy(teacher(X)), 2.0).mean()
    history = distiller.fit(np.tile(X, (40, 1)), batch_size=8, shuffle=False, verbose=0).history
    assert set(history) == {"loss", "soft_loss"}
    assert kl(numpy(student(X)), numpy(teacher(X)), 2.0).mean() < 0.05 * first
    assert same(before, values(teacher))
    assert not teacher.trainable_variables
    size = sum(variable.shape == student.head.weights[-1].shape for variable in distiller.optimizer.variables)
    assert size == 2 * sum(variable.shape == (3,) for variable in student.variables)  # Adam's, of the student alone


@quickly
def test_states_of_blocks_by_hand():
    student, teacher = tagger(2), tagger(3, fill=0.5)
    mask = np.arange(5)[None, :] < np.array([5, 4, 3, 2, 1, 5, 5, 5])[:, None]
    distiller = Distiller(student, teacher, hard=0.0, hidden=2.0, layers={0: 0, 1: 2})
    distiller.compile(keras.optimizers.SGD(0.1))
    inputs = {"token_ids": X, "padding_mask": mask}

    def states(model):
        found, backbone = [], model.backbone
        x = backbone.embedding_norm(
            backbone.token_type_embedding(backbone.position_embedding(backbone.token_embedding(X), padding_mask=mask))
        )
        for block in backbone.blocks:
            x = block(x, padding_mask=keras.ops.convert_to_tensor(mask))
            found.append(numpy(x))
        return found

    ours, theirs = states(student), states(teacher)
    distances = []
    for left, right in ((ours[0], theirs[0]), (ours[1], theirs[2])):
        norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
        distances.append((1 - (left * right).sum(-1) / norms)[mask].mean())
    found = evaluated(distiller, inputs)
    assert found["hidden_loss"] == pytest.approx(np.mean(distances), rel=1e-4)
    assert found["loss"] == pytest.approx(found["soft_loss"] + 2 * np.mean(distances), rel=1e-4)
    distiller.compile(keras.optimizers.Adam(0.02))
    history = distiller.fit(inputs, epochs=15, verbose=0).history
    assert history["hidden_loss"][-1] < 0.7 * history["hidden_loss"][0]


@quickly
def test_padding_is_not_learnt_from_without_labels():
    student, teacher = tagger(), tagger(fill=0.5)
    mask = np.arange(5)[None, :] < np.array([5, 4, 3, 2, 1, 5, 5, 5])[:, None]
    inputs = {"token_ids": X, "padding_mask": mask}
    distiller = Distiller(student, teacher, hard=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    expected = kl(numpy(student(inputs)), numpy(teacher(inputs)), 2.0)[mask].mean()
    assert evaluated(distiller, inputs)["soft_loss"] == pytest.approx(expected, rel=1e-4)


@not_jax
def test_pairs_with_inputs_that_only_the_teacher_takes():
    """A student without token types and a teacher with them both get what they take, of pairs."""
    student = fill_weights(
        keras_tfm.TextClassifier(
            keras_tfm.models.bert(num_layers=1, token_type_vocabulary_size=None, **TEXT_SIZES),
            num_classes=3,
            tokenizer=TOKENIZER,
        ),
        0.3,
    )
    teacher = reader(1, fill=0.5)
    pairs = [(text, "a text") for text in TEXTS]
    distiller = Distiller(student, teacher, hard=0.5)
    distiller.compile(keras.optimizers.SGD(0.0))
    history = distiller.fit(pairs, LABELS, validation_data=(pairs, LABELS), batch_size=6, verbose=0).history
    logits, taught = student.predict(pairs), teacher.predict(pairs)
    assert history["soft_loss"][0] == pytest.approx(kl(logits, taught, 2.0).mean(), rel=1e-3)
    assert history["val_soft_loss"] == pytest.approx(history["soft_loss"], rel=1e-3)
    np.testing.assert_array_equal(distiller.predict(pairs), logits)


@quickly
def test_datasets_splits_and_unlabelled_strings():
    student, teacher = reader(), reader(fill=0.5)
    distiller = Distiller(student, teacher, hard=0.0)
    distiller.fit(TEXTS, epochs=1, verbose=0, batch_size=3)
    found = evaluated(distiller, student.dataset(TEXTS, batch_size=3))
    assert found["soft_loss"] == pytest.approx(kl(student.predict(TEXTS), teacher.predict(TEXTS), 2.0).mean(), rel=1e-3)
    history = distiller.fit(TEXTS, LABELS, validation_split=0.5, verbose=0).history
    assert {"val_soft_loss", "val_accuracy"} <= set(history)
    distiller = Distiller(reader(), teacher)
    with pytest.raises(ValueError, match="needs labels"):
        distiller.fit(TEXTS, verbose=0)


@quickly
@pytest.mark.parametrize("task", ["masked", "causal", "seq2seq", "tokens", "answers"])
def test_tasks(task):
    """With each task's own labels and its raw rows, every part is learnt."""
    sizes = dict(num_layers=1, **TEXT_SIZES)

    def made():
        if task == "masked":
            return keras_tfm.MaskedLM(keras_tfm.models.bert(pooler=False, **sizes), tokenizer=TOKENIZER)
        if task == "causal":
            return keras_tfm.CausalLM(keras_tfm.models.gpt(**sizes), tokenizer=TOKENIZER)
        if task == "seq2seq":
            backbone = keras_tfm.models.transformer(
                **sizes, num_decoder_layers=1, metadata={"decoder_start_token_id": 1}
            )
            return keras_tfm.Seq2SeqLM(backbone, tokenizer=TOKENIZER)
        backbone = keras_tfm.models.bert(pooler=False, **sizes)
        if task == "tokens":
            return keras_tfm.TokenClassifier(backbone, labels=["O", "B"], tokenizer=TOKENIZER)
        return keras_tfm.QuestionAnswerer(backbone, tokenizer=TOKENIZER)

    data = {
        "masked": (TEXTS,),
        "causal": (TEXTS,),
        "seq2seq": (TEXTS, TEXTS),
        "tokens": ([text.split() for text in TEXTS], [["O", "B"] + ["O"] * (len(t.split()) - 2) for t in TEXTS]),
        "answers": (
            [("one", text) for text in TEXTS],
            [{"text": "words", "answer_start": t.index("words")} for t in TEXTS],
        ),
    }[task]
    student, teacher = made(), fill_weights(made(), 0.3)
    distiller = Distiller(student, teacher, hard=0.2, hidden=1.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    history = distiller.fit(*data, epochs=8, verbose=0).history
    parts = (
        0.2 * np.array(history["hard_loss"]) + 0.8 * np.array(history["soft_loss"]) + np.array(history["hidden_loss"])
    )
    np.testing.assert_allclose(history["loss"], parts, rtol=1e-4)
    for part in ("soft_loss", "hidden_loss", "loss"):
        assert history[part][-1] < history[part][0], part


@quickly
def test_accumulated_gradients_are_those_of_all_tokens():
    rng = np.random.default_rng(1)
    y = np.where(np.arange(5)[None, :] < np.array([5, 5, 5, 5, 1, 1, 1, 1])[:, None], rng.integers(0, 3, X.shape), -100)
    found = []
    for batch_size, steps in ((8, None), (4, 2)):
        student = tagger()
        distiller = Distiller(student, tagger(fill=0.5))
        distiller.compile(keras.optimizers.SGD(0.5, gradient_accumulation_steps=steps))
        distiller.fit(X, y, batch_size=batch_size, shuffle=False, verbose=0)
        found.append(values(student))
    for path in found[0]:
        assert_close(found[0][path], found[1][path], 1e-5)


def test_survives_a_file(tmp_path):
    distiller = Distiller(classifier(1), classifier(1, fill=0.6), temperature=3.0, hard=0.25, hidden=0.5)
    distiller.fit(X, Y, verbose=0)
    path = tmp_path / "distiller.keras"
    distiller.save(path)
    again = keras.saving.load_model(path)
    for name in ("student", "teacher"):
        for left, right in zip(getattr(distiller, name).variables, getattr(again, name).variables, strict=True):
            np.testing.assert_array_equal(numpy(left), numpy(right))
    assert [again.temperature, again.hard, again.hidden, list(map(tuple, again.layer_pairs))] == [
        3.0,
        0.25,
        0.5,
        [(0, 0)],
    ]
    assert not again.teacher.trainable_variables
    assert again.optimizer.iterations == distiller.optimizer.iterations
    assert evaluated(again, X, Y) == pytest.approx(evaluated(distiller, X, Y), rel=1e-5)
    distiller.student.save(tmp_path / "student.keras")
    student = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(numpy(student(X)), numpy(distiller.student(X)))


def refused(name):
    student = classifier(1)
    return {
        "task": lambda: Distiller(student, tagger()),
        "num_classes": lambda: Distiller(tagger(), tagger(num_classes=4)),
        "vocabulary_size": lambda: Distiller(student, classifier(1, vocabulary_size=12)),
        "labels": lambda: Distiller(reader(labels=["a", "b", "c"]), reader(labels=["b", "a", "c"])),
        "share weights": lambda: Distiller(student, student),
        "student must be one of": lambda: Distiller(student.backbone, student),
        "temperature": lambda: Distiller(student, classifier(1), temperature=0.0),
        "hard": lambda: Distiller(student, classifier(1), hard=1.5),
        "hidden": lambda: Distiller(student, classifier(1), hidden=-1.0),
        "hidden=0": lambda: Distiller(student, classifier(1), layers={0: 0}),
        "hidden_dim": lambda: Distiller(student, classifier(1, hidden_dim=12), hidden=1.0),
        "from 0 to 0": lambda: Distiller(student, classifier(1), hidden=1.0, layers=[(0, 1)]),
        "compares logits": lambda: Distiller(writer(), writer()).compile(loss="linear_crossentropy"),
    }[name]


@quickly
@pytest.mark.parametrize(
    "name",
    [
        "task",
        "num_classes",
        "vocabulary_size",
        "labels",
        "share weights",
        "student must be one of",
        "temperature",
        "hard",
        "hidden",
        "hidden=0",
        "hidden_dim",
        "from 0 to 0",
        "compares logits",
    ],
)
def test_refuses(name):
    with pytest.raises(ValueError, match=name):
        refused(name)()


@quickly
def test_refuses_what_has_no_meaning():
    backbones = [keras_tfm.models.bert(num_layers=1, **SIZES) for _ in range(2)]
    with pytest.raises(ValueError, match="regression"):
        Distiller(*(keras_tfm.TextClassifier(backbone, num_classes=1) for backbone in backbones))
    other = keras_tfm.data.train_tokenizer(TEXTS[::2], 60, kind="wordpiece", lowercase=True, max_length=12)
    teacher = reader()
    teacher.tokenizer = other
    with pytest.raises(ValueError, match="same tokenizer"):
        Distiller(reader(), teacher)
    student = classifier(1)
    student.backbone.recompute_blocks()
    distiller = Distiller(student, classifier(1), hidden=1.0)
    with pytest.raises(ValueError, match="recompute_blocks"):
        distiller.fit(X, Y, verbose=0)
    words = [text.split() for text in TEXTS]
    taggers = [
        keras_tfm.TokenClassifier(keras_tfm.models.bert(num_layers=1, **TEXT_SIZES), 2, tokenizer=TOKENIZER)
        for _ in range(2)
    ]
    with pytest.raises(ValueError, match="texts as strings"):
        Distiller(*taggers, hard=0.0).fit(words, verbose=0)
