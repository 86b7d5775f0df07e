"""Metrics of papers: the numbers of scikit-learn and of `score`, whatever the batches, the weights and the padding."""

import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import keras_tfm
from keras_tfm.training import F1, ExactMatch, Perplexity
from training.models import SIZES, X, classifier, writer

NAN = float("nan")


@st.composite
def ragged(draw):
    """Batches of (labels, logits, weights) of tokens, some without labels, some classes that never occur."""
    classes = draw(st.sampled_from([2, 5]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    used = draw(st.lists(st.integers(0, classes - 1), min_size=1, unique=True))
    batches = []
    for _ in range(draw(st.integers(1, 3))):
        shape = draw(st.sampled_from([(4,), (2, 5), (3, 2)]))  # few, for JAX compiles each
        labels = rng.choice(used, shape)
        labels = np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), rng.choice([-1, -100]), labels)
        logits = np.eye(classes)[rng.choice(used, shape)] * 3 + rng.random((*shape, classes))
        batches.append((labels.astype("int32"), logits.astype("float32"), rng.random(shape).astype("float32")))
    return classes, batches


def flat(batches, weighted):
    labels = np.concatenate([labels.ravel() for labels, _, _ in batches])
    chosen = np.concatenate([logits.argmax(-1).ravel() for _, logits, _ in batches])
    weights = np.concatenate([weights.ravel() for _, _, weights in batches])
    kept = labels >= 0
    return labels[kept], chosen[kept], weights[kept] if weighted else None


@given(
    data=ragged(),
    average=st.sampled_from(["micro", "macro", "weighted", None]),
    zero_division=st.sampled_from([0.0, 1.0, NAN]),
    weighted=st.booleans(),
    ignored=st.booleans(),
)
def test_f1_is_that_of_scikit_learn(data, average, zero_division, weighted, ignored):
    classes, batches = data
    ignore_class = 0 if ignored and average is not None else None
    metric = F1(classes, average, ignore_class=ignore_class, zero_division=zero_division)
    for labels, logits, weights in batches:
        metric.update_state(labels, logits, weights if weighted else None)
    labels, chosen, weights = flat(batches, weighted)
    asked = [c for c in range(classes) if c != ignore_class]
    if labels.size:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"average": average, "zero_division": zero_division, "sample_weight": weights}
            expected = f1_score(labels, chosen, labels=asked, **options)
    else:
        expected = np.full(len(asked) if average is None else (), zero_division)
    np.testing.assert_allclose(numpy(metric.result()), expected, rtol=1e-5, atol=1e-6)


def test_f1_with_nan_is_that_of_the_classes_which_occur():
    labels, chosen = np.array([[1, 1, 3, -100]]), np.array([[1, 3, 3, 0]])
    metric = F1(6, zero_division=NAN)
    metric.update_state(labels, np.eye(6)[chosen])
    assert float(metric.result()) == pytest.approx(f1_score([1, 1, 3], [1, 3, 3], average="macro"))
    metric = F1(6)
    metric.update_state(labels, np.eye(6)[chosen])
    assert float(metric.result()) == pytest.approx(f1_score([1, 1, 3], [1, 3, 3], average="macro") * 2 / 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"num_classes": 0}, "num_classes must be a positive"),
        ({"num_classes": 3, "average": "binary"}, "average must be one of"),
        ({"num_classes": 3, "ignore_class": 3}, "ignore_class must be from 0 to 2"),
        ({"num_classes": 3, "ignore_class": -1}, "ignore_class must be from 0 to 2"),
        ({"num_classes": 3, "ignore_class": 0, "average": None}, "average=None"),
        ({"num_classes": 3, "zero_division": 0.5}, "zero_division must be"),
    ],
)
def test_f1_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        F1(**options)


def test_f1_refuses_other_classes():
    with pytest.raises(ValueError, match="num_classes=3"):
        F1(3).update_state(np.zeros((2,), "int32"), np.zeros((2, 4), "float32"))


@given(data=ragged(), weighted=st.booleans())
def test_perplexity_by_hand(data, weighted):
    _, batches = data
    metric = Perplexity()
    total = count = 0.0
    for labels, logits, weights in batches:
        metric.update_state(labels, logits, weights if weighted else None)
        logits = logits.astype("float64")
        losses = np.log(np.exp(logits).sum(-1))
        losses -= np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
        weights = (weights if weighted else 1.0) * (labels >= 0)
        total, count = total + (losses * weights).sum(), count + weights.sum()
    assert float(metric.result()) == pytest.approx(np.exp(total / count) if count else 1.0, rel=1e-5)


def test_perplexity_is_that_of_score():
    model = writer()
    metric = Perplexity()
    metric.update_state(keras_tfm.models.language_models.shifted_labels(X), model(X))
    log_probs = np.concatenate([scored.log_probs for scored in model.score(X)])
    assert float(metric.result()) == pytest.approx(np.exp(-log_probs.mean()), rel=1e-4)


