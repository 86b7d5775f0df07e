"""Four-bit weights against `transformers`' own reading of them, and a gpt-oss directory that has them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers import numpy
from safetensors.numpy import load_file, save_file

import keras_tfm as tfm
from keras_tfm.checkpoints.mxfp4 import VALUES, decode

from .families import GOLDEN

PUBLISHED = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}


def packed(groups: int, rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (groups, rows, columns // 32, 16), np.uint8)
    return blocks, random.integers(118, 128, blocks.shape[:-1], np.uint8)


def test_by_the_definition():
    blocks, scales = packed(2, 3, 64, 0)
    values = decode(blocks, scales).astype(np.float32)
    assert values.shape == (2, 64, 3)
    for group, row, column in np.ndindex(2, 3, 64):
        byte = int(blocks[group, row, column // 32, column % 32 // 2])
        code = byte >> 4 if column % 2 else byte & 15
        assert values[group, column, row] == VALUES[code] * 2.0 ** (int(scales[group, row, column // 32]) - 127)


def test_as_transformers_reads_them():
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = packed(3, 5, 96, 1)
    expected = theirs.convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales))
    np.testing.assert_array_equal(decode(blocks, scales).astype(np.float32), expected.float().numpy())


def quantized(folder, **more) -> dict[str, np.ndarray]:
    """The golden gpt-oss with experts in four bits; gives the experts' values."""
    shutil.copytree(GOLDEN / "gpt_oss", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 32, "intermediate_size": 64, "quantization_config": {**PUBLISHED, **more}}
    (folder / "config.json").write_text(json.dumps(config))
    tensors, values = {}, {}
    for number, (name, array) in enumerate(load_file(folder / "model.safetensors").items()):
        width, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
        shape = tuple(width if size == 24 else size for size in array.shape)
        shape = {"gate_up_proj_bias": (experts, 2 * inner), "down_proj_bias": (experts, width)}.get(
            name.rpartition(".")[2], shape
        )
        if name.endswith(("gate_up_proj", "down_proj")):
            rows, columns = (2 * inner, width) if "gate_up" in name else (width, inner)
            blocks, scales = packed(experts, rows, columns, number)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            values[name] = decode(blocks, scales)
        else:
            tensors[name] = np.random.default_rng(number).normal(0, 0.2, shape).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return values


def test_a_directory_reads_and_is_written_plain(tmp_path):
    values = quantized(tmp_path / "packed")
    model = tfm.from_pretrained(tmp_path / "packed")
    assert np.isfinite(numpy(model(np.arange(1, 8)[None]))).all()
    model.save_pretrained(tmp_path / "plain")
    assert "quantization_config" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    written = load_file(tmp_path / "plain" / "model.safetensors")
    for name, expected in values.items():
        np.testing.assert_array_equal(written[name], expected.astype(np.float32))


def test_what_is_not_read(tmp_path):
    quantized(tmp_path / "other", quant_method="gptq")
    with pytest.raises(ValueError, match="quantized by 'gptq'; only 'mxfp4'"):
        tfm.from_pretrained(tmp_path / "other")
    quantized(tmp_path / "torn")
    tensors = load_file(tmp_path / "torn" / "model.safetensors")
    name = next(name for name in tensors if name.endswith("_scales"))
    for damaged in (tensors[name][:, :-1], tensors[name].astype(np.int32)):
        save_file({**tensors, name: np.ascontiguousarray(damaged)}, tmp_path / "torn" / "model.safetensors")
        with pytest.raises(ValueError, match="with scales of shape"):
            tfm.from_pretrained(tmp_path / "torn")
    del tensors[name]
    save_file(tensors, tmp_path / "torn" / "model.safetensors")
    with pytest.raises(ValueError, match="with scales of shape"):
        tfm.from_pretrained(tmp_path / "torn")
