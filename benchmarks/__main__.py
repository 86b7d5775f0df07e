"""All benchmarks in one run, or some of them: tables on the terminal, results as JSON, both in the documentation.

    python -m benchmarks                     everything: more than an hour on 2 cores
    python -m benchmarks training long       these suites
    python -m benchmarks --quick             speed, memory and compilation at a glance: below five minutes, nothing is kept

Every backend that is installed runs in processes of its own. Peers alternate with keras_tfm in one process, and results are
compared before they are timed where the weights are the same. Nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time

from benchmarks.measure import BACKENDS, installed, machine

# Suite to its rounds in a quick run; 0: not part of one.
SUITES = {
    "training": 2,
    "compile_time": 1,
    "memory": 1,
    "long": 1,
    "scaling": 0,
    "padded": 0,
    "experts": 0,
    "bert_memory": 0,
    "imports": 0,
    "generation": 0,
    "quantized": 0,
    "few_rows": 0,
    "finetune": 0,
    "packing": 0,
    "char_gpt": 0,
    "gpu": 0,
}
QUICK = [name for name, rounds in SUITES.items() if rounds]


def quick(names: list[str]) -> None:
    """One process a backend, small suites, few rounds."""
    found: dict[str, dict[str, dict]] = {name: {} for name in names}
    for backend in installed():
        begun = time.perf_counter()
        command = [sys.executable, "-m", "benchmarks", "--quick", "--json", "--backend", backend, *names]
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
        if not lines:
            raise SystemExit(output.stdout + output.stderr)
        for name, result in json.loads(lines[0].removeprefix("RESULT ")).items():
            found[name][backend] = result
        print(f"{backend}: {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
    for name, results in found.items():
        suite = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{(suite.__doc__ or name).splitlines()[0]}\n\n{suite.table(results)}")
    print(f"\nA quick run, nothing kept, on {machine()}")


def in_this_process(backend: str, names: list[str]) -> None:
    """What a process of a quick run does: prints its results as JSON."""
    found = {}
    for name in names:
        suite = importlib.import_module(f"benchmarks.{name}")
        # By way of JSON, as results that are kept: its keys are strings.
        found[name] = json.loads(json.dumps(suite.measure(backend, SUITES[name])))
    print("RESULT " + json.dumps(found))


def everything(names: list[str]) -> None:
    """Each suite's own command, then the pages."""
    for name in names:
        print(f"\n## {name}\n", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
    subprocess.run([sys.executable, "-m", "benchmarks.update_docs"], check=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; default: all")
    parser.add_argument("--quick", action="store_true", help=f"few rounds of {', '.join(QUICK)}")
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    known = QUICK if args.quick else list(SUITES)
    unknown = [name for name in args.suites if name not in known]
    if unknown:
        parser.error(f"unknown suites {unknown}{' for a quick run' if args.quick else ''}; there are {known}")
    names = args.suites or known
    if args.json:
        in_this_process(args.backend, names)
    elif args.quick:
        quick(names)
    else:
        everything(names)


if __name__ == "__main__":
    main()
