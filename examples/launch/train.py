"""Train a GPT on all devices of all hosts, and go on where the last run was interrupted; the launch files start this.

    python train.py --text book.txt --output run                        # the devices of this machine
    srun python train.py --text book.txt --output /shared/run           # of all hosts; see slurm.sh and jobset_*.yaml
    XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu python train.py --text book.txt --data 2 --model 4
    KERAS_BACKEND=torch torchrun --nproc-per-node 8 train.py --text book.txt --output run     # a process for each GPU

KERAS_BACKEND=jax, or torch, where every process has the whole model. `--output` must be the same place for all hosts.
Which mesh to take, and what fits: `keras-tfm plan`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

import keras_tfm as tfm
from keras_tfm import distribution


def main() -> None:
    args = parse_arguments()
    is_first, devices = True, 1
    if distribution.processes() is not None or "TPU_WORKER_HOSTNAMES" in os.environ:
        found = distribution.initialize()
        print(f"started by {found.launcher}", flush=True)
        is_first, devices = found.index == 0, found.count
    keras.utils.set_random_seed(args.seed)
    documents = [Path(name).read_text("utf-8") for name in args.text]
    tokenizer = tfm.data.train_tokenizer(documents, args.vocabulary_size, kind="byte_bpe")
    examples = tfm.data.causal_examples(documents, tokenizer, args.context)
    scope = contextlib.nullcontext()
    if keras.backend.backend() == "jax":
        devices = len(keras.distribution.list_devices())
        mesh = distribution.mesh(data=args.data, model=args.model)
        scope = distribution.tensor_parallel(mesh, rest="data" if args.fsdp else None).scope()
    with scope:
        backbone = tfm.models.gpt(
            num_layers=args.layers,
            hidden_dim=args.width,
            num_heads=args.heads,
            vocabulary_size=args.vocabulary_size,
            max_sequence_length=args.context,
        )
        model = tfm.CausalLM(backbone, tokenizer=tokenizer)
        model.compile(keras.optimizers.AdamW(args.learning_rate, weight_decay=0.1, global_clipnorm=1.0), metrics=None)
        if is_first:
            print(f"{model.count_params():,} parameters, {len(examples):,} rows, {devices} devices", flush=True)
        model.fit(
            model.dataset(examples, batch_size=args.batch_size, shuffle=True, seed=args.seed),
            epochs=args.epochs,
            verbose=2 if is_first else 0,
            callbacks=[
                tfm.training.Resume(args.output / "checkpoints", every_steps=args.save_every, every_minutes=None)
            ],
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", nargs="+", required=True, metavar="FILE", help="UTF-8 text, which all hosts can read")
    add("--output", type=Path, required=True, metavar="DIR", help="for checkpoints, the same for all hosts")
    add("--data", type=int, default=-1, metavar="N", help="devices that share a batch (default: all there are)")
    add("--model", type=int, default=1, metavar="N", help="devices that share each layer (default: %(default)s)")
    add("--fsdp", action="store_true", help="split weights over the former too")
    add("--layers", type=int, default=4, metavar="N", help="default: %(default)s")
    add("--width", type=int, default=256, metavar="N", help="default: %(default)s")
    add("--heads", type=int, default=8, metavar="N", help="default: %(default)s")
    add("--vocabulary-size", type=int, default=4096, metavar="N", help="default: %(default)s")
    add("--context", type=int, default=256, metavar="N", help="tokens of a row (default: %(default)s)")
    add("--batch-size", type=int, default=64, metavar="N", help="rows, of all devices together (default: %(default)s)")
    add("--learning-rate", type=float, default=6e-4, help="default: %(default)s")
    add("--epochs", type=int, default=1, metavar="N", help="default: %(default)s")
    add("--save-every", type=int, default=200, metavar="STEPS", help="default: %(default)s")
    add("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    if keras.backend.backend() != "jax" and (args.data != -1 or args.model != 1 or args.fsdp):
        parser.error("--data, --model and --fsdp lay weights over a mesh, which JAX does: set KERAS_BACKEND=jax")
    return args


if __name__ == "__main__":
    main()
