"""Kill a training run, again and again, and lay its loss over that of a run that was left alone.

    python examples/survive_kills.py
    python examples/survive_kills.py --kills 10 --steps 600

A small GPT learns the docstrings of Python's standard library in a process of its own, with `keras_tfm.training.Resume`.
The process is killed (SIGKILL: no time for anything) at random batches and started again, until it is through; another one
trains undisturbed. A run writes into `--output`: curves.png, both losses and where the kills were, and metrics.json.

Needs `pip install ".[visualize]"`. Runs on Keras's TensorFlow, JAX and PyTorch backends alike.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from _quiet import quiet

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with quiet():
    import _common
    import keras
    from _common import positive
    from _stdlib_docstrings import docstrings

    import keras_tfm as tfm

SETTINGS = ("kills", "steps", "save_every", "batch_size", "seed")
EPOCHS = 3
LENGTH = 32


def main() -> None:
    args, start = parse_arguments(), time.time()
    if args.child:
        train(args)
        return
    try:
        import _plots

        _common.check_folders([args.output])
        for name in ("killed", "alone"):
            if (args.output / name).exists():
                raise ValueError(f"{args.output / name} is there already: take another --output, or remove it")
            (args.output / name).mkdir(parents=True)
    except ImportError as error:
        _common.fail(f'{error}: pip install "keras_tfm[visualize]"')
    except (ValueError, OSError) as error:
        _common.fail(error)
    kills = []
    draws = np.random.default_rng(args.seed)
    targets = sorted(draws.choice(np.arange(args.save_every + 1, args.steps), args.kills, replace=False).tolist())
    for target in targets:
        kills.append(until(args, target))
        print(f"killed after batch {kills[-1]}", flush=True)
    until(args, None)
    print("through; now one that is left alone", flush=True)
    subprocess.run(command(args, args.output / "alone"), check=True)

    losses = {name: read(args.output / name) for name in ("killed", "alone")}
    ours, theirs = (np.load(args.output / name / "weights.npz") for name in losses)
    equal = float(np.mean([np.array_equal(ours[name], theirs[name]) for name in theirs]))
    apart = max(abs(losses["killed"][step] - loss) for step, loss in losses["alone"].items())
    results = {"largest difference of the losses": apart, "weights that are equal": equal}
    _plots.laid_over(losses, kills, args.output / "curves.png")
    rows = {"batches": len(losses["alone"]), "kills": len(kills)}
    history = {name: list(found.values()) for name, found in losses.items()}
    _common.write_metrics(args, SETTINGS, rows, results, history, time.time() - start)
    print(f"\n{len(kills)} kills; largest difference of the losses {apart:g}", end="; ")
    print(f"weights that are equal, bit for bit: {equal:.0%}")
    print(f"Took {(time.time() - start) / 60:.1f} minutes. {args.output} holds curves.png and metrics.json.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=positive(int), default=5, metavar="N", help="default: %(default)s")
    add("--steps", type=positive(int), default=300, metavar="N", help=f"batches, of {EPOCHS} epochs (%(default)s)")
    add("--save-every", type=positive(int), default=10, metavar="N", help="batches (default: %(default)s)")
    add("--batch-size", type=positive(int), default=8, metavar="N", help="rows (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the weights, and of where it is killed (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/survive_kills"), metavar="DIR", help="default: %(default)s")
    add("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps % EPOCHS or args.steps < EPOCHS * 2:
        parser.error(f"--steps must be a multiple of {EPOCHS}, at least {EPOCHS * 2}; got {args.steps}")
    if args.kills > args.steps - args.save_every - 1:
        parser.error(f"--kills must be fewer than the batches behind the first save; got {args.kills}")
    return args


def command(args: argparse.Namespace, folder: Path) -> list[str]:
    """The program that trains in this folder."""
    options = [
        "--steps",
        args.steps,
        "--save-every",
        args.save_every,
        "--batch-size",
        args.batch_size,
        "--seed",
        args.seed,
    ]
    return [sys.executable, __file__, "--child", str(folder), *map(str, options)]


def until(args: argparse.Namespace, target: int | None) -> int:
    """Train until this batch is over, then kill the process; without a target, to the end."""
    folder = args.output / "killed"
    process = subprocess.Popen(command(args, folder))
    try:
        while target is not None and process.poll() is None:
            done = max(read(folder), default=0)
            if done >= target:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return max(read(folder))
            time.sleep(0.005)
        if process.wait() != 0:
            raise SystemExit(f"the training process ended with status {process.returncode}")
        return max(read(folder))
    finally:
        process.kill()


def read(folder: Path) -> dict[int, float]:
    """The loss after each batch, the last that was written where a batch was trained on twice."""
    found = {}
    path = folder / "losses.jsonl"
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            step, loss = json.loads(line)
        except ValueError:
            continue  # the process was killed as it wrote
        found[step] = loss
    return dict(sorted(found.items()))


def train(args: argparse.Namespace) -> None:
    """What the processes do."""
    with quiet():
        keras.utils.set_random_seed(args.seed)
    texts = docstrings()[0]
    tokenizer = tfm.data.train_tokenizer(texts[:2000], 512, kind="byte_bpe")
    examples = tfm.data.causal_examples(texts[:2000], tokenizer, LENGTH)
    rows = tfm.data.Examples(list(examples)[: args.steps // EPOCHS * args.batch_size])
    backbone = tfm.models.gpt(
        num_layers=2, hidden_dim=64, num_heads=2, vocabulary_size=512, max_sequence_length=LENGTH, dropout=0.1
    )
    model = tfm.CausalLM(backbone, tokenizer=tokenizer)
    model.compile(keras.optimizers.AdamW(1e-3), metrics=None)
    model.fit(
        rows,
        batch_size=args.batch_size,
        epochs=EPOCHS,
        verbose=0,
        callbacks=[
            Losses(args.child / "losses.jsonl"),
            tfm.training.Resume(args.child / "checkpoints", every_steps=args.save_every, every_minutes=None),
        ],
    )
    np.savez(args.child / "weights.npz", *(keras.ops.convert_to_numpy(variable) for variable in model.weights))


class Losses(keras.callbacks.Callback):
    """Writes the loss after each batch that was trained on, at once."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.step = path, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Where is it?"""
        self.step = int(self.model.optimizer.iterations)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """A batch that a resumed run only reads leaves the optimizer as it was."""
        step = int(self.model.optimizer.iterations)
        if step > self.step:
            self.step = step
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([step, float(logs["loss"])]) + "\n")


if __name__ == "__main__":
    main()
