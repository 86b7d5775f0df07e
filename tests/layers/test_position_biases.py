"""ALiBi and T5's relative bias as layers, and position schemes as parts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy

from keras_tfm.layers import ALiBi, PositionalEncoding, PositionScheme, RelativePositionBias, RotaryEmbedding, position
from keras_tfm.ops import positions

QUERY, KEY = normal(2, 4, 3, 8), normal(2, 6, 1, 8)
DISTANCE = np.arange(6)[None, :] - np.arange(4)[:, None]


def test_alibi_falls_with_distance():
    expected = -np.abs(DISTANCE) * positions.alibi_slopes(3)[:, None, None]
    assert_close(ALiBi()(QUERY, KEY), expected[None], 1e-6)
    moved = ALiBi()(QUERY, KEY, np.arange(4)[None] + 10, np.arange(6)[None] + 10)
    assert_close(moved, expected[None], 1e-6)


def test_alibi_stays_exact_in_low_precision():
    long = np.zeros((1, 3000, 4, 8), "float32")
    bias = ALiBi(dtype="bfloat16")(long[:, :1], long)
    assert "float32" in str(bias.dtype)
    assert_close(numpy(bias)[0, 3, 0, 2999], -2999 * 2.0**-8, 1e-6)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_looks_its_table_up(bidirectional):
    layer = RelativePositionBias(8, 20, bidirectional)
    bias = layer(QUERY, KEY)
    assert tuple(bias.shape) == (1, 3, 4, 6)
    (table,) = (numpy(w) for w in fill_weights(layer).weights)
    assert table.shape == (8, 3)
    options = dict(num_buckets=8, max_distance=20, bidirectional=bidirectional)
    buckets = numpy(positions.relative_buckets(DISTANCE.astype("int32"), **options))
    assert_close(layer(QUERY, KEY), table[buckets].transpose(2, 0, 1)[None], 0)


def test_relative_bias_is_float32_inside_a_low_precision_layer():
    """The variable must not be rounded by the autocast of the attention layer around it."""
    from keras_tfm.layers import MultiHeadSelfAttention

    seen = []

    class Spy(RelativePositionBias):
        def bias(self, *arguments):
            seen.append(super().bias(*arguments))
            return seen[-1]

    scheme = Spy(8, 20)
    layer = MultiHeadSelfAttention(2, position=scheme, dtype="mixed_bfloat16")
    x = normal(1, 4, 8)
    layer(x)
    fill_weights(scheme)
    layer(x)
    table = numpy(scheme.embeddings)
    options = dict(num_buckets=8, max_distance=20, bidirectional=True)
    buckets = numpy(positions.relative_buckets(DISTANCE[:, :4].astype("int32"), **options))
    assert_close(seen[-1], table[buckets].transpose(2, 0, 1)[None], 1e-7)


def test_make_takes_strings_dicts_and_layers():
    assert position.make(None) is None
    assert isinstance(position.make("rotary"), RotaryEmbedding)
    assert position.make({"kind": "rotary", "base": 50.0}).base == 50.0
    assert position.make("relative", name="n", dtype="mixed_bfloat16").dtype_policy.name == "mixed_bfloat16"
    assert position.make({"kind": "learned", "max_length": 5}).kind == "learned"
    assert isinstance(position.make("sinusoidal"), PositionalEncoding)
    given = ALiBi()
    assert position.make(given) is given


def test_a_scheme_of_the_users_own_has_three_hooks():
    class Nothing(PositionScheme):
        pass

    scheme = Nothing()
    assert scheme.embed(QUERY, None) is QUERY
    assert scheme.rotate(QUERY, KEY, None) == (QUERY, KEY)
    assert scheme.bias(QUERY, KEY, None, None) is None
