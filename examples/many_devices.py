"""Train the same small GPT on one device and on many, in every way that keras_tfm.distribution has, and compare.

    python examples/many_devices.py
    python examples/many_devices.py --devices real      # GPUs or TPU cores; without it, they are taken if there are several

A GPT learns the docstrings of Python's standard library on one device; then by data parallelism, FSDP, tensor parallelism,
and the latter beside the other two, from the same weights and batches. Without several accelerators, JAX simulates 8
devices on the CPU. A run writes metrics.json into `--output` and prints the losses beside each other, how far apart the
weights are at the end, what a device holds, the collectives of a block as they stand in the compiled program, and where
each weight lies.

Runs on Keras's JAX backend, the one with `keras.distribution`.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from _quiet import quiet

SIMULATED = 8
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "jax")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # of the CPU alone; read once, by JAX
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={SIMULATED}"
if "simulated" in sys.argv:
    os.environ["JAX_PLATFORMS"] = "cpu"
with quiet():
    import _common
    import keras
    from _common import positive
    from _stdlib_docstrings import docstrings

    import keras_tfm as tfm
    from keras_tfm import distribution

SETTINGS = ("devices", "steps", "batch_size", "length", "hidden_dim", "num_layers", "seed")
HEADS = 8
VOCABULARY = 512
WAYS = ("data parallel", "fsdp", "tensor parallel", "data x tensor parallel", "fsdp x tensor parallel")
SORTS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def main() -> None:
    args, start = parse_arguments(), time.time()
    try:
        _common.check_folders([args.output])
        if keras.backend.backend() != "jax":
            raise ValueError(f"keras.distribution is JAX's: set KERAS_BACKEND=jax (it is {keras.backend.backend()})")
        devices = found_devices(args)
        if args.batch_size % len(devices):
            raise ValueError(f"--batch-size {args.batch_size} is to be shared by {len(devices)} devices")
    except (ValueError, OSError) as error:
        _common.fail(error)
    kind = "simulated devices" if args.devices == "simulated" else devices[0].partition(":")[0] + "s"
    print(f"{len(devices)} {kind}", flush=True)
    rows, tokenizer = read(args)

    alone, losses, seconds = trained(args, rows, tokenizer)
    expected = [np.asarray(weight) for weight in alone.weights]
    results = {"loss at the end, one device": losses[-1]}
    history, report = {"one device": losses}, ""
    table = [("", "loss: first", "last", "weights apart", "bytes a device", "ms a step", "collectives of a block")]
    table.append(("one device", f"{losses[0]:.4f}", f"{losses[-1]:.4f}", "", f"{held(alone):,}", f"{seconds:.0f}", ""))
    for name, layouts in ways(devices).items():
        if name not in args.ways:
            continue
        with layouts.scope():
            model, losses, seconds = trained(args, rows, tokenizer)
            apart = max(float(np.abs(np.asarray(w) - e).max()) for w, e in zip(model.weights, expected, strict=True))
            counts = block_collectives(args)
            if name == "data x tensor parallel":
                lines = str(distribution.layout_report(model)).splitlines()
                report = "\n".join(line for line in lines if not line.startswith("adam"))  # they lie as the weights do
            size = held(model)
        said = ", ".join(f"{count} {sort}" for sort, count in sorted(counts.items())) or "none but the gradients'"
        table.append(
            (name, f"{losses[0]:.4f}", f"{losses[-1]:.4f}", f"{apart:.1e}", f"{size:,}", f"{seconds:.0f}", said)
        )
        history[name] = losses
        results |= {f"loss at the end, {name}": losses[-1], f"weights apart, {name}": apart}
        results[f"share of the bytes on a device, {name}"] = size / held(alone)
        results |= {f"collectives of a block, {name}: {sort}": count for sort, count in counts.items()}
        print(f"{name}: done", flush=True)
    print(f"\n{report}\n" if report else "")
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    args.output.mkdir(parents=True, exist_ok=True)
    counted = {"batches": len(history["one device"]), "devices": len(devices)}
    _common.write_metrics(args, SETTINGS, counted, results, history, time.time() - start)
    print(f"Took {(time.time() - start) / 60:.1f} minutes. {args.output} holds metrics.json.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--devices", choices=("auto", "real", "simulated"), default="auto", help="auto: real ones if there are several")
    add(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="NAME", help=f"default: all of {', '.join(WAYS)}"
    )
    add("--steps", type=positive(int), default=10, metavar="N", help="batches (default: %(default)s)")
    add("--batch-size", type=positive(int), default=32, metavar="N", help="rows, of all devices (default: %(default)s)")
    add("--length", type=positive(int), default=64, metavar="N", help="tokens a row (default: %(default)s)")
    add("--hidden-dim", type=positive(int), default=128, metavar="N", help=f"a multiple of {HEADS} (%(default)s)")
    add("--num-layers", type=positive(int), default=2, metavar="N", help="default: %(default)s")
    add("--seed", type=int, default=0, help="of the weights (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/many_devices"), metavar="DIR", help="default: %(default)s")
    args = parser.parse_args()
    if args.hidden_dim % HEADS:
        parser.error(f"--hidden-dim must be a multiple of {HEADS}; got {args.hidden_dim}")
    return args


def found_devices(args: argparse.Namespace) -> list[str]:
    """The devices to train on: 2, 4 or 8 of those that there are, which is what divides the heads."""
    import jax

    is_real = jax.default_backend() != "cpu"
    if args.devices == "auto":
        if is_real and len(jax.devices()) == 1:  # the CPU's are to be had by a new process alone
            os.execv(sys.executable, [sys.executable, *sys.argv, "--devices", "simulated"])
        args.devices = "real" if is_real else "simulated"
    found = keras.distribution.list_devices()
    if args.devices == "real" and not is_real:
        raise ValueError("--devices real: JAX has no accelerators here, only the CPU")
    if len(found) < 2:
        raise ValueError(f"{len(found)} device is there, many are needed; --devices simulated makes some of the CPU")
    return found[: 2 ** int(math.log2(min(len(found), HEADS)))]


def ways(devices: list[str]) -> dict[str, distribution.Layouts]:
    """By name. "data" has two of the devices beside "model"."""
    flat = distribution.mesh(devices, data=-1)
    both = distribution.mesh(devices, data=2, model=-1)
    layouts = (
        distribution.data_parallel(flat),
        distribution.fsdp(flat),
        distribution.tensor_parallel(distribution.mesh(devices, data=1, model=-1)),
        distribution.tensor_parallel(both),
        distribution.tensor_parallel(both, rest="data"),
    )
    return dict(zip(WAYS, layouts, strict=True))


def read(args: argparse.Namespace) -> tuple[Any, Any]:
    """As many rows as are trained on, and the tokenizer that was trained on the texts."""
    texts = docstrings()[0][:4000]
    tokenizer = tfm.data.train_tokenizer(texts, VOCABULARY, kind="byte_bpe")
    examples = list(tfm.data.causal_examples(texts, tokenizer, args.length))
    wanted = args.steps * args.batch_size
    if wanted > len(examples):
        _common.fail(
            f"--steps {args.steps} of --batch-size {args.batch_size} are {wanted} rows; there are {len(examples)}"
        )
    return tfm.data.Examples(examples[:wanted]), tokenizer


def gpt(args: argparse.Namespace, num_layers: int, optimizer: Any, tokenizer: Any = None) -> tfm.CausalLM:
    """A model with new weights, the same every time."""
    keras.utils.set_random_seed(args.seed)
    backbone = tfm.models.gpt(
        num_layers=num_layers,
        hidden_dim=args.hidden_dim,
        num_heads=HEADS,
        vocabulary_size=VOCABULARY,
        max_sequence_length=args.length,
        position="rotary",
        norm="rms_norm",
        gated=True,
        activation="silu",
        use_bias=False,
        dropout=0.0,
    )
    model = tfm.CausalLM(backbone, tokenizer=tokenizer)
    model.compile(optimizer, loss="linear_crossentropy")
    return model


def trained(args: argparse.Namespace, rows: Any, tokenizer: Any) -> tuple[tfm.CausalLM, list[float], float]:
    """A model after all steps, the loss of each, and milliseconds of the quickest."""
    optimizer = keras.optimizers.AdamW(1e-3, global_clipnorm=1.0)
    model, losses, times = gpt(args, args.num_layers, optimizer, tokenizer), _common.BatchLosses(), Times()
    model.fit(rows, batch_size=args.batch_size, callbacks=[losses, times], verbose=0)
    return model, losses.losses, 1e3 * min(times.seconds)


class Times(keras.callbacks.Callback):
    """Seconds of every batch but the first, which is compiled."""

    def __init__(self):
        super().__init__()
        self.seconds, self.before = [], None

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Reading the loss waits for the step."""
        float(logs["loss"])
        now = time.perf_counter()
        if self.before is not None:
            self.seconds.append(now - self.before)
        self.before = now


