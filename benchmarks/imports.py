"""What `import keras_tfm` costs over `import keras`, on each backend: fresh processes in turn, medians.

python -m benchmarks.imports
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from benchmarks.measure import save

PROGRAM = """
import sys, time
start = time.perf_counter()
import keras
middle = time.perf_counter()
import keras_tfm
print(middle - start, time.perf_counter() - middle, "tensorflow" in sys.modules)
"""


def table(rows: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = ["| backend | import keras, s | import keras_tfm on top, s | TensorFlow imported |", "|---|---|---|---|"]
    for backend, row in rows.items():
        loaded = "yes" if row["imports_tensorflow"] else "no"
        lines.append(f"| {backend} | {row['keras_s']:.2f} | {row['keras_tfm_over_keras_s']:.3f} | {loaded} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rows = {}
    for backend in ("tensorflow", "jax", "torch"):
        environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        runs = [
            subprocess.run(
                [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
            ).stdout.split()
            for _ in range(rounds + 1)
        ][1:]
        rows[backend] = {
            "keras_s": round(statistics.median(float(run[0]) for run in runs), 3),
            "keras_tfm_over_keras_s": round(statistics.median(float(run[1]) for run in runs), 3),
            "imports_tensorflow": runs[-1][2] == "True",
        }
    print(table(rows))
    print("\nkept as", save("imports", {"rounds": rounds, "rows": rows}))


if __name__ == "__main__":
    main()
