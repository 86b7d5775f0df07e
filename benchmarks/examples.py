"""What the examples reach with their defaults, and in what time.

    python -m benchmarks.examples pretrain_gpt adapt_gpt     run these and keep their figures
    python -m benchmarks.examples tag_entities --kept DIR    take those of a finished run from its --output

Each goes into a file of its own under benchmarks/results; those that are not named stay as they are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import RESULTS, save

EXAMPLES = Path(__file__).parents[1] / "examples"
RUNS: dict[str, list[str]] = {  # name to the command's arguments
    "pretrain_bert": ["pretrain_bert.py"],
    "pretrain_gpt": ["pretrain_gpt.py"],
    "adapt_gpt": ["adapt_gpt.py"],
    "compare_frozen": ["compare_finetuning.py", "--compare", "frozen"],
    "compare_packed": ["compare_finetuning.py", "--compare", "packed"],
    "tag_entities": ["tag_entities.py"],
    "answer_questions": ["answer_questions.py"],
    "survive_kills": ["survive_kills.py"],
    "many_devices": ["many_devices.py", "--devices", "simulated"],
}


def kept() -> dict[str, dict]:
    """What has been kept, by name."""
    found = {}
    for name in RUNS:
        path = RESULTS / f"example_{name}.json"
        if path.is_file():
            found[name] = json.loads(path.read_text("utf-8"))
    return found


def table(record: dict) -> str:
    """One run's results as Markdown."""
    row = record["row"]
    lines = ["| result | |", "|---|---|"]
    for name, value in row["results"].items():
        lines.append(f"| {name} | {_shown(name, value)} |")
    rows = ", ".join(f"{count:,} {name}" for name, count in row["rows"].items())
    lines.append(f"| rows or bytes | {rows} |")
    note = f" ({record['note']})" if record.get("note") else ""
    lines.append(f"| minutes, on {row['backend']}{note} | {row['seconds'] / 60:.1f} |")
    return "\n".join(lines)


def _shown(name: str, value: float) -> str:
    if "apart" in name:
        return f"{value:.1e}"
    if "collectives" in name:
        return f"{value:.0f}"
    if any(unit in name for unit in ("second", "bits", "loss", "perplexity")):
        return f"{value:.2f}"
    if "parameters" in name:
        return f"{value:,.0f}"
    return f"{value:.1%}" if abs(value) <= 1 else f"{value:,.1f}"


def main() -> None:
    """Run, print the tables, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--kept", type=Path, metavar="DIR", help="the --output of a finished run")
    parser.add_argument("--note", help="what to say of a run's minutes, such as that other work ran beside it")
    args = parser.parse_args()
    if args.kept and len(args.names) > 1:
        parser.error("--kept is the output of one run: name one example")
    for name in args.names:
        script, *options = RUNS[name]
        output = args.kept or Path("runs") / name
        if not args.kept:
            command = [sys.executable, str(EXAMPLES / script), *options, "--output", str(output)]
            subprocess.run(command, check=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
        row = json.loads((output / "metrics.json").read_text("utf-8"))
        record = {"row": {key: row[key] for key in ("backend", "settings", "rows", "results", "seconds")}}
        record |= {"note": args.note} if args.note else {}
        print(table(record), "\n\nkept as", save(f"example_{name}", record))


if __name__ == "__main__":
    main()
