"""Examples in files, for data larger than memory."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np

from keras_tfm.data.examples import Examples

DESCRIPTION = "examples.json"
VERSION = 1
COUNTS = ("cut_rows", "cut_tokens", "cut_labels", "empty")


class MappedExamples(Sequence[dict[str, np.ndarray]]):
    """Examples that `write_examples` wrote, read from their files where they are asked for: `fit` takes them.

    Each is a dict of read-only arrays, views of the files' pages. A slice is of the same files. Pickled, it is their
    directory.

    Args:
        directory: The files'.

    Attributes:
        labels: Names of the tags, by number, as of `Examples`.
        counts: {"cut_rows", "cut_tokens", "cut_labels", "empty"} of all of the files, as `Examples` counts them.

    Raises:
        FileNotFoundError: where there are none.
        ValueError: for files of another version, and files that are not as long as they were written.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory).resolve()
        description = self.directory / DESCRIPTION
        if not description.is_file():
            raise FileNotFoundError(f"There are no examples in {directory}: write_examples writes them.")
        found = json.loads(description.read_text("utf-8"))
        if found.get("version") != VERSION:
            raise ValueError(f"{description} is of version {found.get('version')!r}; this reads version {VERSION}.")
        self.labels: tuple[str, ...] = tuple(found["labels"])
        self.counts: dict[str, int] = found["counts"]
        self._rows = range(found["examples"])
        self._values: dict[str, np.ndarray] = {}
        self._ends: dict[str, np.ndarray] = {}
        for name, field in found["fields"].items():
            if field["tokens"] is not None:
                self._ends[name] = self._mapped(f"{name}.ends", "int64", (len(self._rows),))
            first = len(self._rows) if field["tokens"] is None else field["tokens"]
            self._values[name] = self._mapped(f"{name}.values", field["dtype"], (first, *field["shape"]))

    def _mapped(self, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self.directory / name
        size = path.stat().st_size if path.is_file() else 0
        if size != (wanted := int(np.prod(shape)) * np.dtype(dtype).itemsize):
            raise ValueError(f"{path} has {size} bytes, where {wanted} were written.")
        return np.memmap(path, dtype, "r", shape=shape) if wanted else np.empty(shape, dtype)

    @property
    def lengths(self) -> np.ndarray:
        """(examples,) int64, tokens of each."""
        ends = self._ends["token_ids"]
        return np.diff(ends, prepend=0)[np.arange(self._rows.start, self._rows.stop, self._rows.step)]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of what each example has."""
        return tuple(self._values)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> MappedExamples: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = object.__new__(MappedExamples)
            part.__dict__.update(self.__dict__)
            part._rows = self._rows[index]
            return part
        row = self._rows[index]
        example = {}
        for name, values in self._values.items():
            ends = self._ends.get(name)
            example[name] = values[row] if ends is None else values[ends[row - 1] if row else 0 : ends[row]]
        return example

    def __reduce__(self) -> tuple:
        return _opened, (str(self.directory), self._rows)


def _opened(directory: str, rows: range) -> MappedExamples:
    found = MappedExamples(directory)
    found._rows = rows
    return found


def write_examples(
    directory: str | Path,
    rows: Iterable[Any],
    make: Callable[[list[Any]], Sequence[Mapping[str, Any]]],
    *,
    at_once: int = 10_000,
) -> MappedExamples:
    """Make examples of rows, some at a time, and write them to files; only these rows are in memory.

    Args:
        directory: To be made. It appears when all is written, not before.
        rows: Read once: of `read_rows`, say, or a data set of `datasets`.
        make: Given a list of rows, their examples, such as `Examples`. What runs over rows, a stream cut into blocks or
            rows packed together, does so within one call's.
        at_once: Rows to a call.

    Returns:
        The examples, as `MappedExamples`, which later runs open by their directory.

    Raises:
        FileExistsError: where there is something already.
        ValueError: for no rows, no examples, and examples whose fields, dtypes or inner shapes differ.

    Example:
        >>> rows = keras_tfm.data.read_rows("reviews.jsonl")
        >>> examples = keras_tfm.data.write_examples(
        ...     "reviews", rows, lambda rows: model.examples([r["text"] for r in rows], [r["stars"] for r in rows])
        ... )
        >>> model.fit(examples)
    """
    directory = Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} is there already; open it by MappedExamples, or remove it.")
    if at_once < 1:
        raise ValueError(f"at_once must be at least 1; got {at_once}.")
    partial = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:8]}.partial")  # no other run's, and nobody's
    partial.mkdir(parents=True)
    try:
        with _Writer(partial) as writer:
            for chunk in _chunks(rows, at_once):
                writer.add(make(chunk))
        writer.describe()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return MappedExamples(directory)


def _chunks(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk


class _Writer:
    """Files of a directory, to which examples are appended."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.files: dict[str, Any] = {}
        self.kinds: dict[str, tuple[str, bool, tuple[int, ...]]] = {}  # dtype, whether scalar, shape behind the tokens
        self.tokens: dict[str, int] = {}
        self.examples = 0
        self.labels: tuple[str, ...] = ()
        self.counts = dict.fromkeys(COUNTS, 0)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *raised: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, examples: Sequence[Mapping[str, Any]]) -> None:
        if isinstance(examples, Examples):
            for name in COUNTS:
                self.counts[name] += getattr(examples, name)
            if self.examples and examples.labels != self.labels:
                raise ValueError(
                    f"The tags of these rows are {list(examples.labels)}, those of the rows before {list(self.labels)}: "
                    "let make give token_examples the labels of all."
                )
            self.labels = examples.labels
        for example in examples:
            arrays = {name: np.asarray(value) for name, value in example.items()}
            kinds = {name: (array.dtype.str, not array.ndim, array.shape[1:]) for name, array in arrays.items()}
            if not self.kinds:
                self._begin(kinds)
            if kinds != self.kinds:
                raise ValueError(
                    f"Example {self.examples} has {_said(kinds)}, where the first has {_said(self.kinds)}."
                )
            for name, array in arrays.items():
                self.files[f"{name}.values"].write(array.tobytes())
                if array.ndim:
                    self.tokens[name] += len(array)
                    self.files[f"{name}.ends"].write(np.int64(self.tokens[name]).tobytes())
            self.examples += 1

    def _begin(self, kinds: dict[str, tuple[str, bool, tuple[int, ...]]]) -> None:
        if "token_ids" not in kinds or not all(name.isidentifier() for name in kinds):
            raise ValueError(f"An example must have 'token_ids', and names that can be files'; it has {sorted(kinds)}.")
        self.kinds = kinds
        for name, (dtype, scalar, _) in kinds.items():
            if np.dtype(dtype).hasobject or np.dtype(dtype).kind in "US":
                raise ValueError(f"{name!r} must be numbers; got {dtype}.")
            self.files[f"{name}.values"] = (self.directory / f"{name}.values").open("wb")
            if not scalar:
                self.tokens[name] = 0
                self.files[f"{name}.ends"] = (self.directory / f"{name}.ends").open("wb")

    def describe(self) -> None:
        if not self.examples:
            raise ValueError("There are no examples: no rows were given, or none has a token.")
        fields = {
            name: {"dtype": dtype, "shape": list(shape), "tokens": self.tokens.get(name)}
            for name, (dtype, _, shape) in self.kinds.items()
        }
        about = {"version": VERSION, "examples": self.examples, "fields": fields}
        about |= {"labels": list(self.labels), "counts": self.counts}
        (self.directory / DESCRIPTION).write_text(json.dumps(about, indent=2) + "\n", "utf-8")


def _said(kinds: Mapping[str, tuple[str, bool, tuple[int, ...]]]) -> dict[str, str]:
    return {
        name: np.dtype(dtype).name + ("" if scalar else str(("tokens", *shape)).replace("'", ""))
        for name, (dtype, scalar, shape) in kinds.items()
    }
