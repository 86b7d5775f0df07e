"""Positions against the numbers of the papers, the formulas in NumPy, and transformers' functions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, normal, numpy
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_tfm.ops import positions

# Sinusoids -----------------------------------------------------------------------------------------------------------


def test_sinusoid_of_the_paper():
    assert_close(
        positions.sinusoidal(ops.convert_to_tensor([[1]]), 4)[0, 0],
        [0.84147098, 0.54030231, 0.00999983, 0.99995000],
        1e-7,
    )


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("base", [10_000.0, 500.0])
def test_sinusoids_are_the_formula(interleaved, base):
    places, dim = np.array([[0, 1, 7, 500, 9_999]], "int32"), 12
    angles = places[..., None] / base ** (np.arange(0, dim, 2) / dim)
    expected = np.stack([np.sin(angles), np.cos(angles)], -1 if interleaved else -2).reshape(1, 5, dim)
    result = positions.sinusoidal(ops.convert_to_tensor(places), dim, base=base, interleaved=interleaved)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert_close(result, expected, 2e-3)  # float32 angles near 10,000 are 5e-4 apart
    assert_close(result[:, :3], expected[:, :3], 1e-6)


# Default positions ---------------------------------------------------------------------------------------------------

DEFAULTS = {
    "right padding": ([[1, 1, 1, 0, 0]], None, [[0, 1, 2, 2, 2]]),
    "left padding": ([[0, 0, 1, 1, 1]], None, [[0, 0, 0, 1, 2]]),
    "interior padding": ([[1, 0, 0, 1, 1]], None, [[0, 0, 0, 1, 2]]),
    "all padding": ([[0, 0, 0, 0, 0]], None, [[0, 0, 0, 0, 0]]),
    "segments": (None, [[1, 1, 2, 2, 2]], [[0, 1, 0, 1, 2]]),
    "segments of any ids": (None, [[7, 3, 3, -1, 7]], [[0, 0, 1, 0, 0]]),
    "segments, then padding": ([[1, 1, 1, 1, 0]], [[1, 1, 2, 2, 0]], [[0, 1, 0, 1, None]]),
    "padding, then segments": ([[0, 1, 1, 1, 1]], [[0, 1, 1, 2, 2]], [[None, 0, 1, 0, 1]]),
    "padding between segments": ([[1, 1, 0, 1, 1]], [[1, 1, 0, 2, 2]], [[0, 1, None, 0, 1]]),
    "padding at the end of a segment": ([[1, 1, 0, 1, 1]], [[1, 1, 1, 2, 2]], [[0, 1, None, 0, 1]]),
    "padding at the start of a segment": ([[1, 1, 0, 1, 1]], [[1, 1, 2, 2, 2]], [[0, 1, None, 0, 1]]),
}


@pytest.mark.parametrize("case", DEFAULTS)
def test_default_positions(case):
    padding, segments, expected = DEFAULTS[case]
    padding = None if padding is None else ops.convert_to_tensor(padding, dtype="bool")
    segments = None if segments is None else ops.convert_to_tensor(segments, dtype="int32")
    result = positions.default(5, padding, segments)
    assert keras.backend.standardize_dtype(result.dtype) == "int32"
    for place, wanted in zip(numpy(result)[0], expected[0], strict=True):
        assert wanted is None or place == wanted  # None: padding beside segments, where no token reads its position


def test_default_positions_of_plain_sequences_need_no_tensor():
    assert positions.default(5, None, None) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=2, max_size=4))
def test_default_positions_of_any_packing(runs):
    """Runs of (padding, tokens), a segment each, cut to one length: each token counts from its segment's start."""
    segments, padding, expected = [], [], []
    for number, (padded, tokens) in enumerate(runs):
        segments += [0] * padded + [number + 1] * tokens
        padding += [0] * padded + [1] * tokens
        expected += [0] * padded + list(range(tokens))
    segments, padding, expected = ((np.array(x + [0] * 28)[:12])[None] for x in (segments, padding, expected))
    result = numpy(positions.default(12, ops.convert_to_tensor(padding, dtype="bool"), ops.convert_to_tensor(segments)))
    np.testing.assert_array_equal(np.where(padding == 1, result, 0), np.where(padding == 1, expected, 0))


@given(st.lists(st.integers(0, 9), min_size=9, max_size=9))
def test_running_maximum(numbers):
    result = positions.running_maximum(ops.convert_to_tensor([numbers], dtype="int32"))
    np.testing.assert_array_equal(numpy(result)[0], np.maximum.accumulate(numbers))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has lengths unknown before running")
