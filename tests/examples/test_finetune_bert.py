"""The quickstart: its data sets, its bad-input messages, and one whole run with a tiny model."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data.word_piece import train_word_piece

import keras_tfm as tfm

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import _quiet  # noqa: E402
import _text_data  # noqa: E402
import finetune_bert  # noqa: E402
from _stdlib_docstrings import PARTS, docstrings  # noqa: E402


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """A BERT directory of two narrow layers, untrained."""
    tokenizer = train_word_piece(_text_data.sentiment().train[0], vocabulary_size=500)
    backbone = tfm.models.bert(
        num_layers=2, hidden_dim=32, num_heads=2, vocabulary_size=tokenizer.vocabulary_size, max_sequence_length=64
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tfm.TextClassifier(backbone, 2, tokenizer=tokenizer).save_pretrained(directory)
    return directory


# The data sets ----------------------------------------------------------------------------------------------------------


def words(text):
    return frozenset(re.findall(r"\w+", text.lower()))


def test_shipped_sentences_are_many_balanced_and_varied():
    data = _text_data.sentiment()
    texts, labels = data.train[0] + data.test[0], data.train[1] + data.test[1]
    assert len(texts) >= 600
    assert set(labels) == {"negative", "positive"}
    assert 0.4 < labels.count("positive") / len(labels) < 0.6
    assert all(text == text.strip() and len(text) >= 15 for text in texts)
    bags = [words(text) for text in texts]
    near = [
        (a, b)
        for i, a in enumerate(bags)
        for b in bags[:i]
        if len(a & b) > 0.7 * len(a | b)  # Jaccard
    ]
    assert not near


def test_a_quarter_of_each_class_is_held_out():
    data = _text_data.sentiment()
    assert not set(data.train[0]) & set(data.test[0])
    train, test = Counter(data.train[1]), Counter(data.test[1])
    for label in data.labels:
        assert test[label] == round(0.25 * (train[label] + test[label]))
    assert _text_data.sentiment().test == data.test  # the same at every call


def test_docstrings_are_split_by_module(monkeypatch):
    texts, labels, modules = docstrings()
    assert len(texts) == len(set(texts)) >= 5000
    assert set(labels) == set(PARTS)
    assert all(len(text.split()) >= 6 for text in texts)
    assert not any(re.search(r"(^|\.)(tests?|idle_test|test_\w+)(\.|$)", module) for module in modules)

    monkeypatch.setattr(_text_data, "docstrings", lambda: (texts, labels, modules))  # read once
    module_of = dict(zip(texts, modules, strict=True))
    data = _text_data.stdlib()
    sides = [{module_of[text] for text in side} for side, _ in (data.train, data.test)]
    assert not sides[0] & sides[1]
    assert set(data.train[1]) == set(data.test[1]) == set(PARTS)
    assert 0.2 < len(data.test[0]) / len(texts) < 0.3
    assert _text_data.stdlib().test == data.test


def test_a_group_is_never_divided_even_where_all_are_large():
    labels, groups = ["x"] * 10 + ["y"] * 4, ["a"] * 6 + ["b"] * 4 + ["c"] * 4
    test = _text_data.by_group(labels, groups)
    assert test.tolist() == [False] * 6 + [True] * 4 + [False] * 4


def test_sst2_is_read_from_the_environments_folder(tmp_path, monkeypatch):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "train.tsv").write_text('label\tsentence\n0\tdull\n1\ta joy\n1\tfine\n0\tno "wit\n')
    (tmp_path / "sst2" / "dev.tsv").write_text("content\tlabel\nslow\t0\n")
    monkeypatch.setenv("KERAS_TFM_DATA", str(tmp_path))
    data = _text_data.load("sst2")
    assert data.train == (["dull", "a joy", "fine", 'no "wit'], ["negative", "positive", "positive", "negative"])
    assert data.test == (["slow"], ["negative"])
    assert len(_text_data.limited(data, 3, seed=0).train[0]) == 3


def test_sst2_is_downloaded_once(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "glue.zip", "w") as files:
        for name in ("train", "dev"):
            files.writestr(f"SST-2/{name}.tsv", "sentence\tlabel\ndull\t0\na joy\t1\ndull too\t0\nfine\t1\n")
    monkeypatch.delenv("KERAS_TFM_DATA", raising=False)
    monkeypatch.setattr(_text_data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(_text_data, "SST2_URL", (tmp_path / "glue.zip").as_uri())
    assert _text_data.load("sst2").labels == ["negative", "positive"]
    assert "Downloading" in capsys.readouterr().err
    (tmp_path / "glue.zip").unlink()
    _text_data.load("sst2")
    assert sorted(path.name for path in (tmp_path / "cache").rglob("*")) == ["dev.tsv", "sst2", "train.tsv"]


def test_sst2_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_TFM_DATA", raising=False)
    monkeypatch.setattr(_text_data, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(_text_data, "SST2_URL", (tmp_path / "nothing.zip").as_uri())
    with pytest.raises(OSError, match="KERAS_TFM_DATA"):
        _text_data.load("sst2")
    assert not list((tmp_path / "cache").iterdir())


def table(tmp_path, content, name="data.csv"):
    (tmp_path / name).write_text(content)
    return str(tmp_path / name)


def test_a_table_of_any_columns(tmp_path):
    rows = "".join(f"{i},text {i},{'abc'[i % 3]}\n" for i in range(12))
    data = _text_data.load(table(tmp_path, "id,review,stars\n" + rows), "review", "stars")
    assert data.labels == ["a", "b", "c"]
    assert Counter(data.test[1]) == {"a": 1, "b": 1, "c": 1}
    assert sorted(data.train[0] + data.test[0]) == sorted(f"text {i}" for i in range(12))


def test_a_validation_file_is_held_out_whole(tmp_path):
    train = table(tmp_path, "text,label\na,x\nb,y\nc,x\nd,y\n")
    data = _text_data.load(train, validation_file=table(tmp_path, "text\tlabel\ne\ty\n", "other.tsv"))
    assert data.train == (["a", "b", "c", "d"], ["x", "y", "x", "y"])
    assert data.test == (["e"], ["y"])


# Bad input --------------------------------------------------------------------------------------------------------------

GOOD = "text,label\n" + "".join(f"words {i},{'xy'[i % 2]}\n" for i in range(12))


@pytest.mark.parametrize(
    "content, options, message",
    [
        (None, [], "no file"),
        ("", [], "is empty"),
        ("text,label\n", [], "no rows"),
        ("review,label\na,x\n", [], "no column 'text'"),
        ("text,stars\na,x\n", [], "no column 'label'"),
        ("text,label\na,x\nb,x\nc,x\n", [], "two or more classes"),
        ("text,label\na,x\nb,\nc,y\nd,y\n", [], "empty label"),
        ("text,label\n" + "".join(f"a{i},{i}\n" for i in range(9)), [], "a label of its own"),
        ("text,label\n" + "".join(f"a{i},{i // 2}\n" for i in range(18)), [], "9 different labels in 9 rows"),
        (GOOD, ["--model", "nowhere"], "--model nowhere: there is no such directory"),
        (GOOD, ["--data", "nonsense"], "sentiment, stdlib, sst2, or a .csv"),
        (GOOD, ["--output", "data.csv/run"], "data.csv is a file"),
        (GOOD, ["--limit", "1"], "--limit 1 leaves no rows"),
        (GOOD, ["--score", "sst2"], "'negative' and 'positive'"),
        (GOOD, ["--max-length", "65"], "65 is past the model's 64 positions"),
        (GOOD, ["--validation-file", "nowhere.csv"], "nowhere.csv"),
        (GOOD, ["--output", "data.csv"], "data.csv"),
        (GOOD, ["--save-pretrained", "data.csv"], "data.csv"),
        (GOOD, ["--epochs", "0"], "must be above 0"),
        (GOOD, ["--batch-size", "many"], "many"),
    ],
)
def test_bad_input_is_one_line_on_stderr(content, options, message, model_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = "nowhere.csv" if content is None else table(tmp_path, content)
    arguments = ["--data", path, "--model", str(model_directory), *options]
    monkeypatch.setattr(sys, "argv", ["finetune_bert.py", *arguments])
    with pytest.raises(SystemExit) as exit:
        finetune_bert.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path(finetune_bert.OUTPUT).exists()  # nor an empty folder


def test_unknown_labels_in_the_validation_file(model_directory, tmp_path, monkeypatch, capsys):
    other = table(tmp_path, "text,label\na,z\n", "other.csv")
    arguments = ["--data", table(tmp_path, GOOD), "--validation-file", other, "--model", str(model_directory)]
    monkeypatch.setattr(sys, "argv", ["finetune_bert.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        finetune_bert.main()
    assert "['z']" in capsys.readouterr().err


def test_asking_before_training_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["finetune_bert.py", "--output", str(tmp_path), "--ask", "hello"])
    with pytest.raises(SystemExit, match="2"):
        finetune_bert.main()
    assert f"finetune_bert.py --output {tmp_path}" in capsys.readouterr().err
    (tmp_path / "model.keras").write_text("not a model")
    with pytest.raises(SystemExit, match="2"):
        finetune_bert.main()
    assert "model.keras" in capsys.readouterr().err


def test_without_the_quickstart_extra_its_name_is_given(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install.*quickstart.*--model"):
        finetune_bert.minilm()


def test_start_up_notes_are_shown_only_of_a_failure(capfd):
    with _quiet.quiet():
        os.write(2, b"a note")
    assert capfd.readouterr().err == ""

    def fail():
        os.write(2, b"a reason")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), _quiet.quiet():
        fail()
    assert capfd.readouterr().err == "a reason"


# Parts of a run ---------------------------------------------------------------------------------------------------------


def test_batch_losses_undo_the_running_mean():
    callback = finetune_bert.BatchLosses()
    for losses in ([3.0, 1.0, 2.0], [0.5, 0.7]):
        for batch in range(len(losses)):
            callback.on_train_batch_end(batch, {"loss": np.mean(losses[: batch + 1])})
    np.testing.assert_allclose(callback.losses, [3.0, 1.0, 2.0, 0.5, 0.7])


def test_a_whole_run(model_directory, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, str(EXAMPLES / "finetune_bert.py"), "--model", str(model_directory)]
    command += [
        "--output",
        str(output),
        "--limit",
        "64",
        "--epochs",
        "2",
        "--max-length",
        "32",
        "--save-pretrained",
        str(tmp_path / "hf"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert "oneDNN" not in run.stderr

    assert {path.name for path in output.iterdir()} == {"model.keras", "curves.png", "confusion.png", "metrics.json"}
    for name in ("curves.png", "confusion.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 64, "held out": 324}
    assert metrics["accuracy"]["majority class"] == {"held out": 0.5}
    assert len(metrics["history"]["val_accuracy"]) == 2
    accuracy = metrics["accuracy"]["fine-tuned BERT"]["held out"]
    assert accuracy == pytest.approx(metrics["history"]["val_accuracy"][-1], abs=1e-6)
    assert re.search(rf"^fine-tuned BERT +{accuracy:.1%}$", run.stdout, re.MULTILINE)

    assert f"right about {accuracy:.0%} of what was held out" in run.stdout

    # The fresh process's answers, and those of the Hugging Face directory, which holds the same model.
    answers = re.findall(r"^(negative|positive) +(\d+\.\d)%  (.+)$", run.stdout, re.MULTILINE)
    questions = _text_data.sentiment().questions
    assert [text for _, _, text in answers] == questions
    model = tfm.TextClassifier.from_pretrained(tmp_path / "hf")
    for (label, percent, _), p in zip(answers, finetune_bert.probabilities_of(model, questions), strict=True):
        assert label == model.labels[p.argmax()]
        assert float(percent) == pytest.approx(100 * p.max(), abs=0.06)
