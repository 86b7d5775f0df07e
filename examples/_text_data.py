"""The data sets of `finetune_bert.py`, each as texts and labels to train on and others held out."""

from __future__ import annotations

import os
import sys
import tempfile
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from _stdlib_docstrings import docstrings

from keras_tfm.data import read_table

BUILT_IN = ("sentiment", "stdlib", "sst2")
HELD_OUT = 0.25
SPLIT_SEED = 0  # the split stays the same whatever the seed of the training
SENTIMENT_FILE = Path(__file__).parent / "data" / "sentiment.tsv"
SST2_URL = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
CACHE = Path.home() / ".cache" / "keras_tfm"

Rows = tuple[list[str], list[str]]  # texts and the names of their labels


@dataclass
class LabelledText:
    """Rows to train on and rows held out; `questions` are sentences to try the finished model on."""

    name: str
    train: Rows
    test: Rows
    questions: list[str]

    @property
    def labels(self) -> list[str]:
        """The classes, sorted."""
        return sorted(set(self.train[1]))


def load(name: str, text: str = "text", label: str = "label", validation_file: str | None = None) -> LabelledText:
    """The data set "sentiment", "stdlib" or "sst2", or a CSV or TSV file with the columns `text` and `label`.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing or not such a table.
        OSError: if a download fails.
    """
    if name == "sentiment":
        return check(sentiment())
    if name == "stdlib":
        return check(stdlib())
    if name == "sst2":
        return check(sst2())
    if not Path(name).suffix and not Path(name).exists():
        raise FileNotFoundError(
            f"there is no file {name!r}; --data takes {', '.join(BUILT_IN)}, or a .csv or .tsv file"
        )
    return check(from_file(name, text, label, validation_file))


def sentiment() -> LabelledText:
    """Sentences written for this project, a quarter of each class held out."""
    texts, labels = read_table(SENTIMENT_FILE)
    questions = ["We loved every minute of it.", "The worst meal in years.", "I expected to hate it. I was wrong."]
    return LabelledText("sentiment (the shipped sentences)", *split(texts, labels, stratified(labels)), questions)


def stdlib() -> LabelledText:
    """Docstrings of Python's standard library and the part each is from; a quarter held out, in whole modules."""
    texts, labels, modules = docstrings()
    questions = [
        "Open a connection to the server and log in.",
        "Return the day of the week.",
        "Draw a circle around the widget.",
    ]
    return LabelledText(
        "stdlib (docstrings of Python's standard library)", *split(texts, labels, by_group(labels, modules)), questions
    )


def sst2() -> LabelledText:
    """GLUE's SST-2: sentences from film reviews, its dev rows held out."""
    folder = sst2_folder()
    train, dev = read_sst2(folder / "train.tsv"), read_sst2(folder / "dev.tsv")
    questions = [
        "a gorgeous , witty film",
        "it never gets going , and then it does not stop",
        "not half as bad as you would think",
    ]
    return LabelledText("SST-2 (film reviews)", train, dev, questions)


def from_file(path: str, text: str, label: str, validation_file: str | None) -> LabelledText:
    """The user's table; what is held out is another file, or else a quarter of each class."""
    texts, labels = read_table(path, text, label)
    if validation_file is None:
        train, test = split(texts, labels, stratified(labels))
    else:
        train, test = (texts, labels), read_table(validation_file, text, label)
    return LabelledText(path, train, test, test[0][:3])


def check(data: LabelledText) -> LabelledText:
    """The same data, if a classifier can be made from them."""
    (texts, labels), held_out = data.train, data.test
    if "" in labels or "" in held_out[1]:
        raise ValueError(f"{data.name}: {(labels + held_out[1]).count('')} rows have an empty label.")
    if len(data.labels) < 2:
        raise ValueError(f"{data.name}: all labels are {data.labels[0]!r}; a classifier needs two or more classes.")
    if len(data.labels) > len(texts) / 2:
        counts = f"{len(data.labels)} different labels in {len(texts)} rows"
        raise ValueError(f"{data.name}: {counts}. Is that the column of classes?")
    unknown = sorted(set(held_out[1]) - set(labels))
    if unknown:
        raise ValueError(
            f"{data.name}: the labels {unknown[:5]} are held out, but not among those to learn from, {data.labels}."
        )
    return data


def limited(data: LabelledText, limit: int | None, seed: int, option: str = "--limit") -> LabelledText:
    """The data with no more than `limit` rows to train on, drawn at random; `option` is named in errors."""
    if limit is None:
        return data
    texts, labels = data.train
    rows = np.random.default_rng(seed).permutation(len(texts))[:limit]
    missing = set(labels) - {labels[i] for i in rows}
    if missing:
        raise ValueError(f"{option} {limit} leaves no rows of the classes {sorted(missing)}.")
    return replace(data, train=([texts[i] for i in rows], [labels[i] for i in rows]))


