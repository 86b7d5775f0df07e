"""ALiBi and T5's relative bias as layers, and position schemes as parts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_close, fill_weights, normal, numpy

from keras_tfm.layers import (
    ALiBi,
    DisentangledBias,
    MultiHeadSelfAttention,
    PositionalEncoding,
    PositionScheme,
    RelativePositionBias,
    RotaryEmbedding,
    position,
)
from keras_tfm.layers.disentangled_bias import TERMS
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


ROWS = np.clip(-DISTANCE, -4, 3) + 4  # query minus key, with one row a distance up to 4


@pytest.mark.parametrize("terms", [["content_to_position"], ["position_to_content"], list(TERMS)], ids=str)
def test_disentangled_bias_is_the_paper(terms):
    """He et al. 2021, eq. 4, the vectors taken for keys and queries as they are."""
    key = normal(2, 6, 3, 8, seed=1)
    layer = DisentangledBias(None, 4, terms, norm=None)
    assert tuple(layer(QUERY, key).shape) == (2, 3, 4, 6)
    (table,) = (numpy(w) for w in fill_weights(layer).weights)
    vectors = table.reshape(8, 3, 8)[ROWS]  # (queries, keys, heads, head_dim)
    expected = sum(
        np.einsum("bqhd,qkhd->bhqk", QUERY, vectors)
        if term == "content_to_position"
        else np.einsum("bkhd,qkhd->bhqk", key, vectors)
        for term in terms
    )
    assert_close(layer(QUERY, key), expected / np.sqrt(8 * (1 + len(terms))), 1e-5)
    moved = layer(QUERY, key, np.arange(4)[None] + 10, np.arange(6)[None] + 10)
    assert_close(moved, layer(QUERY, key), 1e-6)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_disentangled_vectors_pass_through_the_projections(kv_heads):
    """And the scores of content with content are divided by sqrt(3 * head_dim) too."""
    x = normal(2, 6, 8)
    position = {"kind": "disentangled", "num_buckets": None, "max_distance": 4}
    layer = MultiHeadSelfAttention(4, kv_heads, position=position)
    layer(x)
    w = {v.path.split("/", 1)[1]: numpy(v) for v in fill_weights(layer).weights}
    table = w["position/embeddings"]
    table = table - table.mean(-1, keepdims=True)
    table = table / np.sqrt((table**2).mean(-1, keepdims=True) + 1e-5)
    table = table * w["position/norm/gamma"] + w["position/norm/beta"]

    def project(x, name):
        heads = np.einsum("...d,dnh->...nh", x, w[f"{name}/kernel"]) + w[f"{name}/bias"]
        return heads.repeat(4 // heads.shape[-2], axis=-2)

    query, key, value = (project(x, name) for name in ("query", "key", "value"))
    rows = np.clip(np.subtract.outer(np.arange(6), np.arange(6)), -4, 3) + 4
    scores = (
        np.einsum("bqhd,bkhd->bhqk", query, key)
        + np.einsum("bqhd,qkhd->bhqk", query, project(table, "key")[rows])
        + np.einsum("bkhd,qkhd->bhqk", key, project(table, "query")[rows])
    ) / np.sqrt(3 * 2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = weights / weights.sum(-1, keepdims=True)
    heads = np.einsum("bhqk,bkhd->bqhd", weights, value)
    expected = np.einsum("bqhd,hdw->bqw", heads, w["output/kernel"]) + w["output/bias"]
    assert_close(layer(x), expected, 2e-5)


def test_disentangled_bias_is_float32_inside_a_low_precision_layer():
    layer = DisentangledBias(8, 20, norm=None, dtype="mixed_bfloat16")
    exact = DisentangledBias(8, 20, norm=None)
    for made in (layer, exact):
        made(QUERY, QUERY)
        fill_weights(made)
    assert "float32" in str(layer.vectors().dtype)
    narrow = numpy(layer(QUERY, QUERY))
    assert narrow.dtype == np.float32
    assert_close(narrow, exact(QUERY, QUERY), 1e-2)


def test_disentangled_scores_have_one_scale():
    with pytest.raises(ValueError, match=r"scale=2\.0.*leave scale out"):
        MultiHeadSelfAttention(2, position="disentangled", scale=2.0)


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
