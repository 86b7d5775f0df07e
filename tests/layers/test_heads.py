"""Classification and masked-token heads against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy, reset_seeds

from keras_tfm.layers import ClassificationHead, MaskedLMHead, TokenEmbedding

X = normal(2, 6, 8)


def weights(layer) -> dict[str, np.ndarray]:
    return {w.path.split("/", 1)[-1]: numpy(w) for w in layer.weights}


def test_a_plain_classification_head_is_a_projection():
    head = ClassificationHead(3)
    head.build(X.shape)
    w = weights(fill_weights(head))
    assert_close(head(X), X @ w["logits/kernel"] + w["logits/bias"])
    assert_close(head(X[:, 0]), X[:, 0] @ w["logits/kernel"] + w["logits/bias"])


def test_a_classification_head_with_a_hidden_layer():
    head = ClassificationHead(3, hidden_dim=5)
    head.build(X.shape)
    w = weights(fill_weights(head))
    hidden = np.tanh(X @ w["hidden/kernel"] + w["hidden/bias"])
    assert_close(head(X), hidden @ w["logits/kernel"] + w["logits/bias"])


def test_a_norm_follows_the_hidden_layer():
    head = ClassificationHead(3, hidden_dim=5, activation="relu", norm="layer_norm", use_bias={"hidden": False})
    head.build(X.shape)
    w = weights(fill_weights(head))
    assert sorted(w) == ["hidden/kernel", "logits/bias", "logits/kernel", "norm/beta", "norm/gamma"]
    hidden = np.maximum(X @ w["hidden/kernel"], 0)
    hidden = hidden - hidden.mean(-1, keepdims=True)
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5) * w["norm/gamma"] + w["norm/beta"]
    assert_close(head(X), hidden @ w["logits/kernel"] + w["logits/bias"], 1e-5)


@pytest.mark.parametrize("options", [{"norm": "layer_norm"}, {"activation": "relu"}, {"use_bias": {"hidden": False}}])
def test_options_of_a_hidden_layer_that_is_not_there(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ClassificationHead(3, **options)


@pytest.mark.parametrize("hidden_dim", [None, 5])
def test_classification_dropout_is_for_training(hidden_dim):
    head = ClassificationHead(3, hidden_dim, dropout=0.5)
    plain = numpy(head(X))
    reset_seeds(head)
    trained = numpy(head(X, training=True))
    assert np.abs(trained - plain).max() > 1e-3
    np.testing.assert_array_equal(numpy(head(X)), plain)


def test_the_masked_lm_head_uses_the_table():
    table, head = TokenEmbedding(11, 8), MaskedLMHead(11, activation="relu")
    table.build(None)
    head.build(X.shape)
    fill_weights(table)
    w = weights(fill_weights(head))
    hidden = np.maximum(X @ w["hidden/kernel"] + w["hidden/bias"], 0)
    hidden = hidden - hidden.mean(-1, keepdims=True)
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + 1e-5) * w["norm/gamma"] + w["norm/beta"]
    expected = hidden @ numpy(table.weights[0]).T + w["bias"]
    assert_close(head(X, token_embedding=table), expected, 1e-5)
    assert len(table.weights) == 1
    assert sum(np.prod(w.shape) for w in head.weights) == 8 * 8 + 8 + 2 * 8 + 11