def extra_rows(score: str | None, data: LabelledText) -> dict[str, Rows]:
    """Rows of another data set to score the finished model on, by its name."""
    if score is None:
        return {}
    if data.labels != ["negative", "positive"]:
        raise ValueError(f"--score sst2 needs the labels 'negative' and 'positive'; these are {data.labels}.")
    return {"SST-2 dev": read_sst2(sst2_folder() / "dev.tsv")}


# Splitting --------------------------------------------------------------------------------------------------------------


def split(texts: Sequence[str], labels: Sequence[str], test: np.ndarray) -> tuple[Rows, Rows]:
    """The rows where `test` is false, and those where it is true."""

    def rows(chosen: np.ndarray) -> Rows:
        where = np.flatnonzero(chosen)
        return [texts[i] for i in where], [labels[i] for i in where]

    return rows(~test), rows(test)


def stratified(labels: Sequence[str]) -> np.ndarray:
    """True for a random quarter of each class's rows; a class of one row is all for training."""
    random = np.random.default_rng(SPLIT_SEED)
    test = np.zeros(len(labels), bool)
    for label, count in sorted(Counter(labels).items()):
        rows = np.flatnonzero(np.asarray(labels) == label)
        take = 0 if count == 1 else max(1, round(HELD_OUT * count))
        test[random.permutation(rows)[:take]] = True
    if not test.any():
        raise ValueError(f"{len(labels)} rows, each with a label of its own, leave none to hold out.")
    return test


def by_group(labels: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """True for about a quarter of each class's rows, such that a group, which has one label, is never divided."""
    random = np.random.default_rng(SPLIT_SEED)
    test = np.zeros(len(labels), bool)
    for label in sorted(set(labels)):
        sizes = Counter(group for group, other in zip(groups, labels, strict=True) if other == label)
        room, chosen = HELD_OUT * 1.1 * sizes.total(), set()
        for group in random.permutation(sorted(sizes)):
            if sizes[group] <= room:
                room -= sizes[group]
                chosen.add(group)
        if not chosen and len(sizes) > 1:  # all are large
            chosen = {min(sizes, key=sizes.__getitem__)}
        test |= np.array([group in chosen for group in groups])
    return test


# SST-2 ------------------------------------------------------------------------------------------------------------------


def read_sst2(path: Path) -> Rows:
    """A file of SST-2: a column `label` of 0 and 1 and one of texts, whose name differs between copies."""
    with path.open(encoding="utf-8") as file:
        columns = file.readline().rstrip("\r\n").split("\t")
    text = next((name for name in columns if name != "label"), "sentence")
    texts, labels = read_table(path, text, "label")
    names = {"0": "negative", "1": "positive"}
    unknown = sorted(set(labels) - set(names))
    if unknown:
        raise ValueError(f"{path} has the labels {unknown[:5]}; SST-2's are 0 and 1.")
    return texts, [names[label] for label in labels]


def sst2_folder() -> Path:
    """$KERAS_TFM_DATA/sst2 where it holds the files; else GLUE's, downloaded once."""
    own = Path(os.environ.get("KERAS_TFM_DATA", "/nonexistent")) / "sst2"
    for folder in (own, CACHE / "sst2"):
        if all((folder / name).is_file() for name in ("train.tsv", "dev.tsv")):
            return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        archive = Path(scratch) / "SST-2.zip"
        try:
            download(SST2_URL, archive)
            with zipfile.ZipFile(archive) as files:
                for name in ("train.tsv", "dev.tsv"):
                    (Path(scratch) / name).write_bytes(files.read(f"SST-2/{name}"))
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise OSError(
                f"SST-2 could not be downloaded from {SST2_URL} ({error}). Without a network, put its train.tsv and "
                "dev.tsv into a folder sst2 and set KERAS_TFM_DATA to the folder that holds it."
            ) from error
        (CACHE / "sst2").mkdir(exist_ok=True)
        for name in ("train.tsv", "dev.tsv"):
            os.replace(Path(scratch) / name, CACHE / "sst2" / name)
    return CACHE / "sst2"


def download(url: str, path: Path) -> None:
    """Fetch `url`, saying how far it is."""
    with urllib.request.urlopen(url, timeout=30) as response, path.open("wb") as file:
        total = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read(1 << 18):
            file.write(chunk)
            share = f" of {total / 1e6:.1f}" if total else ""
            print(f"\rDownloading {url}: {file.tell() / 1e6:.1f}{share} MB", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
