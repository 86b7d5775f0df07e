"""Fine-tune a pretrained BERT in several ways, on the same rows, and compare accuracy, size and time.

    python examples/compare_finetuning.py                       # the head alone, top blocks, layer-wise rates, all weights
    python examples/compare_finetuning.py --compare packed      # padded, grouped by length, packed
    python examples/compare_finetuning.py --data reviews.csv --text-column review --label-column stars
    python examples/compare_finetuning.py --data sst2 --limit 5000 --top-blocks 3

`--compare frozen`, the default, trains fewer and more of the weights. `--compare packed` trains all of them on rows that
are padded in a random order, on rows padded with others of like length, and on rows of `--pack` tokens that hold several
texts. The data and the model are those of `finetune_bert.py`, as are the usual epochs and rates.

A run writes into `--output`: model.keras, the last model, which `keras.models.load_model` reads after `import keras_tfm`;
curves.png, comparison.png and metrics.json.

Needs `pip install ".[quickstart]"`. Runs on Keras's TensorFlow, JAX and PyTorch backends alike.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import _common
    import _text_data
    import finetune_bert
    import keras
    from _common import positive
    from _text_data import LabelledText

    import keras_tfm as tfm

OUTPUT = {"frozen": Path("runs/compare_finetuning"), "packed": Path("runs/compare_finetuning_packed")}
FROZEN = {"top_blocks": 2, "decay": 0.8}  # options of one comparison alone, and what they usually are
PACKED = {"pack": 128}
SETTINGS = (
    *("compare", "data", "model", "epochs", "batch_size", "learning_rate", "max_length", "limit", "seed"),
    *FROZEN,
    *PACKED,
)


class Way(NamedTuple):
    """A way to fine-tune: what to do to a new model before it is compiled, its rate, its batches."""

    name: str
    prepare: Callable[[tfm.TextClassifier], Any]
    learning_rate: float
    batches: Callable[[tfm.TextClassifier, LabelledText], Any]
    decay: float = 1.0  # of the rate, by layer


def main() -> None:
    args, start = parse_arguments(), time.time()
    try:
        import _plots
        import _report

        data = _text_data.load(args.data, args.text_column, args.label_column)
        data = _text_data.limited(data, args.limit, args.seed)
        _common.check_folders([args.output])
        directory = args.model or _common.minilm()
        model = finetune_bert.load_model(directory, data.labels, args.max_length, args.usual_length)
        check_options(model, args)
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        _common.fail(f'{error}: pip install "keras_tfm[quickstart]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    finetune_bert.describe(model, data, args)
    held_out = {"held out": data.test}
    baselines = {
        "majority class": _report.majority(data, held_out)["held out"],
        "bag of words": _report.bag_of_words(data, held_out)["held out"],
    }

    figures: dict[str, dict[str, float]] = {}
    history: dict[str, list[float]] = {}
    for way in ways_of(args):
        print(f"\n{way.name}", flush=True)
        with quiet():
            keras.utils.set_random_seed(args.seed)  # the same head, dropout and order of rows for all
        model = finetune_bert.load_model(directory, data.labels, args.max_length, args.usual_length)
        figures[way.name], kept = fine_tune(model, way, data, args)
        history |= {f"{way.name}: {name}": values for name, values in kept.items()}
    print_table(figures, baselines)
    probabilities = finetune_bert.probabilities_of(model, data.test[0])
    _report.print_mistakes(data.test, probabilities, data.labels)

    _common.save(model, args.output / "model.keras")
    accuracies = {name: history[f"{name}: val_accuracy"] for name in figures}
    options = {"title": "Held-out rows that are right", "label": "accuracy", "share": True}
    _plots.lines(accuracies, args.output / "curves.png", **options)
    _plots.accuracy_and_time(figures, baselines["bag of words"], args.output / "comparison.png")
    results = baselines | {
        f"{way}: {name}": value for way, by_name in figures.items() for name, value in by_name.items()
    }
    rows, seconds = {"train": len(data.train[0]), "held out": len(data.test[0])}, time.time() - start
    _common.write_metrics(args, SETTINGS, rows, results, history, seconds)
    print(
        f"\nTook {seconds / 60:.1f} minutes. {args.output} holds model.keras, the last model, curves.png, comparison.png "
        "and metrics.json."
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--compare", choices=["frozen", "packed"], default="frozen", help="what (default: %(default)s)")
    add("--data", default="sentiment", help="sentiment (default), stdlib, sst2, or a .csv or .tsv file with a header")
    add("--text-column", default="text", metavar="NAME", help="of the file's texts (default: %(default)s)")
    add("--label-column", default="label", metavar="NAME", help="of the file's labels (default: %(default)s)")
    add("--model", metavar="DIR", help="a Hugging Face directory of a BERT (default: the quickstart extra's MiniLM)")
    add("--epochs", type=positive(int), help="default: 4 on sentiment, 3 on stdlib and files, 1 on sst2")
    add("--batch-size", type=positive(int), default=32, help="texts a step, about, if packed (default: %(default)s)")
    add("--learning-rate", type=positive(float), help="of all weights, at its peak (default: as finetune_bert.py)")
    add("--max-length", type=positive(int), help="in tokens; longer texts are cut (default: 128, on stdlib 64)")
    add("--top-blocks", type=positive(int), metavar="N", help="blocks to train below the head (frozen; default: 2)")
    add("--decay", type=positive(float), help="of the layer-wise rates, a block (frozen; default: 0.8)")
    add("--pack", type=positive(int), metavar="N", help="tokens of a packed row (packed; default: 128)")
    add("--limit", type=positive(int), metavar="N", help="train on N random rows only")
    add("--seed", type=int, default=0, help="of the new head, dropout and --limit (default: %(default)s)")
    add(
        "--output", type=Path, metavar="DIR", help="default: runs/compare_finetuning, or runs/compare_finetuning_packed"
    )
    args = parser.parse_args()
    for comparison, options in (("frozen", FROZEN), ("packed", PACKED)):
        for name, usual in options.items():
            if comparison == args.compare:
                setattr(args, name, getattr(args, name) or usual)
            elif getattr(args, name) is not None:
                parser.error(f"--{name.replace('_', '-')} has no effect with --compare {args.compare}")
    args.output = args.output or OUTPUT[args.compare]
    usual = finetune_bert.SETTINGS.get(args.data, finetune_bert.SETTINGS["a file"])
    args.epochs = args.epochs or usual.epochs
    args.learning_rate = args.learning_rate or usual.learning_rate
    args.usual_length = usual.max_length
    return args


def check_options(model: tfm.TextClassifier, args: argparse.Namespace) -> None:
    """Raise ValueError for options that do not suit the model."""
    blocks, limit = len(model.backbone.blocks), model.backbone.config.max_sequence_length
    if args.compare == "frozen" and args.top_blocks >= blocks:
        raise ValueError(f"--top-blocks must be below the model's {blocks} blocks; got {args.top_blocks}")
    if args.compare == "frozen" and args.decay >= 1:
        raise ValueError(f"--decay must be below 1; got {args.decay}")
    longest = model.tokenizer.max_length
    if args.compare == "packed" and args.pack < longest:
        raise ValueError(f"--pack must be at least --max-length, {longest}; got {args.pack}")
    if args.compare == "packed" and limit is not None and args.pack > limit:
        raise ValueError(f"--pack {args.pack} is past the model's {limit} positions")


# Ways to fine-tune ------------------------------------------------------------------------------------------------------


def ways_of(args: argparse.Namespace) -> Iterator[Way]:
    """What is compared. The fewer weights are trained, the higher the rate that suits them."""
    rate = args.learning_rate

    def grouped(model: tfm.TextClassifier, data: LabelledText) -> Any:
        return model.dataset(*data.train, batch_size=args.batch_size, shuffle=True)

    def ungrouped(model: tfm.TextClassifier, data: LabelledText) -> Any:
        dataset = grouped(model, data)
        dataset.batches.group_by_length = False
        dataset.batches.next_epoch()
        return dataset

    def packed(model: tfm.TextClassifier, data: LabelledText) -> Any:
        rows = len(model.dataset(*data.train, batch_size=1, pack=args.pack))
        texts_a_row = len(data.train[0]) / rows
        batch_size = max(1, round(args.batch_size / texts_a_row))
        return model.dataset(*data.train, batch_size=batch_size, pack=args.pack, shuffle=True)

    def as_it_is(model: tfm.TextClassifier) -> None:
        pass

    if args.compare == "frozen":
        top = args.top_blocks
        yield Way("head alone", lambda model: tfm.training.freeze(model, "backbone"), 100 * rate, grouped)
        below = ("embeddings", f"blocks[:-{top}]")
        yield Way(f"top {top} blocks", lambda model: tfm.training.freeze(model, *below), 2 * rate, grouped)
        yield Way("layer-wise rates", as_it_is, 2 * rate, grouped, args.decay)
        yield Way("all weights", as_it_is, rate, grouped)
    else:
        yield Way("padded", as_it_is, rate, ungrouped)
        yield Way("grouped by length", as_it_is, rate, grouped)
        yield Way(f"packed to {args.pack}", as_it_is, rate, packed)


def fine_tune(
    model: tfm.TextClassifier, way: Way, data: LabelledText, args: argparse.Namespace
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Train a new model in one way; gives its figures and its history."""
    way.prepare(model)
    batches = way.batches(model, data)
    optimizer = _common.adamw(way.learning_rate, args.epochs * len(batches))
    if way.decay < 1:
        optimizer = tfm.training.layer_rates(model, way.decay, optimizer)
    model.compile(optimizer)
    padding = padding_of(batches)
    clock = TrainingSeconds()
    validation = model.dataset(*data.test, batch_size=args.batch_size)
    history = model.fit(batches, validation_data=validation, epochs=args.epochs, callbacks=[clock]).history
    figures = {"accuracy": history["val_accuracy"][-1]}
    if args.compare == "frozen":
        figures["trainable parameters"] = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    else:
        figures["padding"] = padding
        figures["steps an epoch"] = len(batches)
    return {**figures, "seconds an epoch": clock.usual()}, {name: history[name] for name in ("loss", "val_accuracy")}


