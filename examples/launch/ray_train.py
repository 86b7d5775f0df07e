"""The same on a Ray cluster: python ray_train.py --workers 4 -- --text /shared/book.txt --output /shared/run

Ray's JaxTrainer starts a worker on each TPU host and connects them, which `distribution.initialize` takes as it is. Needs
`pip install "ray[train]"`.
"""

from __future__ import annotations

import argparse
import sys


def train(config: dict) -> None:
    import train as script

    sys.argv = ["train.py", *config["arguments"]]
    script.main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="hosts (default: %(default)s)")
    parser.add_argument("--topology", default="4x4", help="of the TPU slice (default: %(default)s)")
    parser.add_argument("--accelerator", default="TPU-V6E", help="default: %(default)s")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="of train.py, behind --")
    args = parser.parse_args()

    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    trainer = JaxTrainer(
        train,
        train_loop_config={"arguments": [part for part in args.arguments if part != "--"]},
        scaling_config=ScalingConfig(
            use_tpu=True, num_workers=args.workers, topology=args.topology, accelerator_type=args.accelerator
        ),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=100)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
