"""One training step of a BERT-like and a GPT-like model: keras_tfm, KerasHub and, on torch, Hugging Face.

    python -m benchmarks.training                 every installed backend, each in its own process
    python -m benchmarks.training --backend jax   this backend alone

The same sizes, data, loss and optimizer for all; steps alternate in one process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.measure import alternate, matrix_rate, ratio, run_by_backend

SIZES = dict(
    vocabulary=8192, width=256, layers=4, heads=4, intermediate=1024, length=128, batch=16, dropout=0.1, classes=2
)


def flops(kind: str) -> float:
    """Matrix-product operations of one training step: forward, and twice that backward."""
    s = SIZES
    tokens, width = s["batch"] * s["length"], s["width"]
    block = 2 * tokens * (4 * width**2 + 2 * width * s["intermediate"]) + 4 * tokens * s["length"] * width
    head = 2 * tokens * width * s["vocabulary"] if kind == "gpt" else 2 * s["batch"] * (width**2 + width * s["classes"])
    return 3 * (s["layers"] * block + head)


def data(kind: str):
    import numpy as np

    random = np.random.default_rng(0)
    ids = random.integers(1, SIZES["vocabulary"], (SIZES["batch"], SIZES["length"] + 1)).astype("int32")
    mask = np.ones((SIZES["batch"], SIZES["length"]), bool)
    if kind == "gpt":
        return ids[:, :-1], mask, ids[:, 1:]
    return ids[:, :-1], mask, random.integers(0, SIZES["classes"], SIZES["batch"]).astype("int32")


def _step(model, x, y) -> Callable[[], object]:
    """One optimizer step, data transfer included; `train_on_batch` reads the loss back, which waits for the step."""
    return lambda: model.train_on_batch(x, y)


def ours(kind: str, layers: int = SIZES["layers"]) -> Callable[[], object]:
    """A step of this library's model."""
    import keras

    import keras_tfm as tfm

    s = SIZES
    sizes = dict(
        vocabulary_size=s["vocabulary"],
        hidden_dim=s["width"],
        num_layers=layers,
        num_heads=s["heads"],
        intermediate_dim=s["intermediate"],
        max_sequence_length=s["length"],
        dropout=s["dropout"],
    )
    ids, mask, labels = data(kind)
    if kind == "bert":
        model = tfm.TextClassifier(tfm.models.bert(**sizes), num_classes=s["classes"])
        x = {"token_ids": ids, "padding_mask": mask, "token_type_ids": 0 * ids}
    else:
        model = tfm.CausalLM(tfm.models.gpt(**sizes))
        x = {"token_ids": ids, "padding_mask": mask}
    model.compile(optimizer=keras.optimizers.Adam(1e-4), metrics=None)
    return _step(model, x, labels)


def keras_hub(kind: str, layers: int = SIZES["layers"]) -> Callable[[], object]:
    """A step of KerasHub's model."""
    import keras
    import keras_hub

    s = SIZES
    sizes = dict(
        vocabulary_size=s["vocabulary"],
        num_layers=layers,
        num_heads=s["heads"],
        hidden_dim=s["width"],
        intermediate_dim=s["intermediate"],
        dropout=s["dropout"],
        max_sequence_length=s["length"],
    )
    ids, mask, labels = data(kind)
    if kind == "bert":
        backbone = keras_hub.models.BertBackbone(num_segments=2, **sizes)
        model = keras_hub.models.BertTextClassifier(
            backbone, num_classes=s["classes"], dropout=s["dropout"], preprocessor=None
        )
        x = {"token_ids": ids, "padding_mask": mask, "segment_ids": 0 * ids}
    else:
        model = keras_hub.models.GPT2CausalLM(keras_hub.models.GPT2Backbone(**sizes), preprocessor=None)
        x = {"token_ids": ids, "padding_mask": mask}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss, weighted_metrics=None, metrics=None)
    return _step(model, x, labels)


def hugging_face(kind: str) -> Callable[[], object]:
    """A step of Hugging Face's model."""
    import torch
    import transformers

    s = SIZES
    ids, mask, labels = (torch.from_numpy(array) for array in data(kind))
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=s["vocabulary"],
            hidden_size=s["width"],
            num_hidden_layers=s["layers"],
            num_attention_heads=s["heads"],
            intermediate_size=s["intermediate"],
            max_position_embeddings=s["length"],
            hidden_dropout_prob=s["dropout"],
            attention_probs_dropout_prob=s["dropout"],
            num_labels=s["classes"],
        )
        model = transformers.BertForSequenceClassification(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=s["vocabulary"],
            n_embd=s["width"],
            n_layer=s["layers"],
            n_head=s["heads"],
            n_inner=s["intermediate"],
            n_positions=s["length"],
            resid_pdrop=s["dropout"],
            embd_pdrop=s["dropout"],
            attn_pdrop=s["dropout"],
        )
        model = transformers.GPT2LMHeadModel(config)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step():
        optimizer.zero_grad()
        logits = model(input_ids=ids.long(), attention_mask=mask.long()).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1).long())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def measure(backend: str, rounds: int) -> dict:
    """The table's rows for one backend, in this process."""
    rows = {}
    rate = matrix_rate()
    for kind in ("bert", "gpt"):
        steps = {"keras_tfm": ours(kind), "KerasHub": keras_hub(kind)}
        if backend == "torch":
            steps["Hugging Face"] = hugging_face(kind)
        times = alternate(steps, rounds)
        rows[kind] = {
            "ms": {name: round(1e3 * statistics.median(values), 1) for name, values in times.items()},
            "speedup": {name: round(ratio(times, name, "keras_tfm"), 3) for name in steps if name != "keras_tfm"},
            "floor_ms": round(1e3 * flops(kind) / rate, 1),
            "tokens_per_second": round(SIZES["batch"] * SIZES["length"] / statistics.median(times["keras_tfm"])),
            "rounds": rounds,
        }
    return {"matrix_gflops": round(rate / 1e9, 1), "rows": rows}


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    columns = ["backend", "model", "keras_tfm, ms", "tokens/s", "KerasHub, ms", "Hugging Face, ms", "floor, ms"]
    columns += ["× KerasHub", "× Hugging Face"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for backend, result in results.items():
        for kind, row in result["rows"].items():
            ms, speedup = row["ms"], row["speedup"]
            cells = [backend, kind.upper(), ms["keras_tfm"], row["tokens_per_second"], ms["KerasHub"]]
            cells += [ms.get("Hugging Face", "–"), row["floor_ms"], f"{speedup['KerasHub']:.2f}"]
            cells.append(f"{speedup['Hugging Face']:.2f}" if "Hugging Face" in speedup else "–")
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("training", __doc__ or "", measure, table, {"sizes": SIZES}, rounds=40)
