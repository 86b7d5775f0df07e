"""Labelled text from CSV and TSV files."""

from __future__ import annotations

import csv
import difflib
from pathlib import Path


def read_table(path: str | Path, text: str = "text", label: str = "label") -> tuple[list[str], list[str]]:
    """Texts and labels of a CSV or TSV file with a header (by its ending: .tsv and .txt are tab separated).

    Args:
        path: The file, UTF-8.
        text: Name of the column of texts; "sentence" serves where "text" is asked for and absent.
        label: Name of the column of labels.

    Raises:
        FileNotFoundError: without the file.
        ValueError: for missing columns (the header is shown), rows of another width (line numbers are given), bytes that
            are not UTF-8, or a file without rows.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    tabs = path.suffix.lower() in (".tsv", ".txt")
    options: dict = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, **options)
            header = next(rows, None)
            if header is None:
                raise ValueError(f"{path} is empty; a header with the columns {text!r} and {label!r} is expected.")
            columns = [_column(path, header, name) for name in (text, label)]
            texts, labels = [], []
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"{path}, line {rows.line_num}: {len(row)} columns, where the header has {len(header)}."
                    )
                texts.append(row[columns[0]])
                labels.append(row[columns[1]])
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    if not texts:
        raise ValueError(f"{path} has a header and no rows.")
    return texts, labels


def _column(path: Path, header: list[str], name: str) -> int:
    if name not in header and name == "text" and "sentence" in header:
        name = "sentence"
    if name in header:
        return header.index(name)
    near = difflib.get_close_matches(name, header, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{path} has no column {name!r}; its header is {header}.{hint}")
