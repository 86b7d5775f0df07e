"""The two figures of `finetune_bert.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; needs no display
import matplotlib.pyplot as plt
import numpy as np

TRAIN, HELD_OUT = "#4878a8", "#d1603d"


def curves(history: dict[str, list[float]], batch_losses: Sequence[float], path: Path) -> None:
    """Loss and accuracy by epoch, each batch's training loss faintly behind; written to `path`."""
    epochs = np.arange(1, len(history["loss"]) + 1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(
        np.arange(1, len(batch_losses) + 1) * len(epochs) / len(batch_losses),
        batch_losses,
        color=TRAIN,
        alpha=0.25,
        lw=0.8,
        label="training, each batch",
    )
    for axes, name in ((left, "loss"), (right, "accuracy")):
        axes.plot(epochs, history[name], "o-", color=TRAIN, label="training, epoch's mean")
        axes.plot(epochs, history[f"val_{name}"], "o-", color=HELD_OUT, label="held out")
        axes.set(xlabel="epoch", ylabel=name, title=name.capitalize())
        axes.set_xticks(epochs[:: max(1, len(epochs) // 10)])
        axes.set_xlim(0 if name == "loss" else 0.8, len(epochs) + 0.2)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(0, None)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    right.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def confusion(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str], path: Path) -> None:
    """How often each class (row) was given each label (column), coloured by the share of the row; written to `path`."""
    counts = np.zeros((len(labels), len(labels)), int)
    for t, p in zip(true, predicted, strict=True):
        counts[labels.index(t), labels.index(p)] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = 3.2 + 0.55 * len(labels)
    figure, axes = plt.subplots(figsize=(size + 0.9, size), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        if counts[row, column] or len(labels) <= 4:
            axes.text(
                column,
                row,
                counts[row, column],
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
            )
    places = np.arange(len(labels))
    many = len(labels) > 4
    axes.set_xticks(
        places,
        labels,
        rotation=45 if many else 0,
        ha="right" if many else "center",
        rotation_mode="anchor" if many else None,
    )
    axes.set_yticks(places, labels)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"{np.trace(counts) / counts.sum():.1%} of {counts.sum()} held-out rows are right",
    )
    axes.spines[:].set_visible(False)
    axes.set_xticks(places[:-1] + 0.5, minor=True)
    axes.set_yticks(places[:-1] + 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=2)
    axes.tick_params(which="both", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, format=matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
