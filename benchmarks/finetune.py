"""Fine-tuning a BERT: sentences a second beside other libraries, and what `examples/finetune_bert.py` reaches.

    python -m benchmarks.finetune                        rows a second: see finetune_rates
    python -m benchmarks.finetune sentiment stdlib       run the example on these and keep their figures
    python -m benchmarks.finetune sst2 --kept DIR        take those of a finished run from its --output

Figures of the example on data sets that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import finetune_rates
from benchmarks.measure import RESULTS, run_by_backend, save

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_bert.py"
OPTIONS = {"sentiment": ["--score", "sst2"], "stdlib": ["--data", "stdlib"], "sst2": ["--data", "sst2"]}
TITLES = {
    "sentiment": "the shipped sentences",
    "stdlib": "docstrings of the standard library",
    "sst2": "SST-2 (67,349 sentences)",
}


def table(rows: dict[str, dict]) -> str:
    """The results as Markdown."""
    lines = [
        "| data | rows | epochs | majority | bag of words | fine-tuned BERT | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        for scored in row["accuracy"]["fine-tuned BERT"]:
            accuracies = [f"{row['accuracy'][m][scored]:.1%}" for m in ("majority class", "bag of words")]
            accuracies.append(f"**{row['accuracy']['fine-tuned BERT'][scored]:.1%}**")
            what = TITLES[name] if scored == "held out" else f"… the same model on {scored}'s 872 rows, unseen"
            first = scored == "held out"
            counts = [f"{row['rows']['train']:,}", str(row["settings"]["epochs"])] if first else ["", ""]
            cells = [what, *counts, *accuracies, f"{row['seconds'] / 60:.1f}" if first else ""]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, keep the JSON."""
    if not any(name in sys.argv[1:] for name in OPTIONS):
        run_by_backend("finetune", __doc__ or "", finetune_rates.measure, finetune_rates.table, {}, "finetune_rates")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=OPTIONS)
    parser.add_argument("--kept", type=Path, metavar="DIR", help="the --output of a finished run")
    args = parser.parse_args()
    if args.kept and len(args.data) > 1:
        parser.error("--kept is the output of one run: name one data set")
    path = RESULTS / "finetune.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else {}
    for name in args.data:
        with tempfile.TemporaryDirectory() as scratch:
            output = args.kept or Path(scratch)
            if not args.kept:
                command = [sys.executable, str(EXAMPLE), *OPTIONS[name], "--output", str(output)]
                subprocess.run(command, check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
            row = json.loads((output / "metrics.json").read_text("utf-8"))
        rows[name] = {key: row[key] for key in ("backend", "settings", "rows", "accuracy", "seconds")}
    rows = {name: rows[name] for name in OPTIONS if name in rows}
    print(table(rows))
    print("\nkept as", save("finetune", {"rows": rows}))


if __name__ == "__main__":
    main()
