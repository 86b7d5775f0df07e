"""Examples packed into rows: nothing lost, nothing doubled, little padding."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_tfm.data import first_fit_decreasing, pack

pytestmark = pytest.mark.once


def naive(lengths, capacity):
    """First-fit-decreasing, as it is told in words."""
    room, bins = [], [0] * len(lengths)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((b for b, left in enumerate(room) if left >= lengths[i]), len(room))
        if place == len(room):
            room.append(capacity)
        room[place] -= lengths[i]
        bins[i] = place
    return bins


LENGTHS = st.integers(1, 30).flatmap(
    lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))
)


@given(LENGTHS)
def test_bins_are_those_of_the_plain_algorithm(case):
    capacity, lengths = case
    assert first_fit_decreasing(lengths, capacity).tolist() == naive(lengths, capacity)


def test_bins_of_many_rows_are_those_of_the_plain_algorithm(rng):
    for capacity in (7, 64, 1000):
        lengths = rng.integers(1, capacity + 1, 400)
        assert first_fit_decreasing(lengths, capacity).tolist() == naive(lengths.tolist(), capacity)


@pytest.mark.parametrize(
    "lengths, message",
    [
        ([3, 0], r"lengths\[1\] is 0"),
        ([9, 11], r"capacity=10.*lengths\[1\] is 11"),
        ([1.5], "integers"),
        ([[1]], "shape"),
    ],
)
def test_lengths_out_of_range_are_named(lengths, message):
    with pytest.raises(ValueError, match=message):
        first_fit_decreasing(lengths, 10)


def examples_of(lengths, rng, label=True):
    made = []
    for i, length in enumerate(lengths):
        example = {
            "token_ids": rng.integers(1, 1000, length).astype("int32"),
            "labels": rng.integers(0, 5, length).astype("int32"),
            "token_type_ids": rng.integers(0, 2, length).astype("int32"),
            "offsets": rng.integers(0, 50, (length, 2)).astype("int32"),
            "weights": rng.random(length).astype("float32"),
        }
        made.append({**example, "label": i % 3} if label else example)
    return made


@given(st.lists(st.integers(1, 12), min_size=1, max_size=40), st.integers(12, 30), st.booleans(), st.integers(0, 99))
def test_every_example_is_in_the_rows_once_and_whole(lengths, length, label, pad_id):
    examples = examples_of(lengths, np.random.default_rng(0), label)
    packed = pack(examples, length, pad_id=pad_id)
    rows, seen = packed["token_ids"].shape[0], []
    assert rows == max(naive(lengths, length)) + 1
    assert all(
        array.shape[:2] == (rows, length) for name, array in packed.items() if name in examples[0] and name != "label"
    )
    for row in range(rows):
        segment_ids, mask = packed["segment_ids"][row], packed["padding_mask"][row]
        np.testing.assert_array_equal(mask, segment_ids > 0)
        assert (np.diff(segment_ids[mask]) >= 0).all()
        count = segment_ids.max()
        np.testing.assert_array_equal(packed["examples"][row, count:], -1)
        for number in range(1, count + 1):
            place = np.flatnonzero(segment_ids == number)
            index = packed["examples"][row, number - 1]
            seen.append(index)
            assert (np.diff(place) == 1).all()
            np.testing.assert_array_equal(packed["positions"][row, place], np.arange(len(place)))
            for name in examples[0].keys() - {"label"}:
                np.testing.assert_array_equal(packed[name][row, place], examples[index][name])
                assert packed[name].dtype == examples[index][name].dtype
            if label:
                assert packed["starts"][row, number - 1] == place[0]
                assert packed["label"][row, number - 1] == examples[index]["label"]
        for name, fill in {
            "token_ids": pad_id,
            "labels": -100,
            "token_type_ids": 0,
            "offsets": -1,
            "weights": 0,
        }.items():
            assert (packed[name][row, ~mask] == fill).all()
        assert (packed["positions"][row, ~mask] == 0).all()
        if label:
            assert (packed["label"][row, count:] == -100).all()
    assert sorted(seen) == list(range(len(lengths)))
    assert ("label" in packed) == ("starts" in packed) == label


def test_rows_are_the_bins_and_examples_keep_their_order_within(rng):
    lengths = rng.integers(1, 20, 50)
    packed = pack([{"token_ids": np.arange(n)} for n in lengths], 32)
    bins = first_fit_decreasing(lengths, 32)
    for row, indices in enumerate(packed["examples"]):
        np.testing.assert_array_equal(indices[indices >= 0], np.flatnonzero(bins == row))
    assert packed["token_ids"].dtype == np.int32


def test_fills_may_be_chosen():
    packed = pack([{"token_ids": [5], "word_ids": [0], "extra": [1]}], 3, fills={"extra": 7})
    np.testing.assert_array_equal(packed["extra"], [[1, 7, 7]])
    np.testing.assert_array_equal(packed["word_ids"], [[0, -1, -1]])


IDS = np.arange(3)


@pytest.mark.parametrize(
    "examples, options, message",
    [
        ([], {}, "no examples"),
        ([{"token_ids": IDS}], {"length": 0}, "length.*0"),
        ([{"token_ids": IDS}, {"token_ids": np.arange(9)}], {}, r"examples\[1\] has 9 tokens.*length=8"),
        ([{"token_ids": IDS}, {"token_ids": IDS[:0]}], {}, r"examples\[1\] has 0 tokens.*leave it out"),
        ([{"tokens": IDS}], {}, "must have 'token_ids'"),
        ([{"token_ids": IDS}, {"token_ids": IDS, "labels": IDS}], {}, r"examples\[1\] has .*labels"),
        ([{"token_ids": IDS, "labels": IDS[:2]}], {}, r"examples\[0\]\['labels'\].*\(2,\).*\(3,\)"),
        ([{"token_ids": IDS, "labels": IDS}, {"token_ids": IDS, "labels": 1}], {}, r"examples\[1\]\['labels'\]"),
        ([{"token_ids": IDS, "row": 1}], {}, "'row' is a scalar"),
        ([{"token_ids": IDS, "label": 0.5}], {}, "must be an int.*0.5"),
        ([{"token_ids": IDS, "label": 1}, {"token_ids": IDS, "label": IDS}], {}, r"examples\[1\]\['label'\]"),
        ([{"token_ids": IDS, "padding_mask": IDS > 0}], {}, "'padding_mask' itself"),
        ([{"token_ids": IDS * 0.5}], {}, "integers"),
        ([{"token_ids": IDS}], {"fills": {"labels": 0}}, r"\['labels'\]"),
    ],
)
def test_what_cannot_be_packed_is_named(examples, options, message):
    with pytest.raises(ValueError, match=message):
        pack(examples, **{"length": 8, **options})


def sst2_lengths():
    """Of SST-2's sentences: words + 30 %; without the files, as many of the same mean."""
    path = Path(os.environ.get("KERAS_TFM_DATA", "/nonexistent")) / "sst2" / "train.tsv"
    if path.is_file():
        lines = path.read_text("utf-8").splitlines()[1:]
        words = np.array([len(line.split("\t")[-1].split()) for line in lines])
        return np.maximum(1, np.round(1.3 * words)).astype(int)
    return np.minimum(np.random.default_rng(0).geometric(1 / 13, 67_349), 66)


def test_short_sentences_fill_the_rows_quickly():
    lengths = sst2_lengths() + 2  # [CLS] and [SEP]
    assert 11 < lengths.mean() < 18
    stream = np.arange(lengths.max(), dtype=np.int32)
    examples = [{"token_ids": stream[:n], "label": 1} for n in lengths]
    start = time.perf_counter()
    packed = pack(examples, 128)
    seconds = time.perf_counter() - start
    assert packed["padding_mask"].sum() == lengths.sum()
    assert packed["padding_mask"].mean() >= 0.97
    assert lengths.sum() / seconds > 2e5  # over 2e6 on a free core
