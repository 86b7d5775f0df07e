"""Which published families are read and written, and how near our outputs come to `transformers`'.

    python -m benchmarks.families
    python -m benchmarks.families --records '/tmp/families-{backend}.json'

Runs the comparison of tests/checkpoints/test_families.py on every backend and keeps its figures; or takes those that a
run of all tests wrote, with KERAS_TFM_FAMILIES set to the same path.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import save

ROOT = Path(__file__).parents[1]
BACKENDS = ("tensorflow", "jax", "torch")
SHORT = {
    "Backbone": "backbone",
    "CausalLM": "causal LM",
    "MaskedLM": "masked LM",
    "Seq2SeqLM": "seq2seq LM",
    "TextClassifier": "text",
    "ImageClassifier": "image",
    "TokenClassifier": "token",
    "QuestionAnswerer": "question",
}


def table(families: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| `model_type` | loads | saves | heads | largest relative difference: " + " | ".join(BACKENDS) + " |",
        "|---" * (4 + len(BACKENDS)) + "|",
    ]
    for family, by_backend in sorted(families.items()):
        tasks = list(dict.fromkeys(task for tasks in by_backend.values() for task in tasks))
        heads = ", ".join(SHORT[task] for task in tasks if task != "Backbone")
        worst = [f"{max(by_backend[b].values()):.0e}" if b in by_backend else "–" for b in BACKENDS]
        lines.append(f"| `{family}` | yes | yes | {heads} | " + " | ".join(worst) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", help="what a run of all tests wrote, {backend} standing for the backend")
    records = parser.parse_args().records
    families: dict[str, dict] = {}
    for backend in BACKENDS:
        with tempfile.TemporaryDirectory() as scratch:
            record = Path(records.format(backend=backend) if records else Path(scratch) / "differences.json")
            if not records:
                environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_TFM_FAMILIES": str(record)}
                command = [sys.executable, "-m", "pytest", "tests/checkpoints/test_families.py"]
                subprocess.run(command, check=True, cwd=ROOT, env=environment)
            for family, tasks in json.loads(record.read_text("utf-8")).items():
                families.setdefault(family, {})[backend] = tasks
    print(table(families))
    print("\nkept as", save("families", {"families": families}))


if __name__ == "__main__":
    main()