def test_running_maximum_of_unknown_length():
    import tensorflow as tf

    compiled = tf.function(positions.running_maximum, input_signature=[tf.TensorSpec((None, None), tf.int32)])
    np.testing.assert_array_equal(compiled(np.array([[3, 1, 4, 1, 5]], "int32")), [[3, 3, 4, 4, 5]])


# Rotary frequencies --------------------------------------------------------------------------------------------------


def test_rope_frequencies():
    np.testing.assert_allclose(positions.rope_frequencies(8), [1, 0.1, 0.01, 0.001], rtol=1e-12)


def test_ntk_base():
    """Stretching the context 4 times, d = 128: base 40,889.94."""
    frequencies = numpy(positions.rope_dynamic_frequencies(128, 10_000.0, 4.0, 1000, 1750)).astype(
        np.float64
    )  # 4 * 1.75 - 3 = 4
    np.testing.assert_allclose(frequencies[-1] ** (-128 / 126), 40_889.94, rtol=1e-5)
    np.testing.assert_allclose(frequencies, 40_889.94 ** (-np.arange(0, 128, 2) / 128), rtol=1e-5)


@pytest.mark.parametrize("length", [10, 1000])
def test_dynamic_frequencies_start_unscaled(length):
    assert_close(
        positions.rope_dynamic_frequencies(16, 10_000.0, 4.0, 1000, length), positions.rope_frequencies(16), 1e-6
    )


@pytest.mark.parametrize("factor, expected", [(4, 1.138629), (8, 1.207944), (1, 1.0)])
def test_yarn_attention_factor(factor, expected):
    scaling = {"kind": "yarn", "factor": factor, "original_max_length": 4096}
    assert positions.rope_attention_factor(scaling) == pytest.approx(expected, abs=1e-6)


def test_other_attention_factors():
    yarn = {"kind": "yarn", "factor": 40.0, "original_max_length": 4096}
    assert positions.rope_attention_factor({**yarn, "attention_factor": 1.25}) == 1.25
    deepseek = (0.1 * 0.7 * math.log(40) + 1) / (0.1 * 0.5 * math.log(40) + 1)
    assert positions.rope_attention_factor({**yarn, "mscale": 0.7, "mscale_all_dim": 0.5}) == pytest.approx(deepseek)
    assert positions.rope_attention_factor(None) == 1.0
    assert positions.rope_attention_factor({"kind": "linear", "factor": 4.0}) == 1.0
    longrope = {"kind": "longrope", "short_factor": [1.0], "long_factor": [2.0], "original_max_length": 4096}
    assert positions.rope_attention_factor(longrope) == 1.0
    assert positions.rope_attention_factor({**longrope, "factor": 32.0}) == pytest.approx(
        math.sqrt(1 + math.log(32) / math.log(4096))
    )


