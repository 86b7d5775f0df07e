"""Put what the benchmarks printed into README and docs, between their markers.

python -m benchmarks.update_docs
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import (
    bert_memory,
    char_gpt,
    compile_time,
    examples,
    experts,
    families,
    features,
    few_rows,
    finetune,
    finetune_rates,
    generation,
    gpu,
    imports,
    long,
    memory,
    packing,
    padded,
    plan,
    quantized,
    scaling,
    training,
)
from benchmarks.measure import RESULTS

ROOT = Path(__file__).parents[1]


def machine(record: dict) -> str:
    """One line about where and when a record was taken."""
    versions = record["machine"]
    names = {
        "keras": "Keras",
        "keras-hub": "KerasHub",
        "tensorflow": "TensorFlow",
        "jax": "JAX",
        "torch": "PyTorch",
        "transformers": "transformers",
        "x-transformers": "x-transformers",
    }
    used = ", ".join(f"{title} {versions[name]}" for name, title in names.items() if name in versions)
    return f"*{record['date']}, {versions['cores']} cores of {versions['cpu']}; {used}.*"


def sections() -> dict[str, str]:
    """Marker to text, for every result there is."""
    found = {}
    for name, table in (
        ("training", lambda r: training.table(r["results"])),
        ("training-summary", lambda r: training.summary(r["results"])),
        ("imports", lambda r: imports.table(r["rows"])),
        ("finetune", lambda r: finetune.table(r["rows"])),
        ("generation", lambda r: generation.table(r["results"])),
        ("finetune_rates", lambda r: finetune_rates.table(r["results"])),
        ("char_gpt", lambda r: char_gpt.table(r["results"])),
        ("packing", lambda r: packing.table(r["rows"])),
        ("few_rows", few_rows.table),
        ("compile_time", lambda r: compile_time.table(r["results"])),
        ("long", lambda r: long.table(r["results"])),
        ("scaling", lambda r: scaling.table(r["results"])),
        ("padded", lambda r: padded.table(r["results"])),
        ("experts", lambda r: experts.table(r["results"])),
        ("bert_memory", lambda r: bert_memory.table(r["results"])),
        ("gpu", lambda r: gpu.table(r["results"])),
        ("memory", lambda r: memory.table(r["results"])),
        ("quantized", lambda r: quantized.table(r["results"])),
        ("plan", lambda r: plan.table(r["results"])),
        ("features", lambda r: features.table(r["results"])),
        ("families", lambda r: families.table(r["families"])),
    ):
        path = RESULTS / f"{name.removesuffix('-summary')}.json"
        if path.is_file():
            record = json.loads(path.read_text("utf-8"))
            found[name] = f"{table(record)}\n\n{machine(record)}"
    for name, record in examples.kept().items():
        found[f"example-{name}"] = f"{examples.table(record)}\n\n{machine(record)}"
    return found


def main() -> None:
    """Rewrite the marked sections of README.md and docs/*.md."""
    for suite in (training, long, scaling):
        name = suite.__name__.rpartition(".")[2]
        kept = RESULTS / f"{name}.json"
        if kept.is_file():
            suite.plot(json.loads(kept.read_text("utf-8"))["results"], ROOT / "docs" / f"{name}.png")
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = before = page.read_text("utf-8")
        for name, section in sections().items():
            text = re.sub(
                rf"<!-- {name} -->.*?<!-- /{name} -->",
                lambda _, name=name, section=section: f"<!-- {name} -->\n{section}\n<!-- /{name} -->",
                text,
                flags=re.DOTALL,
            )
        if text != before:
            page.write_text(text, "utf-8")
            print("updated", page.relative_to(ROOT))


if __name__ == "__main__":
    main()
