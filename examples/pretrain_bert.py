"""Pretrain a small BERT from scratch by masked words, and see what that is worth where labels are few.

    python examples/pretrain_bert.py                                   # on docstrings of Python's standard library
    python examples/pretrain_bert.py --epochs 20 --layers 6 --width 256 --resume     # for longer; interrupted, go on
    python examples/pretrain_bert.py --text *.txt --tags train.txt --validation-file testa.txt --labels 200 1000

It reads text without labels, of which some words are hidden, and learns to say which. Then it is fine-tuned to tag names of
Python's code in rows of words, of which only a few hundred have tags, and so is the same model with new weights. Whole
packages of the library are held out, from both stages. `--text` takes files with a text a line, `--tags` and
`--validation-file` files of CoNLL-2003's format.

The model is a BERT in a later fashion: rotary positions, and norms in front of the layers, with which a small one learns
much faster. A run writes into `--output`: pretrained.keras and tagger.keras, which `keras.models.load_model` reads after
`import keras_tfm`; curves.png, labels.png and metrics.json.

Needs `pip install ".[metrics,visualize]"`. Runs on Keras's TensorFlow, JAX and PyTorch backends alike.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Any

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

SETTINGS = (
    *("text", "tags", "validation_file", "labels", "vocabulary_size", "layers", "width", "length"),
    *("epochs", "batch_size", "learning_rate", "fine_tune_steps", "fine_tune_rate", "seed"),
)
HEAD_WIDTH = 32  # of an attention head
HELD_OUT = 0.05  # of the text without labels
SENTENCES = ("Return the [MASK] of a file .", "Raise an [MASK] if the key is not found .", "The default is [MASK] .")


def main() -> None:
    args, start = parse_arguments(), time.time()
    with quiet():
        keras.utils.set_random_seed(args.seed)
    try:
        import _plots
        from seqeval.metrics import f1_score

        data = _tagged_text.load(args.tags, args.validation_file)
        train, held_out = split(texts_of(args.text) if args.text else data.untagged)
        _common.check_folders([args.output])
        tokenizer = trained_tokenizer(train, args)
        model = tfm.MaskedLM(
            backbone(tokenizer, args),
            tokenizer=tokenizer,
            masking={"rate": 0.2, "whole_words": True},
            name="pretrained",
        )
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        _common.fail(f'{error} All that this example needs: pip install "keras_tfm[metrics,visualize]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    batches = model.dataset(train, batch_size=args.batch_size, pack=args.length, shuffle=True, seed=args.seed)
    describe(model, train, held_out, batches, data, args)

    # The first stage: which words were hidden?
    losses = _common.BatchLosses()
    callbacks: list[Any] = [losses, Guesses()]
    if args.resume:
        callbacks.append(tfm.training.Resume(args.output / "checkpoints"))
    model.compile(optimizer(args.learning_rate, args.epochs * len(batches)))
    history = model.fit(
        batches,
        validation_data=model.dataset(held_out, batch_size=args.batch_size, pack=args.length),
        epochs=args.epochs,
        callbacks=callbacks,
    ).history
    pretrained = time.time() - start

    # The second: with the weights that it learned, and with new ones.
    scores: dict[str, list[float]] = {"new weights": [], "pretrained": []}
    results = {"loss of a hidden word, held out": history["val_loss"][-1]}
    for count in args.labels:
        few = _tagged_text.limited(data, count, args.seed)
        for name in scores:
            tagger, predicted = fine_tuned(few, tokenizer, model if name == "pretrained" else None, args)
            scores[name].append(float(f1_score(few.test[1], predicted, zero_division=0)))
            results[f"F1 with {count:,} tagged rows, {name}"] = scores[name][-1]
            print(f"{count:>6,} tagged rows, {name:<11}  F1 {scores[name][-1]:.1%}")
        table = float(f1_score(few.test[1], _tagged_text.lookup_table(few), zero_division=0))
        results[f"F1 with {count:,} tagged rows, lookup table"] = table

    _common.save(model, args.output / "pretrained.keras")
    _common.save(tagger, args.output / "tagger.keras")
    _plots.lines(
        {"held out": history["val_loss"]},
        args.output / "curves.png",
        title="Loss of hidden words",
        label="nats a word piece",
        batches=losses.losses,
    )
    bars = {
        name: {f"{count:,} rows": score for count, score in zip(args.labels, found, strict=True)}
        for name, found in scores.items()
    }
    _plots.bars(bars, "F1 of held-out entities, by rows with tags", args.output / "labels.png")
    seconds = time.time() - start
    rows = {"texts without tags": len(train), "rows held out": len(data.test[0])}
    results["minutes of pretraining"] = pretrained / 60
    _common.write_metrics(args, SETTINGS, rows, results, history, seconds)
    files = "pretrained.keras, tagger.keras, curves.png, labels.png and metrics.json"
    print(f"\nTook {seconds / 60:.1f} minutes. {args.output} holds {files}.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", nargs="+", metavar="FILE", help="to pretrain on, a text a line (default: the library's docstrings)")
    add("--tags", metavar="FILE", help="words and tags in CoNLL-2003's format (default: the library's docstrings)")
    add("--validation-file", metavar="FILE", help="rows to hold out (default: a quarter of --tags's)")
    add("--labels", nargs="+", type=positive(int), default=[500, 2000], metavar="N", help="rows with tags (500 2000)")
    add("--vocabulary-size", type=positive(int), default=2048, metavar="N", help="default: %(default)s")
    add("--layers", type=positive(int), default=4, metavar="N", help="default: %(default)s")
    add("--width", type=positive(int), default=128, metavar="N", help=f"a multiple of {HEAD_WIDTH} (%(default)s)")
    add("--length", type=positive(int), default=64, metavar="N", help="tokens of a row at most (default: %(default)s)")
    add("--epochs", type=positive(int), default=16, metavar="N", help="of pretraining (default: %(default)s)")
    add("--batch-size", type=positive(int), default=16, metavar="N", help="rows (default: %(default)s)")
    add(
        "--learning-rate", type=positive(float), default=2e-3, help="of pretraining, at its peak (default: %(default)s)"
    )
    add("--fine-tune-steps", type=positive(int), default=750, metavar="N", help="updates (default: %(default)s)")
    add("--fine-tune-rate", type=positive(float), default=1e-3, help="at its peak (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, orders and masks (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/pretrain_bert"), metavar="DIR", help="default: %(default)s")
    add("--resume", action="store_true", help="save the pretraining as it goes, and go on where it was interrupted")
    args = parser.parse_args()
    if args.width % HEAD_WIDTH:
        parser.error(f"--width must be a multiple of {HEAD_WIDTH}; got {args.width}")
    if args.tags and not args.text:
        parser.error("--tags goes with --text: the library's docstrings are not of its kind")
    if args.text and not args.tags:
        parser.error("--text goes with --tags, of rows of its kind")
    if args.validation_file and not args.tags:
        parser.error("--validation-file goes with --tags; the library's docstrings have held-out rows of their own")
    return args


def texts_of(files: list[str]) -> list[str]:
    """The lines of files that are not empty."""
    texts: list[str] = []
    for name in files:
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no file {name!r}; --text takes files with a text a line")
        try:
            texts += [line.strip() for line in Path(name).read_text("utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is not UTF-8 text: {error}") from None
    return texts


def split(texts: list[str]) -> tuple[list[str], list[str]]:
    """Some texts, held out."""
    cut = math.ceil(HELD_OUT * len(texts))
    if len(texts) < 2:
        raise ValueError(f"{len(texts)} texts are too few to learn from.")
    order = np.random.default_rng(_tagged_text.SPLIT_SEED).permutation(len(texts))
    return [texts[i] for i in sorted(order[cut:])], [texts[i] for i in sorted(order[:cut])]


def trained_tokenizer(texts: list[str], args: argparse.Namespace) -> tfm.data.Tokenizer:
    """Word pieces of the texts; where a run goes on those that it began with, for training finds others each time."""
    folder = args.output / "tokenizer"
    if args.resume and folder.exists():
        return tfm.data.Tokenizer.from_directory(folder, args.length)
    tokenizer = tfm.data.train_tokenizer(texts, args.vocabulary_size, max_length=args.length)
    if args.resume:
        tokenizer.save(folder)
    return tokenizer


def backbone(tokenizer: tfm.data.Tokenizer, args: argparse.Namespace) -> tfm.models.Backbone:
    """A BERT with norms in front of its layers, and rotary positions."""
    return tfm.models.bert(
        num_layers=args.layers,
        hidden_dim=args.width,
        num_heads=args.width // HEAD_WIDTH,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=args.length,
        norm_placement="pre",
        position="rotary",
        pooler=False,
    )


def optimizer(learning_rate: float, steps: int) -> keras.optimizers.AdamW:
    """AdamW, warmed up and let down; norms, biases and embeddings do not decay."""
    schedule = tfm.training.WarmupSchedule(
        learning_rate, steps // 20, steps, "cosine", end=learning_rate / 10, first_step=1
    )
    found = keras.optimizers.AdamW(schedule, weight_decay=0.05, beta_2=0.98, global_clipnorm=1.0)
    found.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embeddings"])
    return found


def fine_tuned(
    data: TaggedText, tokenizer: tfm.data.Tokenizer, pretrained: tfm.MaskedLM | None, args: argparse.Namespace
) -> tuple[tfm.TokenClassifier, list[list[str]]]:
    """A tagger, with the weights of `pretrained` or new ones, and its tags for the held-out rows."""
    keras.utils.set_random_seed(args.seed)
    own = backbone(tokenizer, args)
    if pretrained is not None:
        own.set_weights(pretrained.backbone.get_weights())
    model = tfm.TokenClassifier(own, labels=data.labels, tokenizer=tokenizer, name="tagger")
    scores = tfm.training.EntityScores(*data.test, max_length=args.length)
    epochs = max(1, round(args.fine_tune_steps * args.batch_size / len(data.train[0])))
    model.compile(_common.adamw(args.fine_tune_rate, epochs * math.ceil(len(data.train[0]) / args.batch_size)))
    model.fit(*data.train, batch_size=args.batch_size, epochs=epochs, verbose=0)
    return model, scores.predictions(model)


class Guesses(keras.callbacks.Callback):
    """Shows what the model would put for a hidden word."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """The three likeliest pieces for each sentence."""
        model = self.model
        tokenizer = model.tokenizer
        logits = keras.ops.convert_to_numpy(model(list(SENTENCES)))
        ids = tokenizer(list(SENTENCES))["token_ids"]
        print()
        for sentence, row, tokens in zip(SENTENCES, logits, ids, strict=True):
            (place, *_) = np.flatnonzero(tokens == tokenizer.special_id("mask"))
            likely = [tokenizer.decode([token]) for token in np.argsort(-row[place])[:3]]
            print(f"    {sentence.replace('[MASK]', '___'):<45} {', '.join(likely)}")


def describe(
    model: tfm.MaskedLM, train: list[str], held_out: list[str], batches: Any, data: TaggedText, args: argparse.Namespace
) -> None:
    config, backend = model.backbone.config, keras.backend.backend()
    words, size = sum(len(text.split()) for text in train), f"{args.batch_size} x {args.length}"
    counts = " and ".join(f"{count:,}" for count in args.labels)
    print(f"""
model     BERT, {config.num_layers} layers, width {config.hidden_dim}, {model.count_params():,} parameters, on {backend}
text      {len(train):,} texts, {words:,} words, to pretrain on; {len(held_out):,} held out
pretrain  {args.epochs} epochs of {len(batches):,} batches of {size} tokens, of which a fifth is hidden
tagged    {data.name}: {counts} rows to learn from, {len(data.test[0]):,} held out
""")


if __name__ == "__main__":
    main()
