"""Teach a pretrained GPT another kind of text by LoRA, and compare with training all of its weights.

    python examples/pretrain_gpt.py                        # first, a model to adapt: it reads source code
    python examples/adapt_gpt.py                           # then this: it learns the prose of docstrings
    python examples/adapt_gpt.py --data letters.txt --model path/to/llama --targets query value
    python examples/adapt_gpt.py --rank 16 --dora

The base model is read as it is, adapted by low-rank updates (its own weights frozen), and, once more, trained as a whole.
Each is scored in bits a byte on held-out text of the new kind and of the old (`--old-data`): a model trained as a whole
forgets, and an adapter can be taken off. A run writes into `--output`: adapter/, as PEFT reads it; merged.keras, with the
update folded in; forgetting.png and metrics.json.

Needs `pip install ".[visualize]"`. Runs on Keras's TensorFlow, JAX and PyTorch backends alike.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import _common
    import _source_text
    import keras
    from _common import positive
    from _source_text import Text

    import keras_tfm as tfm

SETTINGS = (
    *("model", "data", "old_data", "rank", "alpha", "targets", "dora", "context"),
    *("steps", "batch_size", "learning_rate", "full_learning_rate", "limit", "seed"),
)
BASE = Path("runs/pretrain_gpt/hugging_face")
OUTPUT = Path("runs/adapt_gpt")
Scores = dict[str, dict[str, float]]  # of a model, on new and on old text


def main() -> None:
    args, start = parse_arguments(), time.time()
    with quiet():
        keras.utils.set_random_seed(args.seed)
    try:
        import _plots

        _common.check_folders([args.output])
        model = load(args.model)
        new, old = (limited(_source_text.load(data), args.limit) for data in (args.data, args.old_data))
        texts = {"new text": held_out(new, model, args), "old text": held_out(old, model, args)}
        examples = blocks(new.train, model, args)
        tfm.training.add_lora(model, args.rank, alpha=args.alpha, targets=args.targets, dora=args.dora)
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        _common.fail(f'{error}: pip install "keras_tfm[visualize]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    describe(model, new, examples, args)

    scores: Scores = {}
    tfm.training.set_adapter(model, None)
    scores["base"] = score(model, texts, args)
    tfm.training.set_adapter(model, "default")
    print("The update alone:")
    history = train(model, examples, args.learning_rate, args)
    scores["LoRA"] = score(model, texts, args)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    tfm.training.save_adapter(model, args.output / "adapter")
    tfm.training.set_adapter(model, None)
    scores["LoRA, taken off"] = score(model, texts, args)
    tfm.training.set_adapter(model, "default")
    tfm.training.merge_lora(model)
    _common.save(model, args.output / "merged.keras")

    print("\nAll weights:")
    whole = load(args.model)
    train(whole, examples, args.full_learning_rate, args)
    scores["all weights"] = score(whole, texts, args)

    report(scores, trained, whole.count_params(), args.output / "adapter")
    results = {f"bits a byte of {text}, {name}": value for name, row in scores.items() for text, value in row.items()}
    results["share of weights that LoRA trains"] = trained / whole.count_params()
    _plots.forgetting(scores, args.output / "forgetting.png")
    rows = {"train": _source_text.size(new.train), "held out": _source_text.size(new.held_out)}
    seconds = time.time() - start
    _common.write_metrics(args, SETTINGS, rows, results, history, seconds)
    print(f"Took {seconds / 60:.1f} min. {args.output} holds adapter, merged.keras, forgetting.png and metrics.json.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, default=BASE, metavar="DIR", help="a Hugging Face directory (default: %(default)s)")
    add("--data", nargs="+", default=["docstrings"], metavar="FILE", help="docstrings (default), stdlib, or text files")
    add("--old-data", nargs="+", default=["stdlib"], metavar="FILE", help="text of the kind the base read (stdlib)")
    add("--rank", type=positive(int), default=8, metavar="N", help="of the updates (default: %(default)s)")
    add("--alpha", type=positive(float), default=16.0, metavar="X", help="their scale is X / rank (%(default)s)")
    targets = ["query", "key", "value", "output_projection", "feed_forward.*"]
    add("--targets", nargs="+", default=targets, metavar="PATTERN", help="of projections (default: all)")
    add("--dora", action="store_true", help="with magnitudes of their own (Liu et al. 2024)")
    add("--context", type=positive(int), default=128, metavar="N", help="tokens of a row (default: %(default)s)")
    add("--steps", type=positive(int), default=300, metavar="N", help="updates (default: %(default)s)")
    add("--batch-size", type=positive(int), default=16, metavar="N", help="rows (default: %(default)s)")
    add("--learning-rate", type=positive(float), default=5e-3, help="of LoRA, at its peak (default: %(default)s)")
    add("--full-learning-rate", type=positive(float), default=1e-3, help="of all weights (default: %(default)s)")
    add("--limit", type=positive(int), metavar="N", help="read N documents only")
    add("--seed", type=int, default=0, help="of the updates and the order of rows (default: %(default)s)")
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: %(default)s")
    return parser.parse_args()


def limited(text: Text, limit: int | None) -> Text:
    """The first documents."""
    return Text(text.name, text.train[:limit], text.held_out[:limit])


def load(directory: Path) -> tfm.CausalLM:
    """The base, with its tokenizer."""
    if not directory.is_dir():
        hint = ". Train it first: python examples/pretrain_gpt.py" if directory == BASE else ""
        raise FileNotFoundError(f"there is no directory {directory}{hint}")
    model = tfm.CausalLM.from_pretrained(directory)
    if model.tokenizer is None:
        raise ValueError(f"{directory} has no tokenizer")
    return model


def blocks(documents: list[str], model: tfm.CausalLM, args: argparse.Namespace) -> tfm.data.Examples:
    """All documents as one stream, cut into rows."""
    end = model.tokenizer.special_id("eos") is not None
    return tfm.data.causal_examples(documents, model.tokenizer, args.context, end_token=end)


def held_out(text: Text, model: tfm.CausalLM, args: argparse.Namespace) -> tuple[Any, float]:
    """Held-out rows, and bits a byte for a nat a token."""
    examples = blocks(text.held_out, model, args)
    tokens = sum(len(example["token_ids"]) for example in examples) + examples.cut_tokens
    return examples, _source_text.bits_a_byte(1.0, tokens, _source_text.size(text.held_out))


def train(model: tfm.CausalLM, examples: Any, rate: float, args: argparse.Namespace) -> dict:
    """`fit` on random rows, as many as `--steps` takes."""
    count = args.steps * args.batch_size
    order = np.random.default_rng(args.seed).permutation(np.arange(count) % len(examples))
    chosen = tfm.data.Examples(examples[i] for i in order)
    warmup = args.steps // 20
    schedule = tfm.training.WarmupSchedule(rate, warmup, args.steps, "cosine", end=rate / 10, first_step=1)
    model.compile(keras.optimizers.AdamW(schedule, weight_decay=0.01, global_clipnorm=1.0), metrics=None)
    return model.fit(chosen, batch_size=args.batch_size).history


def score(model: tfm.CausalLM, texts: dict[str, tuple[Any, float]], args: argparse.Namespace) -> dict[str, float]:
    """Bits a byte of each text."""
    if not model.compiled:
        model.compile(metrics=None)
    found = {}
    for name, (examples, scale) in texts.items():
        loss = model.evaluate(examples, batch_size=args.batch_size, verbose=0)
        found[name] = scale * float(np.ravel(loss)[0])
    return found


def describe(model: tfm.CausalLM, text: Text, examples: Any, args: argparse.Namespace) -> None:
    print(f"""
model    {args.model}: {model.count_params():,} parameters with the updates, on {keras.backend.backend()}
data     {text.name}: {_source_text.size(text.train):,} bytes, {len(examples):,} rows of {args.context} tokens
LoRA     rank {args.rank}, alpha {args.alpha:g}, of {", ".join(args.targets)}
fit      steps: {args.steps}, batch: {args.batch_size}
""")


def report(scores: Scores, trained: int, every: int, adapter: Path) -> None:
    """What each model needs for a byte."""
    print(f"\n{'bits a byte':<18}" + "".join(f"{text:>12}" for text in next(iter(scores.values()))))
    for name, row in scores.items():
        print(f"{name:<18}" + "".join(f"{value:>12.3f}" for value in row.values()))
    size = sum(path.stat().st_size for path in adapter.iterdir())
    print(f"\nLoRA trained {trained:,} of {every:,} weights; the adapter has {size / 1024:,.0f} KiB.")


if __name__ == "__main__":
    main()
