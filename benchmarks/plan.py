"""Plans against measurement: bytes of weights, slots and kept activations, and the collectives of compiled programs.

    python -m benchmarks.plan

On JAX, with 8 devices simulated on the CPU (`tests/planning/measured.py`); no times are measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import save

WORKER = Path(__file__).parents[1] / "tests" / "planning" / "measured.py"


def measure() -> dict:
    """Predicted and measured figures, as the worker prints them."""
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    output = subprocess.run(
        [sys.executable, str(WORKER), "all"], env=environment, capture_output=True, text=True, check=False
    )
    found = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
    if not found:
        raise SystemExit(output.stdout + output.stderr)
    return json.loads(found[0].removeprefix("RESULT "))


def table(results: dict) -> str:
    """The results as Markdown: meshes, then what is kept, uncompiled and compiled, then whole steps."""
    lines = [
        "| model | mesh | weights and slots, a device | collectives, tensors | predicted | bytes | predicted | × | "
        "a step, a device | × |",
        "|---" * 10 + "|",
    ]
    for row in results["meshes"]:
        held = [row["weights"][place] + row["optimizer"][place] for place in (0, 1)]
        equal = "as predicted" if held[0] == held[1] else f"predicted {held[0]:,}"
        (tensors, found_tensors), (moved, found) = row["tensors"], row["moved"]
        lines.append(
            f"| {row['model']} | {row['mesh']} | {held[1]:,} B, {equal} | {found_tensors} | {tensors} | {found:,} | "
            f"{moved:,} | {moved / found:.3f} | {row['step'][1]:,} B | {row['step'][0] / row['step'][1]:.2f} |"
        )
    lines += ["", "| model | kept for the gradients | predicted | × |", "|---|---|---|---|"]
    for row in results["kept"]:
        predicted, found = row["activations"]
        lines.append(f"| {row['model']} | {found:,} B | {predicted:,} B | {predicted / found:.3f} |")
    lines += ["", "| a block more of a compiled decoder | adds | predicted | × |", "|---|---|---|---|"]
    for row in results["blocks"]:
        predicted, found = row["adds"]
        lines.append(f"| `{row['block']}` | {found:,} B | {predicted:,} B | {predicted / found:.3f} |")
    lines += ["", "| model, compiled on one device | beside weights and slots | planned | × |", "|---|---|---|---|"]
    for row in results["compiled"]:
        predicted, found = row["step"]
        lines.append(f"| {row['model']} | {found:,} B | {predicted:,} B | {predicted / found:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables, keep the JSON."""
    results = measure()
    print(table(results))
    print("\nkept as", save("plan", {"results": results}))


if __name__ == "__main__":
    main()
