"""Checkpoint files: shards, hostile ones, interrupted saves, memory, hub ids."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import BACKEND, fill_weights, numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tfm as tfm
from keras_tfm.checkpoints import tensors, writing
from keras_tfm.checkpoints.checkpoint import Checkpoint

TINY = dict(num_layers=2, hidden_dim=16, num_heads=2, vocabulary_size=50, max_sequence_length=12)


@pytest.fixture(scope="module")
def model():
    return fill_weights(tfm.MaskedLM(tfm.models.bert(**TINY, pooler=False)))


@pytest.fixture(scope="module")
def sharded(model, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sharded") / "model"
    model.save_pretrained(directory, max_shard_size=4000)
    return directory


@pytest.fixture
def copy(sharded, tmp_path) -> Path:
    return shutil.copytree(sharded, tmp_path / "copy")


def weights_of(model) -> list[np.ndarray]:
    return [numpy(v) for v in model.weights if "seed" not in v.path]


def change_index(directory: Path, **changes) -> None:
    path = directory / tensors.INDEX
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_shards_hold_what_one_file_holds(model, sharded, tmp_path):
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for path in sharded.glob("*.safetensors"):
        entries = tensors.index(path)
        assert len(entries) == 1 or sum(e.end - e.begin for e in entries.values()) <= 4000
    again = tfm.MaskedLM.from_pretrained(sharded)
    for a, b in zip(weights_of(again), weights_of(model), strict=True):
        np.testing.assert_array_equal(a, b)
    again.save_pretrained(tmp_path / "one")
    one, several = (tensors.directory_index(d) for d in (tmp_path / "one", sharded))
    assert set(one) == set(several)
    assert {e.path.name for e in one.values()} == {tensors.SINGLE}


def test_files_have_the_usual_mode(model, tmp_path):
    before = os.umask(0o027)
    try:
        model.save_pretrained(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes["model.safetensors"] == 0o640
    assert set(modes.values()) == {0o640}


def test_saving_over_shards_leaves_none_of_them(model, copy):
    (copy / "notes.txt").write_text("mine")
    (copy / "runs").mkdir()
    (copy / "runs" / "log").write_text("mine too")
    model.save_pretrained(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors", "notes.txt", "runs"]
    assert (copy / "runs" / "log").read_text() == "mine too"
    assert not list(copy.parent.glob(".*saving*"))


@pytest.mark.parametrize("size", [0, -5, "5", "5 bytes", "GB"])
def test_shard_sizes_that_are_none(model, tmp_path, size):
    with pytest.raises(ValueError, match="max_shard_size"):
        model.save_pretrained(tmp_path / "model", max_shard_size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "../a.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..\\x.safetensors",
        "model.bin",
        "",
        7,
        None,
        "x\0.safetensors",
    ],
)
def test_shards_stay_in_the_directory(copy, name):
    change_index(copy, **{"cls.predictions.bias": name})
    with pytest.raises(ValueError, match="shard must be"):
        tfm.MaskedLM.from_pretrained(copy)


def test_indexes_that_lie(copy):
    change_index(copy, nowhere="model-00009-of-00009.safetensors")
    with pytest.raises(FileNotFoundError, match="00009"):
        tfm.MaskedLM.from_pretrained(copy)
    first = sorted(copy.glob("*.safetensors"))[0]
    change_index(copy, nowhere=first.name)
    with pytest.raises(ValueError, match="promises tensors"):
        tfm.MaskedLM.from_pretrained(copy)
    change_index(copy, nowhere="model-00009-of-00009.safetensors")
    shutil.copy(first, copy / "model-00009-of-00009.safetensors")
    with pytest.raises(ValueError, match="lies in both"):
        tfm.MaskedLM.from_pretrained(copy)
    for text in ("", "[]", "{", '{"weight_map": 3}', "[" * 100_000):
        (copy / tensors.INDEX).write_text(text)
        with pytest.raises(ValueError, match="damaged"):
            tfm.MaskedLM.from_pretrained(copy)


def write_header(path: Path, header: str, data: bytes = b"\0" * 64) -> None:
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


def test_headers_that_lie(tmp_path):
    path = tmp_path / "model.safetensors"
    one = '{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    for header, message in (
        (f'{{"a":{one},"a":{one}}}', "twice"),
        (f'{{"a":{one},"b":{{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}}}', "overlap"),
        ('{"a":{"dtype":"F32","shape":[4],"data_offsets":[60,76]}}', "truncated"),
        ('{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', "damaged"),
        ('{"a":7}', "damaged"),
        ('{"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}}', "damaged"),
    ):
        write_header(path, header)
        with pytest.raises(ValueError, match=message):
            tensors.index(path)
    write_header(path, f'{{"__metadata__":{{"format":"pt"}},"a":{one}}}')
    assert tensors.Reader(tensors.index(path))["a"].tolist() == [0.0] * 4


@settings(max_examples=100)
@given(st.data())
def test_damaged_files_raise_our_errors_only(sharded, tmp_path_factory, data):
    """Bytes of any file changed, cut off or doubled: a ValueError or FileNotFoundError, or a model."""
    target = shutil.copytree(sharded, tmp_path_factory.mktemp("fuzz") / "model")
    path = data.draw(st.sampled_from(sorted(target.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(content), 2000) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    path.write_bytes(bytes(content))
    with contextlib.suppress(ValueError, FileNotFoundError):
        Checkpoint(target).plan(tfm.MaskedLM)
    shutil.rmtree(target.parent)


SIZES = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1 << 20, 1 << 40, 10**30]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@given(
    st.dictionaries(st.sampled_from(sorted(SIZES | {"id2label", "hidden_act", "architectures"})), VALUES, min_size=1)
)
def test_strange_configs_raise_our_errors_only(sharded, tmp_path_factory, changes):
    target = shutil.copytree(sharded, tmp_path_factory.mktemp("fuzz") / "model")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    with contextlib.suppress(ValueError, FileNotFoundError):
        Checkpoint(target).plan(tfm.MaskedLM)
    shutil.rmtree(target.parent)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 10**9}, {"vocab_size": 10**12}, {"hidden_size": 10**9, "num_attention_heads": 1}]
)
def test_sizes_that_no_tensor_has(copy, changes):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match="disagrees"):
        tfm.MaskedLM.from_pretrained(copy)


def test_models_that_do_not_fit(sharded, monkeypatch):
    monkeypatch.setattr("keras_tfm.checkpoints.checkpoint.physical_memory", lambda: 10_000)
    with pytest.raises(ValueError, match="GiB"):
        tfm.MaskedLM.from_pretrained(sharded)


def test_values_that_are_not_finite_are_named(model, tmp_path):
    from safetensors.numpy import load_file, save_file

    model.save_pretrained(tmp_path)
    arrays = load_file(tmp_path / tensors.SINGLE)
    arrays["cls.predictions.bias"][3] = np.nan
    save_file(arrays, tmp_path / tensors.SINGLE, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=r"not finite in cls\.predictions\.bias"):
        tfm.MaskedLM.from_pretrained(tmp_path)


def test_bfloat16_goes_back_bit_for_bit(sharded, tmp_path):
    low = tfm.MaskedLM.from_pretrained(sharded, dtype="bfloat16")
    assert {keras.backend.standardize_dtype(v.dtype) for v in low.trainable_weights} == {"bfloat16"}
    low.save_pretrained(tmp_path / "low")
    assert json.loads((tmp_path / "low" / "config.json").read_text())["dtype"] == "bfloat16"
    again = tfm.MaskedLM.from_pretrained(tmp_path / "low", dtype="bfloat16")
    again.save_pretrained(tmp_path / "again")
    first, second = ((tmp_path / name / tensors.SINGLE).read_bytes() for name in ("low", "again"))
    assert first == second
    exact = tfm.MaskedLM.from_pretrained(tmp_path / "low")
    for a, b in zip(weights_of(exact), weights_of(low), strict=True):
        np.testing.assert_array_equal(a, b)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("where", ["save_file", "write_text", "_same", "_exchange", "mkdtemp"])
def test_interrupted_saves_change_nothing(model, copy, monkeypatch, where):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}

    def interrupt(*args, **options):
        raise Interrupted

    target = {
        "save_file": "safetensors.numpy.save_file",
        "write_text": "pathlib.Path.write_text",
        "mkdtemp": "tempfile.mkdtemp",
    }.get(where, f"keras_tfm.checkpoints.writing.{where}")
    (copy / "notes.txt").write_text("mine")
    before["notes.txt"] = b"mine"
    monkeypatch.setattr(target, interrupt)
    with pytest.raises(Interrupted):
        model.save_pretrained(copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert not list(copy.parent.glob(".*saving*"))


def test_where_directories_cannot_be_exchanged(model, copy, monkeypatch):
    monkeypatch.setattr(writing, "_exchange", lambda *paths: False)
    (copy / "notes.txt").write_text("mine")
    model.save_pretrained(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]
    tfm.MaskedLM.from_pretrained(copy)


def test_the_class_is_found(sharded, tmp_path):
    assert type(tfm.from_pretrained(sharded)) is tfm.MaskedLM
    tfm.from_pretrained(sharded).backbone.save_pretrained(tmp_path / "bare")
    assert type(tfm.from_pretrained(tmp_path / "bare")) is tfm.Backbone


def test_hub_ids(sharded, tmp_path, monkeypatch):
    """From the hub's cache, offline: the cache is laid out as `huggingface_hub` does."""
    hub, constants = pytest.importorskip("huggingface_hub"), pytest.importorskip("huggingface_hub.constants")
    repository, commit = tmp_path / "models--someone--tiny", "0" * 39 + "1"
    shutil.copytree(sharded, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    real = hub.snapshot_download
    monkeypatch.setattr(hub, "snapshot_download", lambda *a, **k: real(*a, cache_dir=tmp_path, **k))
    model = tfm.from_pretrained("someone/tiny")
    assert type(model) is tfm.MaskedLM
    assert type(tfm.MaskedLM.from_pretrained("someone/tiny", revision=commit)) is tfm.MaskedLM
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        tfm.from_pretrained("nobody/nothing")


def test_paths_are_not_hub_ids(sharded, tmp_path):
    for path in ("./nothing", "/nothing/there", tmp_path / "nothing", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="no directory"):
            tfm.from_pretrained(path)
    with pytest.raises(ValueError, match="revision"):
        tfm.from_pretrained(sharded, revision="main")


MEMORY = """
import resource, sys
import keras_tfm as tfm, keras
from keras_tfm.checkpoints import checkpoint
tfm.Backbone.from_pretrained(sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = tfm.Backbone.from_pretrained(sys.argv[1])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * model.count_params()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss has another unit")
def test_reading_takes_little_more_memory_than_the_weights(sharded, tmp_path):
    big = tfm.models.bert(num_layers=8, hidden_dim=768, num_heads=4, vocabulary_size=20_000)
    big.save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), str(sharded)],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
        check=True,
    )
    assert float(result.stdout.split()[-1]) < 1.3


def test_lora_is_merged_into_what_is_written(tmp_path):
    model = fill_weights(tfm.MaskedLM(tfm.models.bert(**TINY, pooler=False)))
    for block in model.backbone.blocks:
        block.attention.query.enable_lora(2)
        block.feed_forward.up.enable_lora(2)
    fill_weights(model, 0.2)
    ids = np.ones((2, 5), "int32")
    model.save_pretrained(tmp_path)
    again = tfm.MaskedLM.from_pretrained(tmp_path)
    assert len(again.weights) < len(model.weights)
    np.testing.assert_allclose(numpy(again(ids)), numpy(model(ids)), rtol=1e-5, atol=1e-5)


def test_quantized_weights_are_not_written_as_if_they_were_floats(model, tmp_path):
    quantized = tfm.MaskedLM.from_config(model.get_config())
    quantized.backbone.blocks[0].feed_forward.up.quantize("int8")
    with pytest.raises(ValueError, match="quantized to int8"):
        quantized.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_without_a_place_are_not_dropped(tmp_path):
    model = tfm.MaskedLM(tfm.models.bert(**TINY, pooler=False))
    model.backbone.blocks[0]._tracker.unlock()
    model.backbone.blocks[0].add_weight(name="mine", shape=(3,))
    with pytest.raises(ValueError, match=r"no place for .*mine"):
        model.save_pretrained(tmp_path / "model")
