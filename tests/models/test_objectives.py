"""Loss and accuracy over tokens: the textbook's where all tokens count, and only labelled tokens counted."""

import keras
import numpy as np
import pytest
from helpers import numpy

from keras_tfm.models.objectives import TokenAccuracy, TokenCrossentropy

LOGITS = np.random.default_rng(0).normal(size=(3, 5, 7)).astype("float32")
LABELS = np.random.default_rng(1).integers(0, 7, (3, 5))


def by_hand(labels, logits, weights):
    logits = logits.astype("float64")
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return (losses * weights).sum() / max(weights.sum(), 1e-9)


def test_equals_the_mean_over_tokens():
    expected = by_hand(LABELS, LOGITS, np.ones((3, 5)))
    assert float(TokenCrossentropy()(LABELS, LOGITS)) == pytest.approx(expected, rel=1e-5)
    keras_own = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(LABELS, LOGITS)
    assert float(keras_own) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ignored", [-100, -1])
def test_negative_labels_do_not_count(ignored):
    labels = LABELS.copy()
    labels[0, 2:] = labels[2] = ignored
    counted = labels >= 0
    assert float(TokenCrossentropy()(labels, LOGITS)) == pytest.approx(by_hand(labels, LOGITS, counted), rel=1e-5)
    metric = TokenAccuracy()
    metric.update_state(labels, LOGITS)
    assert float(metric.result()) == pytest.approx((LOGITS.argmax(-1) == labels)[counted].mean())


def test_nothing_labelled_costs_nothing():
    assert float(TokenCrossentropy()(np.full((3, 5), -100), LOGITS)) == 0.0
    metric = TokenAccuracy()
    metric.update_state(np.full((3, 5), -100), LOGITS)
    assert float(metric.result()) == 0.0


def test_tokens_of_short_batches_count_no_more():
    accuracy = TokenAccuracy()
    for length, right in ((1, 1), (9, 0)):
        labels = np.ones((1, length), "int32")
        accuracy.update_state(labels, np.eye(2, dtype="float32")[labels * right])
    assert float(accuracy.result()) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_sample_weights_of_rows_and_of_tokens(shape):
    weights = np.random.default_rng(2).random(shape)
    expected = by_hand(LABELS, LOGITS, np.broadcast_to(weights.reshape(shape + (1,) * (2 - len(shape))), (3, 5)))
    assert float(TokenCrossentropy()(LABELS, LOGITS, weights)) == pytest.approx(expected, rel=1e-5)


def test_is_float32_under_low_precision():
    low = keras.ops.cast(LOGITS * 30, "bfloat16")
    exact = by_hand(LABELS, numpy(low), np.ones((3, 5)))
    loss = TokenCrossentropy()(LABELS, low)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == pytest.approx(exact, rel=1e-4)


def test_survive_serialization():
    for thing in (TokenCrossentropy(), TokenAccuracy()):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(thing))
        assert type(again) is type(thing)
        assert again.name == thing.name