def padding_of(batches: Any) -> float:
    """The share of places that hold no token."""
    masks = [batches[index][0]["padding_mask"] for index in range(len(batches))]
    return 1.0 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)


class TrainingSeconds(keras.callbacks.Callback):
    """How long the training of each epoch takes, validation left out."""

    def __init__(self):
        super().__init__()
        self.seconds, self.start = [], 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self.start = time.perf_counter()

    def on_test_begin(self, logs=None):
        """Stop it."""
        self.seconds.append(time.perf_counter() - self.start)

    def usual(self) -> float:
        """The median, without the first epoch, in which the step is compiled, if there are others."""
        return float(np.median(self.seconds[1:] or self.seconds))


def print_table(figures: dict[str, dict[str, float]], baselines: dict[str, float]) -> None:
    """A line a way, a column a figure."""
    names = list(next(iter(figures.values())))
    print("\n" + " " * 20 + "".join(f"{name:>22}" for name in names))
    for baseline, accuracy in baselines.items():
        print(f"{baseline:<20}{accuracy:>22.1%}")
    for way, by_name in figures.items():
        print(f"{way:<20}" + "".join(f"{shown(name, by_name[name]):>22}" for name in names))


def shown(name: str, value: float) -> str:
    """A figure as it is printed."""
    if name in ("accuracy", "padding"):
        return f"{value:.1%}"
    return f"{value:,.1f}" if name == "seconds an epoch" else f"{value:,.0f}"


if __name__ == "__main__":
    main()