def held(model: keras.Model) -> int:
    """Bytes of weights and optimizer on one device."""
    return distribution.layout_report(model).bytes


def block_collectives(args: argparse.Namespace) -> Counter:
    """Tensors that devices exchange in a block, forward and backward, its weights' gradients among them.

    The difference of two compiled programs, of models of two layers and of one.
    """
    import jax

    counts = []
    for num_layers in (2, 1):
        model = gpt(args, num_layers, keras.optimizers.SGD())
        model.optimizer.build(model.trainable_variables)
        layout = keras.distribution.distribution().get_data_layout
        ids = np.ones((args.batch_size, args.length), "int32")
        ids = jax.device_put(ids, layout(ids.shape).backend_layout)
        model._symbolic_build(data_batch=(ids, ids))
        state = model._get_jax_state(True, True, True, True)
        program = jax.jit(model.train_step, out_shardings=(None, model._get_state_sharding_spec()))
        counts.append(exchanged(program.lower(state, (ids, ids, None)).compile().as_text()))
    return counts[0] - counts[1]


def exchanged(text: str) -> Counter:
    """Tensors of each sort of collective in a compiled program."""
    found: Counter = Counter()
    for shapes, sort in re.findall(rf"= (.*?) ({SORTS})(?:-start)?\(", text):
        found[sort] += len(re.findall(r"\w+\[[\d,]*\]", re.sub(r"/\*.*?\*/", "", shapes)))
    return found


if __name__ == "__main__":
    main()