def test_llama3_bands():
    """Llama 3.1: 29 frequencies unchanged, 6 blended, 29 divided by 8."""
    scaling = {
        "kind": "llama3",
        "factor": 8.0,
        "original_max_length": 8192,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    ratio = positions.rope_frequencies(128, 500_000.0) / positions.rope_frequencies(128, 500_000.0, scaling)
    unchanged, divided = np.isclose(ratio, 1, atol=1e-9), np.isclose(ratio, 8, atol=1e-9)
    assert (unchanged.sum(), (~unchanged & ~divided).sum(), divided.sum()) == (29, 6, 29)
    assert np.all(np.diff(ratio) >= -1e-12)


FACTORS = {"short_factor": list(np.linspace(1, 1.5, 32)), "long_factor": list(np.linspace(1, 40, 32))}
SCALINGS = [
    ({"kind": "linear", "factor": 4.0}, 10_000.0, None),
    ({"kind": "dynamic", "factor": 2.0, "original_max_length": 1024}, 10_000.0, 1024),
    ({"kind": "dynamic", "factor": 2.0, "original_max_length": 1024}, 10_000.0, 3000),
    ({"kind": "yarn", "factor": 4.0, "original_max_length": 2048}, 10_000.0, None),
    (
        {
            "kind": "yarn",
            "factor": 16.0,
            "original_max_length": 4096,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        1e6,
        None,
    ),
    (
        {"kind": "yarn", "factor": 40.0, "original_max_length": 4096, "mscale": 0.7, "mscale_all_dim": 1.0},
        10_000.0,
        None,
    ),
    ({"kind": "yarn", "factor": 8.0, "original_max_length": 512, "attention_factor": 1.1}, 150_000.0, None),
    (
        {"kind": "llama3", "factor": 8.0, "original_max_length": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        500_000.0,
        None,
    ),
    ({"kind": "longrope", "original_max_length": 1024, "factor": 32.0, **FACTORS}, 10_000.0, 100),
    ({"kind": "longrope", "original_max_length": 1024, "factor": 32.0, **FACTORS}, 10_000.0, 2000),
]


@pytest.mark.skipif(BACKEND != "torch", reason="importing torch beside another backend takes seconds")
@pytest.mark.parametrize("scaling, base, length", SCALINGS, ids=lambda x: x["kind"] if isinstance(x, dict) else str(x))
def test_rope_scalings_are_those_of_transformers(scaling, base, length):
    rope = pytest.importorskip("transformers.modeling_rope_utils")
    dim = 64
    kind, original = scaling["kind"], scaling.get("original_max_length")
    parameters = {name: value for name, value in scaling.items() if name not in ("kind", "original_max_length")}
    parameters |= {"rope_type": kind, "rope_theta": base, "original_max_position_embeddings": original}
    config = SimpleNamespace(rope_parameters=parameters, head_dim=dim, hidden_size=dim, num_attention_heads=1)
    config.max_position_embeddings, config.per_layer_config, config.standardize_rope_params = original, {}, lambda: None
    expected, factor = rope.ROPE_INIT_FUNCTIONS[kind](config, "cpu", length)
    if kind == "dynamic":
        ours = numpy(positions.rope_dynamic_frequencies(dim, base, scaling["factor"], original, length))
    else:
        ours = positions.rope_frequencies(dim, base, scaling, long=length is not None and length > original)
    np.testing.assert_allclose(ours, numpy(expected), rtol=3e-6)
    assert positions.rope_attention_factor(scaling) == pytest.approx(factor, rel=1e-6)


BAD_SCALINGS = {
    "kind": ({"kind": "ntk"}, r"kind='ntk'; one of \['dynamic', 'linear'"),
    "no kind": ({"factor": 2.0}, "kind=None"),
    "unknown option": ({"kind": "linear", "factor": 2.0, "beta_fast": 3}, r"'linear' does not take \['beta_fast'\]"),
    "missing option": ({"kind": "yarn", "factor": 2.0}, r"'yarn' needs \['original_max_length'\]"),
    "factors": (
        {"kind": "longrope", "short_factor": [1.0] * 3, "long_factor": [1.0] * 4, "original_max_length": 9},
        "short_factor needs 4 numbers.*got 3",
    ),
}


@pytest.mark.parametrize("case", BAD_SCALINGS)
def test_bad_scalings_raise(case):
    scaling, message = BAD_SCALINGS[case]
    with pytest.raises(ValueError, match=message):
        positions.check_rope_scaling(scaling, 8)


# Rotation ------------------------------------------------------------------------------------------------------------


def turned(x: np.ndarray, places: np.ndarray, frequencies: np.ndarray, interleaved: bool) -> np.ndarray:
    angles = ops.convert_to_tensor(places[:, :, None, None] * frequencies, dtype="float32")
    return numpy(positions.rotate(ops.convert_to_tensor(x), ops.cos(angles), ops.sin(angles), interleaved=interleaved))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [8, 4])
def test_rotation_is_multiplication_by_a_complex_number(interleaved, rotated):
    x, places = normal(2, 5, 3, 8), np.array([[0, 1, 2, 3, 4], [5, 9, 2, 100, 0]])
    frequencies = positions.rope_frequencies(rotated)
    expected = x.astype(np.float64)
    for pair in range(rotated // 2):
        first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + rotated // 2)
        numbers = (x[..., first] + 1j * x[..., second]) * np.exp(1j * places * frequencies[pair])[:, :, None]
        expected[..., first], expected[..., second] = numbers.real, numbers.imag
    assert_close(turned(x, places, frequencies, interleaved), expected, 2e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_scores_depend_on_distance_only(interleaved):
    frequencies = positions.rope_frequencies(8)
    query, key = (np.broadcast_to(normal(1, 1, 1, 8, seed=s), (1, 6, 1, 8)) for s in (1, 2))
    scores = []
    for shift in (0, 1, 40):
        places = np.arange(6)[None] + shift
        q, k = (turned(x, places, frequencies, interleaved)[0, :, 0] for x in (query, key))
        scores.append(q @ k.T)
    assert_close(scores[1], scores[0], 1e-5)
    assert_close(scores[2], scores[0], 2e-5)
    assert_close(scores[0][1:, 1:], scores[0][:-1, :-1], 1e-5)
    assert np.ptp(scores[0][0]) > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rotation_is_computed_in_float32(dtype):
    x = ops.cast(normal(1, 5, 1, 8), dtype)
    places = np.array([[0, 1, 500, 1000, 2001]])
    angles = ops.convert_to_tensor(places[:, :, None, None] * positions.rope_frequencies(8), dtype="float32")
    wide = positions.rotate(ops.cast(x, "float32"), ops.cos(angles), ops.sin(angles), interleaved=False)
    narrow = positions.rotate(x, ops.cos(angles), ops.sin(angles), interleaved=False)
    assert keras.backend.standardize_dtype(narrow.dtype) == dtype
    np.testing.assert_array_equal(numpy(narrow), numpy(ops.cast(wide, dtype)))


# Biases --------------------------------------------------------------------------------------------------------------


def test_alibi_slopes():
    eight = [2.0**-h for h in range(1, 9)]
    np.testing.assert_array_equal(positions.alibi_slopes(8), np.float32(eight))
    np.testing.assert_array_equal(positions.alibi_slopes(12), np.float32([*eight, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]))
    np.testing.assert_array_equal(positions.alibi_slopes(1), np.float32([2**-8]))


def buckets(relative: np.ndarray, **options) -> np.ndarray:
    return numpy(positions.relative_buckets(ops.convert_to_tensor(relative), **options))


@pytest.mark.parametrize("relative, bucket", [(-7, 7), (0, 0), (1, 17), (7, 23), (100, 31)])
def test_t5_buckets(relative, bucket):
    assert buckets(np.array([relative], "int32"), num_buckets=32, max_distance=128, bidirectional=True) == [bucket]


BUCKETINGS = [(32, 128, True), (32, 128, False), (16, 32, True), (8, 20, False), (64, 256, True), (6, 50, True)]


@pytest.mark.parametrize("num_buckets, max_distance, bidirectional", BUCKETINGS)
def test_buckets_are_ordered_and_complete(num_buckets, max_distance, bidirectional):
    options = dict(num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
    found = buckets(np.arange(-300, 301, dtype="int32"), **options)
    back, ahead = found[300::-1], found[301:]
    per_side = num_buckets // 2 if bidirectional else num_buckets
    assert np.all(np.diff(back) >= 0)
    assert back[0] == 0
    assert back[max_distance] == back[-1] == per_side - 1
    if bidirectional:
        np.testing.assert_array_equal(ahead, back[1:] + per_side)
    else:
        assert not ahead.any()


def disentangled(distance: np.ndarray, num_rows: int | None, max_distance: int) -> np.ndarray:
    return numpy(
        positions.disentangled_rows(ops.convert_to_tensor(distance), num_rows=num_rows, max_distance=max_distance)
    )


def test_disentangled_rows_of_the_paper():
    """He et al. 2021, eq. 3, with k = 3."""
    expected = [0, 0, 0, 1, 2, 3, 4, 5, 5, 5]
    np.testing.assert_array_equal(disentangled(np.arange(-5, 5, dtype="int32"), None, 3), expected)


@pytest.mark.skipif(BACKEND != "torch", reason="importing torch beside another backend takes seconds")
@pytest.mark.parametrize("span, max_distance", [(256, 512), (8, 20), (32, 64), (5, 30), (2, 3), (7, 513)])
def test_disentangled_rows_are_those_of_transformers(span, max_distance):
    deberta = pytest.importorskip("transformers.models.deberta_v2.modeling_deberta_v2")
    import torch

    distance = np.arange(-2 * max_distance, 2 * max_distance + 1)
    expected = deberta.make_log_bucket_position(torch.tensor(distance), span, max_distance).long() + span
    np.testing.assert_array_equal(
        disentangled(distance, 2 * span, max_distance), np.clip(expected.cpu().numpy(), 0, 2 * span - 1)
    )


@pytest.mark.skipif(BACKEND != "torch", reason="importing torch beside another backend takes seconds")
@pytest.mark.parametrize("num_buckets, max_distance, bidirectional", BUCKETINGS)
def test_buckets_are_those_of_transformers(num_buckets, max_distance, bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    import torch

    options = dict(num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional)
    relative = np.arange(-300, 301)
    expected = t5.T5Attention._relative_position_bucket(torch.tensor(relative), **options)
    np.testing.assert_array_equal(buckets(relative, **options), expected.cpu().numpy())
