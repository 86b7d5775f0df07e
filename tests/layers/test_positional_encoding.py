"""Absolute positions added to embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, normal, numpy
from keras import ops

from keras_tfm.layers import PositionalEncoding

X = normal(2, 6, 8)
PLACES = np.array([[3, 1, 0, 4, 2, 5]], "int32")


def sinusoids(places: np.ndarray, width: int, base: float = 10_000.0) -> np.ndarray:
    angles = places[..., None] / base ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], -1).reshape(*places.shape, width)


def test_sinusoids_are_added():
    places = np.arange(6)[None]
    assert_close(PositionalEncoding()(X), X + sinusoids(places, 8))
    assert_close(PositionalEncoding()(X, positions=PLACES), X + sinusoids(PLACES, 8))
    assert_close(PositionalEncoding(offset=2, base=50.0)(X), X + sinusoids(places + 2, 8, 50.0))
    halves = PositionalEncoding(interleaved=False)(np.zeros_like(X))
    assert_close(
        halves,
        np.broadcast_to(
            np.concatenate([sinusoids(places, 8)[..., 0::2], sinusoids(places, 8)[..., 1::2]], -1), X.shape
        ),
    )


def test_rows_may_have_positions_of_their_own():
    places = np.stack([PLACES[0], PLACES[0][::-1]])
    for layer in (PositionalEncoding(), PositionalEncoding("learned", max_length=6)):
        both = numpy(layer(X, positions=places))
        for row in range(2):
            assert_close(layer(X[row : row + 1], positions=places[row : row + 1]), both[row : row + 1], 1e-6)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_rows_are_added(offset):
    layer = PositionalEncoding("learned", max_length=6, offset=offset)
    layer.build(X.shape)
    (table,) = (numpy(w) for w in fill_weights(layer).weights)
    assert table.shape == (6 + offset, 8)
    assert_close(layer(X), X + table[offset : 6 + offset], 1e-6)
    assert_close(layer(X, positions=PLACES), X + table[PLACES + offset], 1e-6)


def test_shorter_sequences_take_the_first_rows():
    layer = PositionalEncoding("learned", max_length=6)
    assert_close(numpy(layer(X))[:, :3], layer(X[:, :3]), 1e-6)


@pytest.mark.parametrize("policy_name", ["bfloat16", "mixed_bfloat16"])
def test_low_precision_keeps_positions_apart(policy_name):
    """KerasHub's positions in bfloat16: 641 distinct rows of 2048."""
    zeros = np.zeros((1, 2048, 64), "float32")
    rows = numpy(PositionalEncoding(dtype=policy_name)(zeros))[0]
    assert len(np.unique(rows, axis=0)) == 2048
    exact = ops.cast(PositionalEncoding()(zeros), "bfloat16")
    np.testing.assert_array_equal(rows, numpy(exact)[0])


@pytest.mark.parametrize(
    "layer", [PositionalEncoding(), PositionalEncoding("learned", max_length=6)], ids=lambda layer: layer.kind
)
def test_positions_are_counted_over_real_tokens_and_anew_in_each_segment(layer):
    rows = numpy(layer(np.zeros_like(X[:1])))[0]
    padding = np.array([[0, 0, 1, 1, 1, 1]], bool)
    np.testing.assert_array_equal(numpy(layer(np.zeros_like(X[:1]), padding_mask=padding))[0, 2:], rows[:4])
    segments = np.array([[1, 1, 1, 2, 2, 2]])
    np.testing.assert_array_equal(numpy(layer(np.zeros_like(X[:1]), segment_ids=segments))[0], rows[[0, 1, 2, 0, 1, 2]])


# Past the table ------------------------------------------------------------------------------------------------------


def test_sequences_longer_than_the_table_raise():
    layer = PositionalEncoding("learned", max_length=5)
    with pytest.raises(ValueError, match=r"6 tokens.*max_length=5"):
        layer(X)


@pytest.mark.parametrize("wrong", [5, -1])
@pytest.mark.parametrize("kind", ["numpy", "eager"])
def test_positions_past_the_table_raise(wrong, kind):
    places = np.array([[0, 1, 2, 3, 4, wrong]], "int32")
    layer = PositionalEncoding("learned", max_length=5, offset=1)
    with pytest.raises(ValueError, match=r"positions must be from 0 to 4.*got"):
        layer(X, positions=places if kind == "numpy" else ops.convert_to_tensor(places))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has lengths unknown before running")
def test_lengths_unknown_before_running_raise_in_tensorflow():
    import tensorflow as tf

    layer = PositionalEncoding("learned", max_length=5)
    layer.build((None, None, 8))
    compiled = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 8))])
    assert_close(compiled(X[:, :5]), layer(X[:, :5]), 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="max_length=5"):
        compiled(X)


@pytest.mark.skipif(BACKEND != "jax", reason="jax.jit cannot raise on values")
def test_positions_past_the_table_show_under_jit():
    import jax

    layer = PositionalEncoding("learned", max_length=5)
    layer.build((None, None, 8))
    result = numpy(jax.jit(lambda x, p: layer(x, positions=p))(X, np.array([[0, 1, 2, 3, 4, 5]])))
    assert np.isfinite(result[:, :5]).all()
    assert np.isnan(result[:, 5]).all()
