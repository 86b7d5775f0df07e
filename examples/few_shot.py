"""Classify text with a language model and a few examples in its prompt; no weight is changed.

    python examples/few_shot.py HuggingFaceTB/SmolLM2-135M    # sentiment, on the sentences shipped beside this file
    python examples/few_shot.py path/to/gpt --data reviews.csv --text-column review --label-column stars

The model is any directory or hub id that `CausalLM.from_pretrained` reads (hub ids need `pip install "keras_tfm[hub]"`). It
judges rows of the file; other rows of it, of each class in turn, are the examples. How often it is right, by the number of
examples, is printed, kept in metrics.json and drawn into examples.png, beside what guessing the commonest class would give.

Runs on Keras's TensorFlow, JAX and PyTorch backends alike: KERAS_BACKEND=jax python examples/few_shot.py MODEL
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import keras_tfm as tfm

SENTENCES = Path(__file__).parent / "data" / "sentiment.tsv"


def main() -> None:
    args = parse_arguments()
    start = time.time()
    try:
        texts, labels = tfm.data.read_table(args.data, args.text_column, args.label_column)
        model = tfm.CausalLM.from_pretrained(args.model)
        accuracy = judged(model, texts, labels, args)
    except (OSError, ValueError) as error:
        print(f"few_shot.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    commonest = max(map(labels.count, set(labels))) / len(labels)
    print(f"the commonest class   {commonest:6.1%}")
    args.output.mkdir(parents=True, exist_ok=True)
    draw(accuracy, commonest, args.output / "examples.png")
    (args.output / "metrics.json").write_text(
        json.dumps({"right": accuracy, "commonest": commonest}, indent=1), "utf-8"
    )
    print(f"\nTook {time.time() - start:.0f} s. {args.output} holds examples.png and metrics.json.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory or hub id of a causal language model")
    parser.add_argument("--data", default=str(SENTENCES), help="a CSV or TSV file; default: the shipped sentences")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="numbers of examples to try")
    parser.add_argument("--trials", type=int, default=200, help="judgements for each number of examples")
    parser.add_argument("--output", type=Path, default=Path("runs/few_shot"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if min(*args.shots, args.trials - 1) < 0:
        parser.error("--shots must not be negative, --trials must be at least 1")
    return args


def judged(
    model: tfm.CausalLM, texts: Sequence[str], labels: Sequence[str], args: argparse.Namespace
) -> dict[str, float]:
    """How often a model is right about rows, by the number of examples from other rows."""
    generator = np.random.default_rng(args.seed)
    classes, accuracy = sorted(set(labels)), {}
    for shots in args.shots:
        right = 0
        for index in generator.choice(len(texts), min(args.trials, len(texts)), replace=False):
            chosen = list(balanced(labels, int(index), shots, generator))
            few = tfm.generation.FewShot(model, [(texts[i], labels[i]) for i in chosen], classes)
            right += few.predict([texts[index]]) == [labels[index]]
        accuracy[str(shots)] = right / min(args.trials, len(texts))
        report(shots, accuracy[str(shots)])
    return accuracy


def balanced(labels: Sequence[str], without: int, count: int, generator: np.random.Generator) -> Iterator[int]:
    """`count` rows other than one of them, of each class in turn."""
    rows = np.asarray(labels)
    by_class = {}
    for label in sorted(set(labels)):
        found = np.flatnonzero(rows == label)
        by_class[label] = generator.permutation(found[found != without])
    order = [label for label in generator.permutation(sorted(by_class)) if len(by_class[label])]
    for place in range(count):
        candidates = by_class[order[place % len(order)]]
        yield int(candidates[place // len(order) % len(candidates)])


def report(shots: int, accuracy: float) -> None:
    """A line for a number of examples."""
    print(f"{shots:3d} example{' ' if shots == 1 else 's'}   {accuracy:6.1%} right")


def draw(accuracy: dict[str, float], commonest: float, path: Path) -> None:
    """Accuracy by the number of examples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.plot(range(len(accuracy)), list(accuracy.values()), "o-", color="#4878a8")
    axes.axhline(commonest, color="#888888", linestyle=":", label="the commonest class")
    axes.legend(frameon=False)
    axes.set_xticks(range(len(accuracy)), list(accuracy))
    axes.set(xlabel="examples in the prompt", ylabel="right", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
