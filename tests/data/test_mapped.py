"""Examples in files are the examples that were written; nothing half written is ever opened."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_tfm.data import ExampleBatches, Examples, MappedExamples, write_examples

pytestmark = pytest.mark.once

ROWS = st.lists(st.tuples(st.lists(st.integers(-5, 70_000), max_size=5), st.integers(-1, 3)), min_size=1, max_size=12)


def example(row):
    ids, label = row
    return {
        "token_ids": np.array(ids, np.int32),
        "offsets": np.arange(2 * len(ids), dtype=np.int16).reshape(-1, 2),
        "label": label,
    }


def made(rows):
    return [example(row) for row in rows]


def same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours[name], value)
            assert ours[name].dtype == np.asarray(value).dtype


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, at_once=st.integers(1, 5), cut=st.integers(-13, 13), step=st.sampled_from([1, 2, -1, -3]))
def test_what_was_written_is_read(rows, at_once, cut, step, tmp_path_factory):
    directory = tmp_path_factory.mktemp("mapped") / "examples"
    found = write_examples(directory, iter(rows), made, at_once=at_once)
    same(found, made(rows))
    part = found[cut::step]
    same(part, made(rows)[cut::step])
    assert part.lengths.tolist() == [len(ids) for ids, _ in rows[cut::step]]
    same(pickle.loads(pickle.dumps(part)), made(rows)[cut::step])
    same(MappedExamples(directory), made(rows))
    assert found[-1]["token_ids"].tolist() == rows[-1][0]
    with pytest.raises(IndexError):
        found[len(rows)]


def test_batches_are_those_of_a_list(tmp_path):
    rows = [(list(range(1, 2 + number % 7)), number % 3) for number in range(50)]
    mapped = write_examples(tmp_path / "examples", rows, made)
    for options in ({}, {"shuffle": True, "seed": 3}):
        ours, theirs = ExampleBatches(mapped, 4, **options), ExampleBatches(made(rows), 4, **options)
        assert len(ours) == len(theirs) == 13
        same([ours[i] for i in range(13)], [theirs[i] for i in range(13)])


def test_counts_and_labels_come_along(tmp_path):
    def counted(rows):
        found = Examples(made(rows), labels=["a", "b", "c"])
        found.cut_tokens, found.empty = len(rows), 1
        return found

    found = write_examples(tmp_path / "examples", [([1], 0)] * 5, counted, at_once=2)
    assert found.labels == ("a", "b", "c")
    assert found.counts == {"cut_rows": 0, "cut_tokens": 5, "cut_labels": 0, "empty": 3}
    names = iter([["a", "b"], ["b", "a"]])
    with pytest.raises(ValueError, match=r"\['b', 'a'\], those of the rows before \['a', 'b'\]"):
        write_examples(tmp_path / "other", [([1], 0)] * 2, lambda rows: Examples(made(rows), next(names)), at_once=1)


def test_nothing_is_left_of_what_failed(tmp_path):
    directory = tmp_path / "examples"

    def failing():
        yield [1, 2], 0
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_examples(directory, failing(), made, at_once=1)
    assert not list(tmp_path.iterdir())
    (tmp_path / "examples.partial").mkdir()  # somebody's
    write_examples(directory, [([1], 0)], made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["examples", "examples.partial"]
    with pytest.raises(FileExistsError, match="is there already"):
        write_examples(directory, [([1], 0)], made)
    same(MappedExamples(directory), made([([1], 0)]))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda rows: [], "no examples"),
        (lambda rows: [{"ids": np.arange(2)}], "must have 'token_ids'"),
        (lambda rows: [{"token_ids": np.arange(2), "../x": 1}], "names that can be files'"),
        (lambda rows: [{"token_ids": np.arange(2), "text": "a"}], "'text' must be numbers"),
        (lambda rows: [{"token_ids": np.arange(2)}, {"token_ids": np.arange(2.0)}], "Example 1 has .*float64.*int64"),
    ],
)
def test_what_cannot_be_written(make, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        write_examples(tmp_path / "examples", [1], make)
    with pytest.raises(ValueError, match="at_once"):
        write_examples(tmp_path / "examples", [1], make, at_once=0)
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_refused(tmp_path):
    directory = tmp_path / "examples"
    with pytest.raises(FileNotFoundError, match="write_examples writes them"):
        MappedExamples(directory)
    write_examples(directory, [([1, 2, 3], 0)], made)
    values = directory / "token_ids.values"
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(ValueError, match="has 8 bytes, where 12 were written"):
        MappedExamples(directory)
    values.unlink()
    with pytest.raises(ValueError, match="has 0 bytes"):
        MappedExamples(directory)
    about = json.loads((directory / "examples.json").read_text())
    (directory / "examples.json").write_text(json.dumps({**about, "version": 9}))
    with pytest.raises(ValueError, match="version 9"):
        MappedExamples(directory)
