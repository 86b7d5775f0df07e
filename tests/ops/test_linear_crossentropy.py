"""The loss in chunks is the loss of whole logits, and so are its gradients."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import BACKEND, gradients, normal, numpy
from keras import ops

from keras_tfm.ops.linear_crossentropy import linear_crossentropy
from keras_tfm.ops.losses import token_crossentropy

TOKENS, WIDTH, VOCABULARY = 13, 6, 11
HIDDEN, TABLE, BIAS = normal(TOKENS, WIDTH, seed=1), normal(VOCABULARY, WIDTH, seed=2), normal(VOCABULARY, seed=3)
LABELS = np.random.default_rng(4).integers(0, VOCABULARY, TOKENS).astype("int32")
LABELS[[0, 5, 6, 12]] = [-100, -1, -100, -100]
OPTIONS = {
    "plain": {},
    "every option": dict(scale=0.5, softcap=2.0, label_smoothing=0.1, z_loss=1e-2),
    "smoothed": dict(label_smoothing=0.2),
    "capped": dict(softcap=1.5),
}


def dense(hidden, table, bias, weights=1.0, *, scale=1.0, softcap=None, transposed=False, **options):
    """The definition, whole logits and all."""
    logits = ops.matmul(hidden, table if transposed else ops.transpose(table)) + ops.cast(bias, hidden.dtype)
    logits = ops.cast(logits, "float32") * scale
    if softcap is not None:
        logits = softcap * ops.tanh(logits / softcap)
    losses, counted = token_crossentropy(LABELS, logits, **options)
    return ops.sum(losses * ops.convert_to_tensor(weights, dtype="float32") * counted)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("name", OPTIONS if BACKEND != "jax" else ["every option"])
def test_values_and_gradients_are_those_of_whole_logits(name, chunk):
    weights = np.linspace(0.5, 2.0, TOKENS).astype("float32")

    def chunked(hidden, table, bias):
        options = dict(bias=bias, weights=weights, chunk=chunk, **OPTIONS[name])
        total, counted = linear_crossentropy(hidden, table, LABELS, **options)
        assert abs(float(counted) - weights[LABELS >= 0].sum()) < 1e-4
        return total

    arrays = (HIDDEN, TABLE, BIAS)
    value, found = gradients(chunked, *arrays)
    expected, wanted = gradients(lambda *a: dense(*a, weights, **OPTIONS[name]), *arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_table_of_width_by_vocabulary_and_more_axes():
    def chunked(hidden, table):
        shape = (1, TOKENS, WIDTH)
        return linear_crossentropy(ops.reshape(hidden, shape), table, LABELS[None], transposed=True, chunk=5)[0]

    value, found = gradients(chunked, HIDDEN, TABLE.T.copy())
    expected, wanted = gradients(lambda h, t: dense(h, t, np.zeros(VOCABULARY, "float32")), HIDDEN, TABLE)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[1].T, wanted[1], rtol=1e-4, atol=1e-6)


def test_half_precision_is_as_near_as_whole_logits_are():
    def half(function):
        return lambda h, t, b: function(ops.cast(h, "bfloat16"), ops.cast(t, "bfloat16"), b)

    exact, wanted = gradients(lambda *a: dense(*a), HIDDEN, TABLE, BIAS)
    whole, whole_gradients = gradients(half(dense), HIDDEN, TABLE, BIAS)
    value, found = gradients(
        half(lambda h, t, b: linear_crossentropy(h, t, LABELS, bias=b, chunk=4)[0]), HIDDEN, TABLE, BIAS
    )
    assert abs(value - exact) <= max(2 * abs(whole - exact), 1e-2 * abs(exact))
    for mine, theirs, true in zip(found, whole_gradients, wanted, strict=True):
        size = np.abs(true).max()
        assert np.abs(mine - true).max() <= max(2 * np.abs(theirs - true).max(), 2e-2 * size)


def test_no_label_at_all():
    none = np.full((TOKENS,), -100, "int32")
    value, (by_hidden, by_table) = gradients(lambda h, t: linear_crossentropy(h, t, none)[0], HIDDEN, TABLE)
    assert value == 0.0
    assert not by_hidden.any()
    assert not by_table.any()
    assert float(linear_crossentropy(HIDDEN, TABLE, none)[1]) == 0.0


def test_smoothing_and_z_loss_by_their_formulas():
    logits = normal(5, 7, seed=8)
    labels = np.array([3, -100, 0, 6, 2], "int32")
    normalizer = np.log(np.exp(logits).sum(-1))
    target = np.full((5, 7), 0.3 / 7)
    target[np.arange(5), np.maximum(labels, 0)] += 0.7
    expected = (target * (normalizer[:, None] - logits)).sum(-1) + 0.01 * normalizer**2
    losses, counted = token_crossentropy(labels, logits, label_smoothing=0.3, z_loss=0.01)
    np.testing.assert_allclose(numpy(losses), expected * (labels >= 0), rtol=1e-5)
    np.testing.assert_array_equal(numpy(counted), labels >= 0)
