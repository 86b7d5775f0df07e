"""The figures of the examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files; needs no display
import matplotlib.pyplot as plt
import numpy as np

TRAIN, HELD_OUT = "#4878a8", "#d1603d"


def curves(
    history: dict[str, list[float]],
    batch_losses: Sequence[float],
    path: Path,
    *,
    score: str = "accuracy",
    title: str | None = None,
) -> None:
    """Loss and a score (a share) by epoch, each batch's training loss faintly behind; written to `path`."""
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
    for axes, name in ((left, "loss"), (right, score)):
        if name in history:
            axes.plot(epochs, history[name], "o-", color=TRAIN, label="training, epoch's mean")
        axes.plot(epochs, history[f"val_{name}"], "o-", color=HELD_OUT, label="held out")
        axes.set(xlabel="epoch", ylabel=name, title=title if axes is right and title else name.capitalize())
        axes.set_xticks(epochs[:: max(1, len(epochs) // 10)])
        axes.set_xlim(0 if name == "loss" else 0.8, len(epochs) + 0.2)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set_ylim(0, None)
    if score != "accuracy":
        right.set_ylim(0, 1)
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


def bars(shares: Mapping[str, Mapping[str, float]], title: str, path: Path) -> None:
    """A group of bars for each kind, one for each method; `shares` has methods' shares by kind; written to `path`."""
    kinds, colors = list(next(iter(shares.values()))), ["#b0b0b0", TRAIN, HELD_OUT]
    height = 0.8 / len(shares)
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.3 * len(kinds) * len(shares)), layout="constrained")
    for place, (method, values) in enumerate(shares.items()):
        where = np.arange(len(kinds)) + (place - (len(shares) - 1) / 2) * height
        drawn = axes.barh(
            where, [values[kind] for kind in kinds], height, label=method, color=colors[place - len(shares)]
        )
        axes.bar_label(drawn, [f"{values[kind]:.0%}" for kind in kinds], padding=3, fontsize=9)
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.08), title=title)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    columns = 3 if sum(map(len, shares)) < 50 else 1
    figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def lines(
    values: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
    label: str,
    batches: Sequence[float] = (),
    share: bool = False,
) -> None:
    """A line by epoch for each name, and faintly behind a value of each batch; `share` for percentages."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    count = max(map(len, values.values()))
    if batches:
        where = np.arange(1, len(batches) + 1) * count / len(batches)
        axes.plot(where, batches, color=TRAIN, alpha=0.25, lw=0.8, label="training, each batch")
    colors = [TRAIN, HELD_OUT, "#6a9f58", "#8b6bb1"]
    for (name, points), color in zip(values.items(), colors, strict=False):
        axes.plot(np.arange(1, len(points) + 1), points, "o-", color=color, label=name)
    axes.set(xlabel="epoch", ylabel=label, title=title)
    axes.set_xticks(np.arange(1, count + 1)[:: max(1, count // 10)])
    if share:
        axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def accuracy_and_time(figures: Mapping[str, Mapping[str, float]], baseline: float, path: Path) -> None:
    """A point for each way of training: seconds an epoch, accuracy; the baseline's accuracy as a line."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.axhline(baseline, color="#888888", linestyle=":", label="bag of words")
    for name, values in figures.items():
        where = (values["seconds an epoch"], values["accuracy"])
        axes.plot(*where, "o", color=TRAIN, markersize=8)
        axes.annotate(name, where, xytext=(0, 9), textcoords="offset points", ha="center")
    axes.set(xlabel="seconds an epoch", ylabel="accuracy", title="Held-out rows that are right")
    axes.margins(x=0.2, y=0.25)
    axes.set_xlim(0, None)
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def forgetting(scores: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Bits a byte of each model on each text, in groups of bars; written to `path`."""
    texts = list(next(iter(scores.values())))
    height, colors = 0.8 / len(texts), [TRAIN, HELD_OUT]
    figure, axes = plt.subplots(figsize=(7, 1.4 + 0.35 * len(texts) * len(scores)), layout="constrained")
    for place, (text, color) in enumerate(zip(texts, colors, strict=True)):
        where = np.arange(len(scores)) + (place - (len(texts) - 1) / 2) * height
        drawn = axes.barh(where, [row[text] for row in scores.values()], height, label=text, color=color)
        axes.bar_label(drawn, fmt="%.2f", padding=3, fontsize=9)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="bits a byte, held out: fewer are better", title="What is learned, and what is forgotten")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def laid_over(losses: Mapping[str, Mapping[int, float]], kills: Sequence[int], path: Path) -> None:
    """The loss of the run that was left alone, that of the killed one upon it, and where it was killed."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    alone, killed = losses["alone"], losses["killed"]
    axes.plot(list(alone), list(alone.values()), color=HELD_OUT, lw=6, alpha=0.35, label="left alone")
    axes.plot(list(killed), list(killed.values()), color=TRAIN, lw=1.4, label="killed and started again")
    for place, step in enumerate(kills):
        label = "killed" if place == 0 else None
        axes.axvline(step, color="#888888", linestyle=":", lw=1.2, label=label)
    axes.set(xlabel="batch", ylabel="loss, the mean over the epoch so far", title="One run, and one that was killed")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    figure.savefig(path, dpi=150)
    plt.close(figure)
