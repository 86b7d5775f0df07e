"""Rows of text files, one at a time."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
}
ESCAPED = "surrogateescape"  # bytes that are not UTF-8 become what no UTF-8 gives, and can be found


class Rows:
    """The rows of a file, read anew at each iteration and never all in memory. Made by `read_rows`.

    Attributes:
        path: The file.
        format: "csv", "tsv", "jsonl", "text" or "parquet".
        skipped: How many rows the last iteration, as far as it went, could not read and left out.
    """

    def __init__(self, path: Path, format: str, errors: str, documents: bool):
        self.path = path
        self.format = format
        self.errors = errors
        self.documents = documents
        self.skipped = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.skipped = 0
        rows = 0
        for row in self._rows():
            rows += 1
            yield row
        if not rows:
            skipped = f"; {self.skipped} could not be read" if self.skipped else ""
            raise ValueError(f"{self.path} has no rows{skipped}.")

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.format == "parquet":
            return self._parquet()
        if self.format == "jsonl":
            return self._json_lines()
        if self.format == "text":
            return self._documents() if self.documents else self._texts()
        return self._table()

    def _bad(self, line: int, problem: str) -> None:
        """Raise for what is wrong with a line, or count it."""
        if self.errors == "strict":
            raise ValueError(f"{self.path}, line {line}: {problem}.")
        self.skipped += 1

    def _lines(self) -> Iterator[str]:
        """Lines with their ends, which may hold escaped bytes."""
        number = 0
        compressed = self.path.suffix.lower() == ".gz"
        try:
            with gzip.open(self.path, "rb") if compressed else self.path.open("rb") as file:
                for number, line in enumerate(file, 1):
                    text = line.decode("utf-8", ESCAPED)
                    yield text.removeprefix("\ufeff") if number == 1 else text
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{self.path}, line {number + 1}: not readable as gzip: {error}.") from error

    def _texts(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._lines(), 1):
            if _is_utf8(line):
                yield {"text": line.removesuffix("\n").removesuffix("\r")}
            else:
                self._bad(number, "not UTF-8")

    def _documents(self) -> Iterator[dict[str, Any]]:
        lines: list[str] = []
        for row in self._texts():
            if row["text"].strip():
                lines.append(row["text"])
            elif lines:
                yield {"text": "\n".join(lines)}
                lines = []
        if lines:
            yield {"text": "\n".join(lines)}

    def _json_lines(self) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(self._lines(), 1):
            if not line.strip():
                continue
            if not _is_utf8(line):
                self._bad(number, "not UTF-8")
                continue
            try:
                row = json.loads(line)
                if "\\u" in line:  # halves of surrogate pairs, which are no characters
                    json.dumps(row, ensure_ascii=False).encode()
            except (ValueError, RecursionError) as error:
                self._bad(number, f"not JSON: {error}")
                continue
            if isinstance(row, dict):
                yield row
            else:
                self._bad(number, f"a JSON object is expected on each line; got {line.strip()[:40]!r}")

    def _table(self) -> Iterator[dict[str, Any]]:
        options: dict[str, Any] = {"strict": True}
        if self.format == "tsv":
            options |= {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        rows = csv.reader(self._lines(), **options)
        header: list[str] | None = None
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                if header is None:
                    raise ValueError(f"{self.path}, line {rows.line_num}: {error}.") from error
                self._bad(rows.line_num, str(error))
                continue
            if not row:
                continue
            if header is None:
                header = self._header(row, rows.line_num)
            elif len(row) != len(header):
                self._bad(rows.line_num, f"{len(row)} columns, where the header has {len(header)}")
            elif not all(map(_is_utf8, row)):
                self._bad(rows.line_num, "not UTF-8")
            else:
                yield dict(zip(header, row, strict=True))

    def _header(self, header: list[str], line: int) -> list[str]:
        if not all(map(_is_utf8, header)):
            raise ValueError(f"{self.path}, line {line}: not UTF-8.")
        double = sorted({name for name in header if header.count(name) > 1})
        if double:
            raise ValueError(f"{self.path}, line {line}: the header has {double} more than once.")
        return header

    def _parquet(self) -> Iterator[dict[str, Any]]:
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=1024):
                    yield from batch.to_pylist()
        except (ArrowException, OSError) as error:
            raise ValueError(f"{self.path} is not readable as Parquet: {error}") from error


def read_rows(path: str | Path, *, format: str | None = None, errors: str = "strict", documents: bool = False) -> Rows:
    """The rows of a CSV, TSV, JSON Lines, text or Parquet file as dicts, read one at a time.

    What is read is UTF-8; ".gz" at the end of a name is read through. Data sets of `datasets` need no reading: iterating
    over one gives dicts already.

    Args:
        path: The file.
        format: One of these. Default: by the name's ending, as given here.
            - "csv" (.csv): with a header; quotes, and lines within them, as in RFC 4180. Values are strings
            - "tsv" (.tsv): with a header; quotes mean nothing
            - "jsonl" (.jsonl, .ndjson, .json): an object on each line
            - "text" (.txt, .text): {"text": line} for each line, blank ones too
            - "parquet" (.parquet): needs `pyarrow`
        errors: "strict" raises for a row that cannot be read. "skip" leaves it out and counts it in `skipped`; what ends
            the reading, such as a broken header or a broken gzip file, is raised all the same.
        documents: Of text, give {"text": document}: lines up to the next blank one, joined by line feeds.

    Returns:
        `Rows`, which can be iterated over again and again.

    Raises:
        FileNotFoundError: without the file.
        ImportError: for Parquet without `pyarrow`; names the extra.
        ValueError: for unknown endings and formats, and options that the format has not. When read: for rows that cannot
            be read, with the number of the line on which they end, and for files without rows.

    Example:
        >>> rows = keras_tfm.data.read_rows("reviews.jsonl.gz", errors="skip")
        >>> texts = [row["text"] for row in rows]
        >>> rows.skipped
    """
    path = Path(path)
    endings = [suffix.lower() for suffix in path.suffixes]
    compressed = endings[-1:] == [".gz"]
    ending = (endings[:-1] if compressed else endings)[-1:]
    if format is None:
        format = FORMATS.get(ending[0]) if ending else None
        if format is None:
            raise ValueError(f"{path} ends in none of {', '.join(FORMATS)}; give format, one of {_formats()}.")
    if format not in FORMATS.values():
        raise ValueError(f"format must be one of {_formats()}; got {format!r}.")
    if errors not in ("strict", "skip"):
        raise ValueError(f"errors must be 'strict' or 'skip'; got {errors!r}.")
    if documents and format != "text":
        raise ValueError(f"documents=True has no effect on {format!r}; it is for 'text'.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    if format == "parquet":
        if errors == "skip" or compressed:
            raise ValueError(f"A Parquet file is read whole or not at all, without .gz; got {path}, errors={errors!r}.")
        _check_pyarrow()
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty.")
    return Rows(path, format, errors, documents)


def _formats() -> str:
    return ", ".join(map(repr, dict.fromkeys(FORMATS.values())))


def _check_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow: pip install 'keras_tfm[parquet]'") from error


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\udc80" <= character <= "\udcff" for character in text)
