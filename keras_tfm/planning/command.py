"""`keras-tfm plan`: a face over `planning.plan`."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_command(commands: Any) -> None:
    """Add it to the parser's commands."""
    command = commands.add_parser("plan", help="memory, collectives and time of training on a mesh of devices")
    command.add_argument(
        "config",
        metavar="CONFIG",
        help="a directory with config.json, a .keras or JSON file, or a size such as gpt:small",
    )
    command.add_argument("--devices", type=int, default=1, metavar="N", help="how many there are (1)")
    command.add_argument("--memory", metavar="SIZE", help="of each, such as 80GiB (default: the device's)")
    command.add_argument("--device", default="H100", metavar="NAME", help="such as A100 or 'TPU v5e' (H100)")
    command.add_argument("--mesh", metavar="AXES", help="the only one to look at, such as data=2,model=4")
    command.add_argument("--task", metavar="CLASS", help="such as TextClassifier (default: its own, or pretraining's)")
    command.add_argument("--batch-size", type=int, metavar="N", help="rows a step, of all devices (8 a device)")
    command.add_argument("--sequence-length", type=int, metavar="N", help="tokens a row (the config's, at most 2048)")
    command.add_argument("--policy", metavar="NAME", help="Keras's dtype policy (mixed_bfloat16)")
    command.add_argument("--optimizer", default="adamw", metavar="NAME", help="that Keras knows (adamw)")
    command.add_argument(
        "--no-jit-compile",
        dest="jit_compile",
        action="store_false",
        help="XLA does not compile the step: more is kept for the gradients",
    )
    command.add_argument("--remat", action="store_true", help="blocks are computed again for the gradients")
    command.add_argument("--loss", default="dense", metavar="KIND", help="dense, or chunked (linear_crossentropy)")
    command.add_argument(
        "--kernel",
        default="dense",
        metavar="KIND",
        help="of attention: dense, or fused: no probabilities are kept",
    )
    command.add_argument(
        "--accumulation", type=int, default=1, metavar="N", help="steps whose gradients are accumulated"
    )
    command.add_argument("--cache-tokens", type=int, metavar="N", help="also plan for generating: tokens a row")
    command.add_argument("--cache-dtype", metavar="NAME", help="of that cache, such as int8")
    command.add_argument("--flops", type=float, metavar="F", help="operations a second of a device, such as 989e12")
    command.add_argument("--bandwidth", metavar="SIZE", help="bytes a second within a group, such as 450GB")
    command.add_argument("--network", metavar="SIZE", help="bytes a second beyond it, such as 50GB")
    command.add_argument("--utilization", type=float, default=0.4, metavar="U", help="share of the rate (0.4)")
    command.add_argument("--latency", type=float, default=1e-5, metavar="S", help="seconds a collective (1e-5)")
    command.add_argument("--overlap", action="store_true", help="gradients are summed while the devices compute")
    command.add_argument("--plot", metavar="FILE", help="write curves of how it grows, such as plan.png")
    command.add_argument("--plot-devices", type=int, default=4096, metavar="N", help="up to how many devices (4096)")
    command.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> None:
    """`keras-tfm plan`."""
    from keras_tfm.planning.plan import plan

    outside = ("command", "config", "plot", "plot_devices", "json")
    options = {name: value for name, value in vars(args).items() if name not in outside}
    found = plan(args.config, **options)
    print(json.dumps(found.to_dict(), indent=2) if args.json else found)
    if args.plot:
        found.plot(args.plot, args.plot_devices)
        if not args.json:
            print(f"\n{args.plot} is written.")
