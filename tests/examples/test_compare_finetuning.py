"""The comparison of ways to fine-tune: what each trains, and short runs of both comparisons."""

import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import BACKEND

import keras_tfm as tfm

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import _text_data  # noqa: E402
import compare_finetuning  # noqa: E402

ROWS = [(f"{'a fine' if i % 2 else 'no good'} day {'of many words ' * (i % 4)}", "xy"[i % 2]) for i in range(48)]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """A BERT directory of two narrow layers, untrained."""
    tokenizer = tfm.data.train_tokenizer([text for text, _ in ROWS], 80, lowercase=True, max_length=32)
    sizes = dict(num_layers=2, hidden_dim=16, num_heads=2, max_sequence_length=32)
    backbone = tfm.models.bert(vocabulary_size=tokenizer.vocabulary_size, **sizes)
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tfm.TextClassifier(backbone, 2, tokenizer=tokenizer).save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def no_compilation():
    """On TensorFlow, whose tracing of each step takes most of a short run."""
    if BACKEND != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def run(model_directory, tmp_path, monkeypatch):
    """Runs the example on a file, of this module's rows, in a folder of its own; gives the folder that it writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS))

    def main(*options: object) -> Path:
        fixed = ["--data", "rows.csv", "--model", model_directory, "--epochs", 1, "--batch-size", 16, "--output", "run"]
        monkeypatch.setattr(sys, "argv", ["compare_finetuning.py", *map(str, [*fixed, *options])])
        compare_finetuning.main()
        return tmp_path / "run"

    return main


def written(output):
    """The figures of a run, of which all files are there."""
    names = {"model.keras", "curves.png", "comparison.png", "metrics.json"}
    assert {path.name for path in output.iterdir()} == names
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in names if name.endswith("png"))
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["example"] == "compare_finetuning"
    assert metrics["rows"] == {"train": 36, "held out": 12}
    assert metrics["results"]["majority class"] == 0.5
    return metrics


def right(model):
    """The share of the held-out rows that a model is right about."""
    texts, labels = _text_data.load("rows.csv").test
    return np.mean([model.labels[i] == label for i, label in zip(model.predict(texts).argmax(-1), labels, strict=True)])


def test_a_frozen_and_a_full_fine_tune(run, model_directory, capsys):
    output = run("--top-blocks", 1)
    results = written(output)["results"]
    whole = tfm.TextClassifier.from_pretrained(model_directory, labels=["x", "y"])
    block, head = whole.backbone.blocks[0].count_params(), whole.head.count_params()
    pooler = whole.backbone.pooler.count_params()
    parameters = {way: results[f"{way}: trainable parameters"] for way in ("head alone", "top 1 blocks", "all weights")}
    assert parameters["head alone"] == head
    assert parameters["top 1 blocks"] == head + pooler + block
    assert parameters["all weights"] == results["layer-wise rates: trainable parameters"] == whole.count_params()
    model = keras.models.load_model(output / "model.keras")
    assert right(model) == pytest.approx(results["all weights: accuracy"])
    assert re.search(rf"^all weights +{results['all weights: accuracy']:.1%} ", capsys.readouterr().out, re.MULTILINE)


def test_padded_and_packed(run):
    output = run("--compare", "packed", "--pack", 32)
    metrics = written(output)
    results = metrics["results"]
    assert metrics["settings"]["top_blocks"] is None
    padding = [results[f"{way}: padding"] for way in ("padded", "grouped by length", "packed to 32")]
    assert padding[0] > padding[1] > 0
    assert padding[0] > padding[2] > 0
    steps = [results[f"{way}: steps an epoch"] for way in ("padded", "grouped by length", "packed to 32")]
    assert steps[0] == steps[1] == 3
    assert steps[2] > 1  # as many texts a step, about
    model = keras.models.load_model(output / "model.keras")
    assert right(model) == pytest.approx(results["packed to 32: accuracy"])


def test_padding_is_counted():
    class Batches:
        masks = (np.array([[1, 1, 1], [1, 0, 0]], bool), np.array([[1, 0]], bool))
        __len__ = lambda self: 2  # noqa: E731
        __getitem__ = lambda self, index: ({"padding_mask": self.masks[index]}, None)  # noqa: E731

    assert compare_finetuning.padding_of(Batches()) == pytest.approx(3 / 8)


def test_the_clock_leaves_out_the_first_epoch_and_validation(monkeypatch):
    times = iter([0.0, 9.0, 20.0, 22.0, 30.0, 34.0])
    monkeypatch.setattr(compare_finetuning.time, "perf_counter", lambda: next(times))
    clock = compare_finetuning.TrainingSeconds()
    for epoch in range(3):
        clock.on_epoch_begin(epoch)
        clock.on_test_begin()
    assert clock.seconds == [9.0, 2.0, 4.0]
    assert clock.usual() == 3.0


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "nowhere.csv"], "nowhere.csv"),
        (["--model", "nowhere"], "--model nowhere: there is no such directory"),
        (["--text-column", "review"], "no column 'review'"),
        (["--limit", 1], "--limit 1 leaves no rows"),
        (["--top-blocks", 2], "below the model's 2 blocks; got 2"),
        (["--top-blocks", 1, "--decay", 1], "must be below 1; got 1.0"),
        (["--pack", 32], "--pack has no effect with --compare frozen"),
        (["--compare", "packed", "--decay", 0.5], "--decay has no effect with --compare packed"),
        (["--compare", "packed", "--pack", 16], "at least --max-length, 32; got 16"),
        (["--compare", "packed", "--pack", 64], "64 is past the model's 32 positions"),
        (["--compare", "other"], "'other'"),
        (["--output", "rows.csv"], "rows.csv is a file"),
    ],
)
def test_bad_input_is_one_line_on_stderr(run, options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        run(*options)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
