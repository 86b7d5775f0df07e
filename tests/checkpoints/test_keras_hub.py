"""KerasHub's models, taken over: the same outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, fill_weights, numpy

import keras_tfm as tfm
from keras_tfm.architectures.keras_hub import HUB_FAMILIES

hub = pytest.importorskip("keras_hub")
gelu_approximate = pytest.importorskip("keras_hub.src.utils.keras_utils").gelu_approximate
pytestmark = pytest.mark.slow
SIZES = dict(vocabulary_size=43, num_layers=2, hidden_dim=24, intermediate_dim=40)
ENCODER = dict(**SIZES, num_heads=3, max_sequence_length=16)
DECODER = dict(**SIZES, num_query_heads=4, num_key_value_heads=2)
CASES = {
    "BertBackbone": dict(**ENCODER, num_segments=3),
    "RobertaBackbone": ENCODER,
    "DistilBertBackbone": ENCODER,
    "AlbertBackbone": dict(**ENCODER, embedding_dim=12),
    "GPT2Backbone": ENCODER,
    "OPTBackbone": ENCODER,
    "LlamaBackbone": dict(**DECODER, rope_max_wavelength=5000),
    "Llama3Backbone": dict(
        **DECODER,
        tie_word_embeddings=True,
        rope_frequency_adjustment_factor=8.0,
        rope_low_freq_factor=1.0,
        rope_high_freq_factor=4.0,
        rope_pretraining_sequence_length=16,
    ),
    "MistralBackbone": dict(**DECODER, sliding_window=4),
    "QwenBackbone": dict(**DECODER, tie_word_embeddings=False),
    "GemmaBackbone": dict(**DECODER, head_dim=8),
    "T5Backbone": dict(**SIZES, num_heads=3, key_value_dim=8, activation=gelu_approximate),
    "BartBackbone": ENCODER,
    "ViTBackbone": dict(
        image_shape=(12, 8, 5),
        patch_size=(4, 2),
        num_layers=2,
        hidden_dim=24,
        num_heads=3,
        mlp_dim=40,
        dropout_rate=0.0,
    ),
}


def backbone(name: str, **changes):
    dropout = {} if "dropout_rate" in CASES[name] else {"dropout": 0.0}
    return fill_weights(getattr(hub.models, name)(**{**CASES[name], **dropout, **changes}), 0.3)


def batch(model) -> tuple[dict, dict]:
    """Tokens as KerasHub takes them, and as we do."""
    rng = np.random.default_rng(0)
    if not isinstance(model.input, dict):
        images = rng.normal(size=(2, *model.input.shape[1:])).astype("float32")
        return images, {"images": images}
    mask = np.ones((2, 9), bool)
    mask[1, 6:] = False
    ids = np.where(mask, rng.integers(3, 43, mask.shape), 1).astype("int32")
    theirs = {"token_ids": ids, "padding_mask": mask.astype("int32")}
    ours = {"token_ids": ids, "padding_mask": mask}
    names = {getattr(x, "name", key) for key, x in model.input.items()} | set(model.input)
    if "segment_ids" in names:
        types = rng.integers(0, 2, mask.shape).astype("int32")
        theirs["segment_ids"], ours["token_type_ids"] = types, types
    if "decoder_token_ids" in names:
        theirs = {f"encoder_{key}": value for key, value in theirs.items()}
        answer, real = rng.integers(3, 43, (2, 5)).astype("int32"), np.ones((2, 5), bool)
        theirs |= {"decoder_token_ids": answer, "decoder_padding_mask": real.astype("int32")}
        ours |= {"decoder_token_ids": answer, "decoder_padding_mask": real}
    return theirs, ours


def main_output(outputs):
    if isinstance(outputs, dict):
        return outputs.get("decoder_sequence_output", outputs.get("sequence_output"))
    return outputs


def assert_same(ours, theirs, taken):
    mask = taken.get("padding_mask", np.ones((), bool))  # images have none
    ours, theirs = numpy(ours), numpy(theirs)
    if ours.shape[:2] == mask.shape:
        ours, theirs = ours[mask], theirs[mask]
    assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", HUB_FAMILIES)
def test_backbones_give_the_same(name, tmp_path):
    theirs = backbone(name)
    ours = tfm.from_keras_hub(theirs)
    given, taken = batch(theirs)
    expected = theirs(given)
    got = ours(taken)
    assert_same(main_output(got), main_output(expected), taken)
    if isinstance(expected, dict) and "pooled_output" in expected:
        assert_same(got["pooled_output"], expected["pooled_output"], taken)
    ours.save_pretrained(tmp_path)
    assert_same(main_output(tfm.Backbone.from_pretrained(tmp_path)(taken)), main_output(got), taken)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Albert"])
def test_text_classifiers_give_the_same(family):
    cls = getattr(hub.models, f"{family}TextClassifier")
    theirs = fill_weights(cls(backbone(f"{family}Backbone"), num_classes=5, preprocessor=None), 0.3)
    ours = tfm.from_keras_hub(theirs)
    given, taken = batch(theirs)
    assert_same(ours(taken), theirs(given), taken)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(use_class_token=False, use_patch_bias=False, use_mha_bias=False, use_mlp_bias=False),
        dict(data_format="channels_first", image_shape=(5, 12, 8)),
    ],
    ids=["plain", "without", "channels first"],
)
@pytest.mark.parametrize("head", [dict(pooling="token"), dict(pooling="gap", intermediate_dim=7)], ids=str)
def test_image_classifiers_give_the_same(options, head):
    theirs = hub.models.ViTImageClassifier(backbone("ViTBackbone", **options), num_classes=6, preprocessor=None, **head)
    ours = tfm.from_keras_hub(fill_weights(theirs, 0.3))
    given, taken = batch(theirs)
    if options.get("data_format") == "channels_first":
        if BACKEND == "tensorflow":
            pytest.skip("TensorFlow has no such convolution on a CPU")
        taken = {"images": given.transpose(0, 2, 3, 1)}
    assert_same(ours(taken), theirs(given), taken)


@pytest.mark.parametrize("family", ["GPT2", "OPT", "Llama", "Mistral", "Qwen", "Gemma"])
def test_language_models_give_the_same(family):
    theirs = getattr(hub.models, f"{family}CausalLM")(backbone(f"{family}Backbone"), preprocessor=None)
    ours = tfm.from_keras_hub(theirs)
    assert isinstance(ours, tfm.CausalLM)
    given, taken = batch(theirs)
    assert_same(ours(taken), theirs(given), taken)


def test_what_is_not_taken_over():
    with pytest.raises(ValueError, match="known are"):
        tfm.from_keras_hub(keras.Sequential())
    softmax = hub.models.BertTextClassifier(
        backbone("BertBackbone"), num_classes=2, activation="softmax", preprocessor=None
    )
    with pytest.raises(ValueError, match="activation"):
        tfm.from_keras_hub(softmax)
    sandwich = hub.models.GemmaBackbone(**CASES["GemmaBackbone"], use_post_ffw_norm=True)
    with pytest.raises(ValueError, match="use_post_ffw_norm"):
        tfm.from_keras_hub(sandwich)
