"""A language model that learns from its prompt: train one, then give it examples, and change no weight.

    python examples/few_shot.py                                      # trains a small GPT first, two minutes
    python examples/few_shot.py --model path/to/gpt --data reviews.csv --text-column review --label-column stars

Without `--model`, a GPT is trained on lines such as "old cat -> zib ; red soup -> mok ; wet dog -> zib". What is an animal
stays the same, what animals are called does not: each line has label words of its own, drawn anew, so that only the
examples before it can tell. How often it is then right, by the number of examples, is drawn into examples.png.

With `--model`, any causal language model that `from_pretrained` reads judges the rows of a CSV or TSV file, and other rows
of it are the examples.

Runs on Keras's TensorFlow, JAX and PyTorch backends alike: KERAS_BACKEND=jax python examples/few_shot.py
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
    import keras
    from tokenizers import Tokenizer, models, pre_tokenizers

    import keras_tfm as tfm

KINDS = {
    "animal": ["cat", "dog", "horse", "sheep", "goat", "duck", "mouse", "wolf", "bear", "fox", "hare", "crow"],
    "food": ["soup", "bread", "rice", "cake", "plum", "pear", "bean", "egg", "cheese", "corn", "pie", "jam"],
    "tool": ["saw", "axe", "drill", "pliers", "spade", "rake", "file", "wrench", "nail", "chisel", "awl", "hoe"],
    "garment": ["hat", "coat", "sock", "glove", "scarf", "shirt", "boot", "skirt", "vest", "belt", "cap", "gown"],
}
ADJECTIVES = ["old", "red", "wet", "small", "good", "heavy", "round", "plain", "cold", "bright", "soft", "clean"]
LABELS = ["zib", "mok", "taf", "gul", "ren", "pog", "dax", "lim", "fep", "wug", "sar", "nid"]
MARKS = ["[PAD]", "->", ";"]
WORDS = [*MARKS, *ADJECTIVES, *LABELS, *(noun for nouns in KINDS.values() for noun in nouns)]
TEMPLATE, SEPARATOR = "{text} -> {label}", " ; "
HELD_OUT = 3  # every third pair of adjective and noun is never trained on

Row = tuple[str, str]  # text and label


def main() -> None:
    args = parse_arguments()
    start = time.time()
    with quiet():  # which imports TensorFlow wherever it is installed
        keras.utils.set_random_seed(args.seed)
    generator = np.random.default_rng(args.seed)
    if args.model:
        model = tfm.CausalLM.from_pretrained(args.model)
        accuracy = of_file(model, args, generator)
    else:
        model = trained(args, generator)
        accuracy = of_episodes(model, args, generator)
    args.output.mkdir(parents=True, exist_ok=True)
    draw(accuracy, args.output / "examples.png")
    (args.output / "metrics.json").write_text(json.dumps(accuracy, indent=1), "utf-8")
    print(f"\nTook {time.time() - start:.0f} s. {args.output} holds examples.png and metrics.json.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory or hub id of a causal language model; default: train a small one")
    parser.add_argument("--data", help="a CSV or TSV file that --model judges")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--shots", type=int, nargs="+", default=[0, 1, 2, 4, 8], help="numbers of examples to try")
    parser.add_argument("--trials", type=int, default=200, help="judgements for each number of examples")
    parser.add_argument("--steps", type=int, default=1500, help="batches to train on")
    parser.add_argument("--output", type=Path, default=Path("runs/few_shot"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if bool(args.model) != bool(args.data):
        parser.error("--model and --data go together: the one judges the rows of the other")
    if min(*args.shots, args.trials - 1, args.steps - 1) < 0:
        parser.error("--shots must not be negative, --trials and --steps must be at least 1")
    return args


# A world of animals and foods -------------------------------------------------------------------------------------------


def episode(generator: np.random.Generator, count: int, held_out: bool) -> tuple[list[Row], list[str]]:
    """`count` rows of two kinds of things under two label words, and the label words.

    Each kind comes before any comes again, so that two rows tell what there is to tell. Of `held_out` episodes the last
    row is a pair of words that no other episode has.
    """
    kinds = generator.choice(list(KINDS), 2, replace=False)
    labels = [str(label) for label in generator.choice(LABELS, 2, replace=False)]
    which = generator.integers(0, 2, count)
    which[:2] = generator.permutation(2)[: len(which[:2])]
    rows = []
    for place, kind in enumerate(which):
        wanted = held_out and place == count - 1
        while True:
            a, n = generator.integers(len(ADJECTIVES)), generator.integers(len(KINDS[kinds[kind]]))
            if ((a + n) % HELD_OUT == 0) == wanted:
                break
        rows.append((f"{ADJECTIVES[a]} {KINDS[kinds[kind]][n]}", labels[kind]))
    return rows, labels


def written(rows: Sequence[Row]) -> str:
    """Rows as a prompt has them."""
    return SEPARATOR.join(TEMPLATE.format(text=text, label=label) for text, label in rows)


def trained(args: argparse.Namespace, generator: np.random.Generator) -> tfm.CausalLM:
    """A GPT of two blocks that has read many episodes."""
    base = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[PAD]"))
    base.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    base.enable_padding(pad_id=0, pad_token="[PAD]")
    backbone = tfm.models.gpt(
        num_layers=2, hidden_dim=64, num_heads=4, vocabulary_size=len(WORDS), max_sequence_length=64, dropout=0.0
    )
    model = tfm.CausalLM(backbone, tokenizer=tfm.data.Tokenizer(base, 64))
    schedule = keras.optimizers.schedules.CosineDecay(
        1e-5, args.steps, warmup_target=3e-3, warmup_steps=args.steps // 10
    )
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01))
    ids = {word: index for index, word in enumerate(WORDS)}

    def batch() -> np.ndarray:
        rows = [written(episode(generator, 9, held_out=False)[0]).split() for _ in range(64)]
        return np.array([[ids[word] for word in row] for row in rows], np.int32)

    print(f"model    GPT, 2 layers, width 64, {model.count_params():,} parameters, on {keras.backend.backend()}")
    print(f"trains   on {64 * args.steps:,} lines such as: {written(episode(generator, 3, held_out=False)[0])}\n")
    model.fit(np.concatenate([batch() for _ in range(args.steps)]), batch_size=64, verbose=1)
    return model


def of_episodes(model: tfm.CausalLM, args: argparse.Namespace, generator: np.random.Generator) -> dict[str, float]:
    """How often the trained model is right about things that it has not read about, by the number of examples."""
    accuracy = {}
    for shots in args.shots:
        right = 0
        for _ in range(args.trials):
            rows, labels = episode(generator, shots + 1, held_out=True)
            few = tfm.generation.FewShot(model, rows[:-1], labels, TEMPLATE, SEPARATOR)
            right += few.predict([rows[-1][0]]) == [rows[-1][1]]
        accuracy[str(shots)] = right / args.trials
        report(shots, accuracy[str(shots)])
    print(f"\nIt reads   {written(rows[:-1])}{SEPARATOR}{rows[-1][0]} ->")
    print(
        f"and writes {model.generate(written(rows[:-1]) + SEPARATOR + rows[-1][0] + ' ->', max_new_tokens=1).strip()}"
    )
    return accuracy


# A file of texts ---------------------------------------------------------------------------------------------------------


def of_file(model: tfm.CausalLM, args: argparse.Namespace, generator: np.random.Generator) -> dict[str, float]:
    """How often a model is right about rows of a file, by the number of examples from other rows of it."""
    try:
        texts, labels = tfm.data.read_table(args.data, args.text_column, args.label_column)
    except (OSError, ValueError) as error:
        print(f"few_shot.py: error: {error}", file=sys.stderr)
        sys.exit(2)
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
    by_class = {label: generator.permutation(np.flatnonzero(rows == label)) for label in sorted(set(labels))}
    order = generator.permutation(sorted(by_class))
    for place in range(count):
        candidates = by_class[order[place % len(order)]]
        yield int(next(i for i in candidates[place // len(order) :] if i != without))


# What is shown -----------------------------------------------------------------------------------------------------------


def report(shots: int, accuracy: float) -> None:
    """A line for a number of examples."""
    print(f"{shots:3d} example{' ' if shots == 1 else 's'}   {accuracy:6.1%} right")


def draw(accuracy: dict[str, float], path: Path) -> None:
    """Accuracy by the number of examples."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    axes.plot(range(len(accuracy)), list(accuracy.values()), "o-", color="#4878a8")
    axes.set_xticks(range(len(accuracy)), list(accuracy))
    axes.set(xlabel="examples in the prompt", ylabel="right", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
