"""Files that hold one table under several names, or under another than the usual one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import assert_close, numpy

import keras_tfm as tfm
from keras_tfm import Backbone, Seq2SeqLM

INPUTS = {
    "token_ids": np.arange(12, dtype="int32").reshape(2, 6),
    "decoder_token_ids": np.arange(8, dtype="int32").reshape(2, 4),
}
CONFIG = dict(
    kind="encoder_decoder",
    vocabulary_size=43,
    hidden_dim=24,
    num_layers=2,
    num_heads=3,
    head_dim=6,
    intermediate_dim=40,
    position="relative",
    norm="rms_norm",
    use_bias=False,
    attention={"scale": 1.0},
    gated=True,
    activation="gelu_tanh",
)
NAMES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def saved(directory, config: dict, tensors: dict, **told):
    """A T5 in `directory` whose table goes by these names, with its logits."""
    from safetensors.numpy import load_file, save_file

    model = Seq2SeqLM(Backbone(dict(CONFIG, **config)))
    for variable in model.weights:
        variable.assign(variable + 0.1 * np.random.default_rng(len(variable.shape)).normal(size=variable.shape))
    model.save_pretrained(directory)
    path = directory / "model.safetensors"
    arrays = load_file(path)
    table = arrays.pop("shared.weight")
    arrays |= {name: table + shift for name, shift in tensors.items()}
    save_file(arrays, path)
    changed = json.loads((directory / "config.json").read_text()) | told
    (directory / "config.json").write_text(json.dumps(changed))
    return numpy(model(INPUTS))


@pytest.mark.parametrize(
    "names", [NAMES[1:2], NAMES[2:], NAMES[3:], NAMES], ids=lambda names: names[0] + f" {len(names)}"
)
def test_one_table_by_any_of_its_names(names, tmp_path):
    logits = saved(tmp_path, {"tie_embeddings": True}, dict.fromkeys(names, 0.0))
    again = Seq2SeqLM.from_pretrained(tmp_path)
    assert again.backbone.config.tie_embeddings
    assert_close(again(INPUTS), logits)


def test_a_head_of_its_own_is_one_whatever_config_json_says(tmp_path):
    """As in FLAN-T5 files that `transformers` 5 has written: tie_word_embeddings is true."""
    logits = saved(
        tmp_path,
        {"tie_embeddings": False},
        {"shared.weight": 0.0},
        tie_word_embeddings=True,
        scale_decoder_outputs=False,
    )
    again = Seq2SeqLM.from_pretrained(tmp_path)
    assert not again.backbone.config.tie_embeddings
    assert_close(again(INPUTS), logits)


def test_tables_that_differ_are_not_one(tmp_path):
    saved(tmp_path, {"tie_embeddings": True}, {"shared.weight": 0.0, "encoder.embed_tokens.weight": 0.5})
    with pytest.raises(ValueError, match=r"shared\.weight and encoder\.embed_tokens\.weight differ"):
        tfm.Backbone.from_pretrained(tmp_path)


def test_the_first_version_of_t5_scales_what_its_head_reads(tmp_path):
    """Published config.json files of version 1.0 say nothing of it, those of 1.1 say that the head is not tied."""
    saved(tmp_path, {"tie_embeddings": True, "logit_scale": 24**-0.5}, {"shared.weight": 0.0})
    for told, scale in (({}, 24**-0.5), ({"tie_word_embeddings": False}, None)):
        config = json.loads((tmp_path / "config.json").read_text())
        for key in ("tie_word_embeddings", "scale_decoder_outputs"):
            config.pop(key, None)
        assert tfm.architectures.find("t5").read_config(config | told)[0].logit_scale == scale


def test_one_rate_of_dropout_for_all_of_t5(tmp_path):
    saved(tmp_path / "one", {"dropout": 0.2, "activation_dropout": 0.2}, {"shared.weight": 0.0})
    config = Seq2SeqLM.from_pretrained(tmp_path / "one").backbone.config
    assert (config.dropout, config.attention_dropout, config.activation_dropout) == (0.2, None, 0.2)
    changed = Seq2SeqLM.from_pretrained(tmp_path / "one", dropout=0.3)
    changed.save_pretrained(tmp_path / "other")
    config = Seq2SeqLM.from_pretrained(tmp_path / "other").backbone.config
    assert (config.dropout, config.activation_dropout) == (0.3, 0.3)