def test_perplexity_of_large_logits_in_low_precision():
    logits = np.zeros((1, 2, 4), "float32")
    logits[..., 1] = 60.0
    metric = Perplexity()
    metric.update_state(np.array([[1, 0]]), keras.ops.cast(logits, "bfloat16"))
    assert float(metric.result()) == pytest.approx(np.exp(30.0), rel=1e-4)


def exact(batches, weighted):
    """By rows, in words of the docstring."""
    right, total = 0.0, 0.0
    for labels, logits, weights in batches:
        rows = (labels, logits.argmax(-1), weights if weighted else np.ones_like(weights))
        for label, chosen, weight in zip(*rows, strict=True):
            kept = np.atleast_1d((label >= 0) & (weight > 0))
            if kept.any():
                row_weight = np.atleast_1d(weight)[kept].mean()
                total += row_weight
                right += row_weight * np.atleast_1d(label == chosen)[kept].all()
    return right / total if total else 0.0


@given(data=ragged(), weighted=st.booleans())
def test_exact_match_by_hand(data, weighted):
    _, batches = data
    batches = [(labels, logits, np.round(weights * 2) / 2) for labels, logits, weights in batches]  # some are 0
    metric = ExactMatch()
    for labels, logits, weights in batches:
        metric.update_state(labels, logits, weights if weighted else None)
    assert float(metric.result()) == pytest.approx(exact(batches, weighted), abs=1e-5)


def test_exact_match_of_rows_with_weights():
    labels = np.array([[0, 1, -100], [1, 1, 1], [-1, -1, -1]])
    logits = np.eye(2)[np.array([[0, 1, 0], [1, 0, 1], [0, 0, 0]])]
    metric = ExactMatch()
    metric.update_state(labels, logits, np.array([3.0, 1.0, 5.0]))
    assert float(metric.result()) == pytest.approx(0.75)
    metric.reset_state()
    metric.update_state(labels, logits, np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 0.5], [1.0, 1.0, 1.0]]))
    assert float(metric.result()) == pytest.approx(1.0)  # the wrong token has no weight


def test_exact_match_of_answers_needs_start_and_end():
    backbone = keras_tfm.models.bert(num_layers=1, **SIZES)
    model = keras_tfm.QuestionAnswerer(backbone)
    logits = numpy(model(X))
    labels = {name: values.argmax(-1) for name, values in logits.items()}
    labels["start_logits"][:3] += 1  # of 5 places: wrong
    labels["end_logits"][2:4] += 1
    metric = ExactMatch()
    metric.update_state(labels, logits)
    assert float(metric.result()) == pytest.approx(4 / 8)
    with pytest.raises(ValueError, match="end_logits"):
        metric.update_state({"start_logits": labels["start_logits"]}, logits)


def test_in_compile_and_in_files(tmp_path):
    """Under the backend's compiled step, of ragged batches, as from the predictions; and from the file again."""
    model = keras_tfm.TokenClassifier(keras_tfm.models.bert(num_layers=1, **SIZES), num_classes=3)
    rng = np.random.default_rng(0)
    y = np.where(rng.random(X.shape) < 0.3, -100, rng.integers(0, 3, X.shape)).astype("int32")
    weights = rng.random(8).astype("float32")
    model.compile(
        keras.optimizers.SGD(0.0),
        metrics=[Perplexity(), F1(3, "weighted", ignore_class=0, zero_division=NAN), ExactMatch()],
        weighted_metrics=[F1(3, name="weighed")],
    )
    model.fit(X, y, verbose=0, batch_size=3)
    path = tmp_path / "model.keras"
    model.save(path)
    model = keras.saving.load_model(path)
    found = model.evaluate(X, y, sample_weight=weights, batch_size=3, verbose=0, return_dict=True)
    logits = model.predict(X, verbose=0)
    kept = y >= 0
    labels, chosen = y[kept], logits.argmax(-1)[kept]
    assert found["f1"] == pytest.approx(f1_score(labels, chosen, labels=[1, 2], average="weighted"), abs=1e-5)
    rows = np.broadcast_to(weights[:, None], y.shape)[kept]
    assert found["weighed"] == pytest.approx(
        f1_score(labels, chosen, labels=range(3), average="macro", sample_weight=rows, zero_division=0), abs=1e-5
    )
    assert found["exact_match"] == pytest.approx(exact([(y, logits, np.ones(y.shape))], False))
    chances = keras.ops.convert_to_numpy(keras.ops.log_softmax(logits))
    picked = np.take_along_axis(chances, np.maximum(y, 0)[..., None], -1)[..., 0][kept]
    assert found["perplexity"] == pytest.approx(np.exp(-picked.mean()), rel=1e-4)


@pytest.mark.skipif(BACKEND == "jax", reason="takes long to compile; the code is that of TensorFlow")
def test_scores_of_each_class_in_the_history():
    model = classifier(1)
    y = np.array([0, 1, 1, 0, 1, 0, 1, 1], "int32")
    model.compile(keras.optimizers.SGD(0.0), metrics=[F1(3, None)])
    scores = model.fit(X, y, verbose=0).history["f1"][0]
    expected = f1_score(y, model.predict(X, verbose=0).argmax(-1), labels=range(3), average=None, zero_division=0)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
