"""How full SST-2's sentences fill packed rows, and how quickly they are packed.

    python -m benchmarks.packing

All sentences of `$KERAS_TFM_DATA/sst2`, tokenized with MiniLM's vocabulary, special tokens included. NumPy alone.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from benchmarks.finetune_rates import minilm, table_rows
from benchmarks.measure import save

LENGTHS = (128, 256, 512)  # of a row, in tokens


def measure(rounds: int) -> list[dict]:
    """One row for each length: how full, against padding to the batch's longest, and tokens packed a second."""
    from keras_tfm.data import ExampleBatches, Examples, Tokenizer, pack

    texts = [row["sentence"] for row in table_rows()]
    encodings = Tokenizer.from_directory(minilm()).encode(texts, max(LENGTHS))
    examples = Examples({"token_ids": np.array(encoding.ids, np.int32), "label": 0} for encoding in encodings)
    lengths = np.array([len(example["token_ids"]) for example in examples])
    tokens = int(lengths.sum())

    def padded(**options) -> float:
        """How full batches of 32 are, each padded to its longest."""
        batches = ExampleBatches(examples, 32, shuffle=True, **options)
        rows = [batches.rows(index) for index in range(len(batches))]
        return tokens / sum(len(row) * int(lengths[row].max()) for row in rows)

    found = []
    for length in LENGTHS:
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            packed = pack(examples, length)
            seconds.append(time.perf_counter() - start)
        filled = float(packed["padding_mask"].mean())
        rate = tokens / statistics.median(seconds)
        found.append({"length": length, "rows": len(packed["token_ids"]), "filled": filled, "tokens_per_second": rate})
    return [
        {"length": None, "rows": len(examples), "filled": padded(group_by_length=False), "how": "shuffled"},
        {"length": None, "rows": len(examples), "filled": padded(), "how": "grouped by length"},
        *found,
    ]


def table(rows: list[dict]) -> str:
    """The results as Markdown."""
    lines = ["| rows of | rows | tokens that are no padding | packed a second |", "|---|---|---|---|"]
    for row in rows:
        what = f"{row['length']} tokens, packed" if row["length"] else f"a sentence, {row['how']}, batches of 32"
        rate = f"{row['tokens_per_second'] / 1e6:.1f} M tokens" if row["length"] else ""
        lines.append(f"| {what} | {row['rows']:,} | {row['filled']:.1%} | {rate} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rows = measure(parser.parse_args().rounds)
    print(table(rows))
    print("\nkept as", save("packing", {"rows": rows}))


if __name__ == "__main__":
    main()
