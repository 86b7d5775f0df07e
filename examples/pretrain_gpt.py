"""Pretrain a small GPT from scratch, and let it write.

    python examples/pretrain_gpt.py                                # on the source of Python's standard library
    python examples/pretrain_gpt.py --data book.txt --steps 3000   # on text of your own
    python examples/pretrain_gpt.py --write "def parse("           # go on from a prompt with the model in --output
    python examples/pretrain_gpt.py --data shakespeare.txt --tokenizer characters --context 64 --batch-size 12 --steps 2000

The model is Llama-like: rotary positions, RMS norms, gated feed-forward layers, no biases. How well it does is the number
of bits that it needs for a byte of held-out text, which can be compared whatever the tokenizer: with xz, for one, by itself
and where it may look up all the text to train on. A run writes into `--output`: model.keras, for
`keras.models.load_model` after `import keras_tfm`; hugging_face/, for `transformers`; curves.png and metrics.json.

Needs `pip install ".[visualize]"`. Runs on Keras's TensorFlow, JAX and PyTorch backends alike.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
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
    *("data", "tokenizer", "vocabulary_size", "layers", "width", "context"),
    *("steps", "batch_size", "learning_rate", "limit", "seed"),
)
HEAD_WIDTH = 32  # of an attention head
LOOKS = 5  # how often in a run the held-out text is looked at, and something is written
OUTPUT = Path("runs/pretrain_gpt")


def main() -> None:
    args, start = parse_arguments(), time.time()
    if args.write is not None:
        write(args)
        return
    with quiet():
        keras.utils.set_random_seed(args.seed)
    try:
        import _plots

        text = _source_text.load(args.data)
        if args.limit:
            text = Text(text.name, text.train[: args.limit], text.held_out[: args.limit])
        _common.check_folders([args.output])
        tokenizer = make_tokenizer(text, args)
        examples = blocks(text.train, tokenizer, args.context)
        held_out = blocks(text.held_out, tokenizer, args.context)
        model = make_model(tokenizer, args)
        args.output.mkdir(parents=True, exist_ok=True)
    except ImportError as error:
        _common.fail(f'{error}: pip install "keras_tfm[visualize]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    describe(model, text, examples, args)
    baselines = _source_text.xz(text)
    print("bits a byte: " + ", ".join(f"{name} {bits:.2f}" for name, bits in baselines.items()) + "\n")

    batches = _common.BatchLosses()
    callbacks = [batches, Writes(args.prompt, args.sample_tokens)] if args.sample_tokens else [batches]
    history = train(model, examples, held_out, callbacks, args)

    # In the held-out blocks, each token but a block's first is predicted.
    tokens = sum(len(example["token_ids"]) for example in held_out) + held_out.cut_tokens
    bits = [_source_text.bits_a_byte(loss, tokens, _source_text.size(text.held_out)) for loss in history["val_loss"]]
    scale = bits[-1] / history["val_loss"][-1]
    results = {f"bits a byte, {name}": value for name, value in {"the model": bits[-1], **baselines}.items()}
    results["loss a token, the model"] = history["val_loss"][-1]
    _plots.lines(
        {"the model": bits, **{name: [value] * len(bits) for name, value in baselines.items()}},
        args.output / "curves.png",
        title=f"{text.name}: what a byte costs",
        label="bits a byte",
        batches=[loss * scale for loss in batches.losses],
    )
    _common.save(model, args.output / "model.keras")
    model.save_pretrained(args.output / "hugging_face")
    seconds = time.time() - start
    rows = {"train": _source_text.size(text.train), "held out": _source_text.size(text.held_out)}
    _common.write_metrics(args, SETTINGS, rows, results, history, seconds)
    print(f"\nheld out: {bits[-1]:.2f} bits a byte, {history['val_loss'][-1]:.3f} nats a token")
    print(f"Took {seconds / 60:.1f} min. {args.output} holds model.keras, hugging_face, curves.png and metrics.json.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", nargs="+", default=["stdlib"], metavar="FILE", help="stdlib (default), docstrings, or text files")
    add("--tokenizer", choices=["bpe", "characters"], default="bpe", help="bpe, of bytes (default), or characters")
    add("--vocabulary-size", type=positive(int), default=2048, metavar="N", help="of bpe (default: %(default)s)")
    add("--layers", type=positive(int), default=4, metavar="N", help="default: %(default)s")
    add("--width", type=positive(int), default=192, metavar="N", help=f"a multiple of {HEAD_WIDTH} (%(default)s)")
    add("--context", type=positive(int), default=128, metavar="N", help="tokens of a row (default: %(default)s)")
    add("--steps", type=positive(int), default=1000, metavar="N", help="updates (default: %(default)s)")
    add("--batch-size", type=positive(int), default=16, metavar="N", help="rows (default: %(default)s)")
    add("--learning-rate", type=positive(float), default=2e-3, help="at its peak (default: %(default)s)")
    add("--limit", type=positive(int), metavar="N", help="read N documents only")
    add("--prompt", default="def ", metavar="TEXT", help="what it goes on from while it trains (default: %(default)r)")
    add("--sample-tokens", type=int, default=60, metavar="N", help="how far; 0 for not at all (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the weights and the order of rows (default: %(default)s)")
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: %(default)s")
    add("--write", metavar="PROMPT", help="go on from this with the model in --output")
    args = parser.parse_args()
    if args.width % HEAD_WIDTH:
        parser.error(f"--width must be a multiple of {HEAD_WIDTH}; got {args.width}")
    if args.steps < LOOKS:
        parser.error(f"--steps must be at least {LOOKS}; got {args.steps}")
    return args


def make_tokenizer(text: Text, args: argparse.Namespace) -> tfm.data.Tokenizer:
    """One that knows every text of its kind."""
    if args.tokenizer == "characters":
        return _source_text.characters(text)
    return tfm.data.train_tokenizer(text.train, args.vocabulary_size, kind="byte_bpe")


def blocks(documents: list[str], tokenizer: tfm.data.Tokenizer, context: int) -> tfm.data.Examples:
    """All documents as one stream, cut into rows."""
    return tfm.data.causal_examples(documents, tokenizer, context, end_token=tokenizer.special_id("eos") is not None)


def make_model(tokenizer: tfm.data.Tokenizer, args: argparse.Namespace) -> tfm.CausalLM:
    """A Llama, only small; without dropout, for no row is seen often."""
    backbone = tfm.models.gpt(
        num_layers=args.layers,
        hidden_dim=args.width,
        num_heads=args.width // HEAD_WIDTH,
        intermediate_dim=8 * args.width // 3 // 32 * 32,
        vocabulary_size=tokenizer.vocabulary_size,
        max_sequence_length=max(args.context, 512),
        position="rotary",
        norm="rms_norm",
        gated=True,
        activation="silu",
        use_bias=False,
        dropout=0.0,
    )
    return tfm.CausalLM(backbone, tokenizer=tokenizer)


def train(model: tfm.CausalLM, examples: Any, held_out: Any, callbacks: list, args: argparse.Namespace) -> dict:
    """`fit`, as long as `--steps` says, looking at the held-out text a few times."""
    schedule = tfm.training.WarmupSchedule(
        args.learning_rate, args.steps // 20, args.steps, "cosine", end=args.learning_rate / 10, first_step=1
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.1, beta_2=0.99, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["scale", "embeddings"])
    model.compile(optimizer, metrics=None)
    data = model.dataset(examples, batch_size=args.batch_size, shuffle=True, seed=args.seed)
    return model.fit(
        endless(data),
        steps_per_epoch=args.steps // LOOKS,
        epochs=LOOKS,
        validation_data=model.dataset(held_out, batch_size=args.batch_size),
        callbacks=callbacks,
        shuffle=False,  # the data does so itself
    ).history


def endless(data: Any) -> Iterator[Any]:
    """Epoch after epoch, each in an order of its own."""
    while True:
        for index in range(len(data)):
            yield data[index]
        data.on_epoch_end()


class Writes(keras.callbacks.Callback):
    """Shows how the model goes on from a prompt."""

    def __init__(self, prompt: str, tokens: int):
        super().__init__()
        self.prompt, self.tokens = prompt, tokens

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Write, the same draws each time."""
        text = self.model.generate(self.prompt, self.tokens, temperature=0.8, top_p=0.95, seed=0)
        print("\n    " + (self.prompt + text).replace("\n", "\n    ") + "\n")


def describe(model: tfm.CausalLM, text: Text, examples: Any, args: argparse.Namespace) -> None:
    tokens, updates = len(examples) * args.context, args.steps * args.batch_size * args.context
    print(f"""
model    {args.layers} layers, width {args.width}, {model.count_params():,} parameters, on {keras.backend.backend()}
data     {text.name}: {_source_text.size(text.train):,} bytes, {tokens:,} tokens of {model.vocabulary_size:,} kinds
fit      steps: {args.steps}, batch: {args.batch_size} rows of {args.context} tokens, which is {updates / tokens:.1f} epochs
""")


def write(args: argparse.Namespace) -> None:
    """Print a text piece by piece."""
    path = args.output / "model.keras"
    if not path.is_file():
        _common.fail(f"there is no {path}. Train first: python {sys.argv[0]} --output {args.output}")
    model = keras.models.load_model(path)
    room = model.backbone.config.max_sequence_length - len(model.tokenizer.encode([args.write])[0].ids)
    print(args.write, end="", flush=True)
    for piece in model.stream(args.write, int(np.clip(room, 1, 200)), temperature=0.8, top_p=0.95):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
