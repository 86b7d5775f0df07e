"""Rows of CSV, TSV, JSON Lines, text and Parquet files; what is wrong with one is said with its line, or counted."""

import csv
import gzip
import io
import json
import sys
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_tfm.data import read_rows

pytestmark = pytest.mark.once


def write(tmp_path, content, name="data.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_with_quotes_commas_and_line_breaks(tmp_path):
    path = write(tmp_path, '\ufeffid,text\r\n1,"a, ""b"""\r\n\r\n2,"two\nlines"\r\n')
    assert list(read_rows(path)) == [{"id": "1", "text": 'a, "b"'}, {"id": "2", "text": "two\nlines"}]
    assert next(iter(read_rows(str(path))))["id"] == "1"


def test_tabs_take_quotes_literally(tmp_path):
    assert list(read_rows(write(tmp_path, 'text\tn\n"open\t1\n', "x.TSV"))) == [{"text": '"open', "n": "1"}]


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json"])
def test_json_lines(tmp_path, name):
    path = write(tmp_path, '{"text": "a\\u00e9", "n": [1, 2]}\n\n{"text": null}', name)
    assert list(read_rows(path)) == [{"text": "aé", "n": [1, 2]}, {"text": None}]


def test_text_by_line_and_by_document(tmp_path):
    path = write(tmp_path, "\n\none\r\ntwo \n \n\nthree\x0bfour\u2028five", "x.txt")
    lines = ["", "", "one", "two ", " ", "", "three\x0bfour\u2028five"]
    assert list(read_rows(path)) == [{"text": line} for line in lines]
    documents = [{"text": "one\ntwo "}, {"text": "three\x0bfour\u2028five"}]
    assert list(read_rows(path, documents=True)) == documents


def test_rows_can_be_read_again_and_the_format_named(tmp_path):
    rows = read_rows(write(tmp_path, "a\nb", "corpus"), format="text")
    assert list(rows) == list(rows) == [{"text": "a"}, {"text": "b"}]
    assert (rows.format, rows.path.name) == ("text", "corpus")


@pytest.mark.parametrize(
    "name, content", [("x.csv.gz", "text\na\n"), ("x.jsonl.GZ", '{"text": "a"}'), ("x.txt.gz", "a")]
)
def test_gzip_is_read_through(tmp_path, name, content):
    assert list(read_rows(write(tmp_path, gzip.compress(content.encode()), name))) == [{"text": "a"}]


BAD = [
    ("x.csv", b"a,b\n1,2\n3\n4,5\n", "line 3: 1 column.*header has 2", [{"a": "1", "b": "2"}, {"a": "4", "b": "5"}]),
    ("x.csv", b'a,b\n1,"2"x\n3,4\n', "line 2: ", [{"a": "3", "b": "4"}]),
    ("x.csv", b'a,b\n1,2\n3,"4\n5,6\n', "line 4: .*end of data", [{"a": "1", "b": "2"}]),
    ("x.csv", b'a\n"two\nlines"\n\xff\n', "line 4: not UTF-8", [{"a": "two\nlines"}]),
    ("x.csv", b"a\nb\n" + b"c" * 140_000 + b"\nd\n", "line 3: field larger", [{"a": "b"}, {"a": "d"}]),
    ("x.tsv", b"a\n\xe9\nb\n", "line 2: not UTF-8", [{"a": "b"}]),
    ("x.jsonl", b'{"a": 1}\n{"a": \n{"a": 2}\n', "line 2: not JSON", [{"a": 1}, {"a": 2}]),
    ("x.jsonl", b'\n[1]\n{"a": 2}\n', r"line 2: a JSON object.*\[1\]", [{"a": 2}]),
    ("x.jsonl", b'{"a": "\xff"}\n{"a": 2}\n', "line 1: not UTF-8", [{"a": 2}]),
    ("x.jsonl", b'{"a": "\\ud800"}\n{"a": "\\ud83d\\ude00"}\n', "line 1: not JSON", [{"a": "😀"}]),
    ("x.jsonl", b"[" * 100_000 + b'\n{"a": 2}\n', "line 1: not JSON", [{"a": 2}]),
    ("x.txt", b"a\n\xc3\nb", "line 2: not UTF-8", [{"text": "a"}, {"text": "b"}]),
]


@pytest.mark.parametrize("name, content, message, rest", BAD)
def test_bad_rows_are_named_with_their_line_or_skipped_and_counted(tmp_path, name, content, message, rest):
    path = write(tmp_path, content, name)
    with pytest.raises(ValueError, match=rf"x\.\w+, {message}"):
        list(read_rows(path))
    rows = read_rows(path, errors="skip")
    assert list(rows) == rest
    assert rows.skipped == 1
    assert list(rows) == rest  # counted anew
    assert rows.skipped == 1


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("x.csv", "", "is empty"),
        ("x.csv", "\n\n", "no rows"),
        ("x.csv", "a,b\n", "no rows"),
        ("x.csv", "a,b,a\n1,2,3\n", r"line 1.*\['a'\] more than once"),
        ("x.csv", b"\xff\n1\n", "line 1: not UTF-8"),
        ("x.csv", '"a"b\n1\n', "line 1"),
        ("x.jsonl", "\n \n", "no rows"),
        ("x.jsonl", "1\n2\n", "no rows; 2 could not be read"),
        ("x.txt.gz", gzip.compress(b"", mtime=0), "no rows"),
        ("x.txt.gz", b"plain", "line 1: not readable as gzip"),
        ("x.txt.gz", gzip.compress(b"one\n" * 9, mtime=0)[:-9], "not readable as gzip"),
    ],
)
def test_files_without_rows_and_broken_ones_are_named(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        list(read_rows(write(tmp_path, content, name), errors="skip"))


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("x.docx", {}, r"none of \.csv.*format"),
        ("x", {}, "none of"),
        (".gz", {}, "none of"),
        ("x.csv", {"format": "xml"}, "'csv', 'tsv'.*'xml'"),
        ("x.csv", {"errors": "ignore"}, "'strict' or 'skip'.*'ignore'"),
        ("x.csv", {"documents": True}, "no effect on 'csv'"),
        ("x.parquet", {"errors": "skip"}, "errors='skip'"),
        ("x.parquet.gz", {}, r"without \.gz"),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        read_rows(write(tmp_path, "a", name), **options)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_rows(tmp_path / "nowhere.csv")


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_what_pythons_own_writers_write_is_read(tmp_path_factory, rows):
    directory = tmp_path_factory.mktemp("rows")
    expected = [{"a": a, "b": b} for a, b in rows]
    table = io.StringIO()
    writer = csv.DictWriter(table, ["a", "b"])
    writer.writeheader()
    writer.writerows(expected)
    assert list(read_rows(write(directory, table.getvalue()))) == expected
    lines = "\n".join(json.dumps(row, ensure_ascii=len(rows) % 2 == 0) for row in expected)
    assert list(read_rows(write(directory, lines, "x.jsonl"))) == expected


@given(st.binary(max_size=60), st.sampled_from(["x.csv", "x.tsv", "x.jsonl", "x.txt", "x.csv.gz"]), st.booleans())
def test_any_bytes_give_rows_or_a_clear_error(tmp_path_factory, content, name, skip):
    path = write(tmp_path_factory.mktemp("bytes"), content, name)
    rows, error = [], None
    try:
        rows.extend(read_rows(path, errors="skip" if skip else "strict"))
    except ValueError as found:
        error = str(found)
    assert rows if error is None else name in error
    json.dumps(rows, ensure_ascii=False).encode()  # no half characters


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = write(tmp_path, b'{"text": "' + b"a" * 90 + b'"}\n', "x.jsonl")
    path.write_bytes(path.read_bytes() * 40_000)  # 4 MB
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 40_000
    assert peak < 500_000


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    expected = [{"text": f"row {i}", "n": None if i % 3 else i} for i in range(3000)]
    parquet.write_table(pa.Table.from_pylist(expected), tmp_path / "x.parquet")
    rows = read_rows(tmp_path / "x.parquet")
    assert list(rows) == list(rows) == expected
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="no rows"):
        list(read_rows(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match=r"bad\.parquet is not readable as Parquet"):
        list(read_rows(write(tmp_path, "nonsense", "bad.parquet")))


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"keras_tfm\[parquet\]"):
        read_rows(write(tmp_path, "a", "x.parquet"))
