"""Files of models that training changed: updates, quantized or not, and what is frozen come back as they were."""

import keras
import numpy as np
import pytest
from helpers import assert_close, numpy

import keras_tfm
from keras_tfm.models.named_inputs import NamedInputsModel
from keras_tfm.training import add_lora, freeze, set_adapter, unfreeze
from training.models import SIZES, X, classifier, not_jax, quickly, writer
from training.test_lora import shaken

pytestmark = pytest.mark.skipif(
    "restore_changes" not in NamedInputsModel.from_config.__func__.__code__.co_names,
    reason="models do not keep what training changed yet",
)


def reloaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def trained(model):
    return [v.path for v in model.trainable_variables]


@pytest.mark.parametrize("mode", [pytest.param(None, marks=not_jax), pytest.param("int8", marks=quickly)])
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_updates_come_back(mode, tmp_path):
    model = classifier(num_layers=1)
    if mode is not None:
        model.quantize(mode)
    targets = ["query", "feed_forward.*"]
    add_lora(model, 3, alpha=5, targets="value", name="first")
    add_lora(model, 2, targets=targets, dora=mode is None, rank_stabilized=True, dropout=0.0 if mode else 0.1)
    shaken(model)
    model.compile(keras.optimizers.Adam(0.01), metrics=[])
    model.optimizer.build(model.trainable_variables)
    for variable in model.optimizer.variables[2:]:  # behind the iteration and the rate
        variable.assign(np.random.default_rng(0).random(variable.shape))
    again = reloaded(model, tmp_path)
    assert trained(again) == trained(model)
    np.testing.assert_array_equal(numpy(again(X)), numpy(model(X)))
    for a, b in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    for a, b in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(numpy(a), numpy(b))
    set_adapter(again, "first")
    set_adapter(model, "first")
    np.testing.assert_array_equal(numpy(again(X)), numpy(model(X)))
    assert trained(again) == trained(model)


@pytest.mark.once
def test_training_goes_on_from_weights(tmp_path):
    """Keras's own LoRA comes back from weights with A and B of zeros, which have no gradient."""
    model = classifier(num_layers=1)
    add_lora(model, 2)
    shaken(model)
    model.save_weights(tmp_path / "one.weights.h5")
    again = classifier(num_layers=1)
    add_lora(again, 2)
    again.load_weights(tmp_path / "one.weights.h5")
    assert_close(again(X), model(X), 1e-6)
    with pytest.raises(ValueError, match="could not be loaded"):
        classifier(num_layers=1).load_weights(tmp_path / "one.weights.h5")


@pytest.mark.once
def test_what_is_frozen_comes_back(tmp_path):
    model = classifier(num_layers=3)
    freeze(model, "embeddings", "blocks[:2]", "head")
    unfreeze(model, "blocks[1].attention.query")
    model.backbone.blocks[2].feed_forward.up.bias.trainable = False
    again = reloaded(model, tmp_path)
    assert trained(again) == trained(model)
    assert not again.backbone.blocks[0].trainable
    assert not again.head.trainable
    assert "changes" not in classifier().get_config()
    everything = reloaded(classifier(num_layers=1), tmp_path)
    assert all(v.trainable for v in everything.weights)


@pytest.mark.once
def test_within_another_model(tmp_path):
    backbone = keras_tfm.models.gpt(num_layers=2, **SIZES)
    freeze(backbone, "blocks[0]")
    model = keras_tfm.CausalLM(backbone)  # which leaves its parts as they are
    assert not any(path.startswith("block_0") for path in trained(model))
    assert trained(reloaded(model, tmp_path)) == trained(model)
    backbone.trainable = False
    assert not trained(reloaded(keras_tfm.CausalLM(backbone), tmp_path))


@pytest.mark.once
def test_published_format_is_merged(tmp_path):
    model = writer()
    add_lora(model, 2, dora=True)
    shaken(model)
    model.save_pretrained(tmp_path / "merged")
    again = keras_tfm.CausalLM.from_pretrained(tmp_path / "merged")
    assert_close(again(X), model(X), 1e-5)
