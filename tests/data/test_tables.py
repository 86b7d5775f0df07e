"""Labelled text from CSV and TSV files, and what is said of bad ones."""

import pytest

from keras_tfm.data import read_table

pytestmark = pytest.mark.once


def write(tmp_path, content, name="data.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_with_quotes_commas_and_line_breaks(tmp_path):
    path = write(tmp_path, 'id,text,label\r\n1,"a, ""b""",x\r\n2,"two\nlines",y\r\n')
    assert read_table(path) == (['a, "b"', "two\nlines"], ["x", "y"])
    assert read_table(str(path), text="id", label="text")[0] == ["1", "2"]


@pytest.mark.parametrize("name", ["data.tsv", "data.txt", "data.TSV"])
def test_tabs_take_quotes_literally(tmp_path, name):
    path = write(tmp_path, 'label\ttext\n1\t"open, and never closed\n0\t\n', name)
    assert read_table(path) == (['"open, and never closed', ""], ["1", "0"])


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbftext,label\n\nna\xc3\xafve,1\n\n")
    assert read_table(path) == (["naïve"], ["1"])


def test_sentence_serves_as_text(tmp_path):
    path = write(tmp_path, "sentence,label\na,1\n")
    assert read_table(path) == (["a"], ["1"])


@pytest.mark.parametrize(
    "content, columns, message",
    [
        ("", {}, r"data\.csv is empty.*'text'.*'label'"),
        ("text,label\n", {}, r"data\.csv has a header and no rows"),
        ("text,lable\na,1\n", {}, r"no column 'label'.*\['text', 'lable'\].*Did you mean 'lable'"),
        ("a,b\n1,2\n", {}, r"no column 'text'.*\['a', 'b'\]"),
        ("text,label\na,1\n", {"text": "review"}, "no column 'review'"),
        ("sentence,label\na,1\n", {"text": "review"}, "no column 'review'"),
        ("text,label\na,1\nb\n", {}, r"data\.csv, line 3: 1 column.*header has 2"),
        ("text,label\na,1\nb,2,3\n", {}, r"line 3: 3 columns.*header has 2"),
        (b"text,label\n\xff\xfe,1\n", {}, r"data\.csv is not UTF-8"),
    ],
)
def test_bad_files_are_named_with_the_remedy(tmp_path, content, columns, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, content), **columns)


def test_line_numbers_count_lines_within_quotes(tmp_path):
    with pytest.raises(ValueError, match="line 4"):
        read_table(write(tmp_path, 'text,label\n"two\nlines",1\nb\n'))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path)


def test_a_very_long_text_is_read_or_named(tmp_path):
    path = write(tmp_path, "text,label\n" + "a" * 200_000 + ",1\n")  # past the csv module's default limit
    try:
        read = read_table(path)
    except ValueError as error:
        read = str(error)
    assert read == (["a" * 200_000], ["1"]) or "data.csv" in read
