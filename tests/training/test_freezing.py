"""Freezing by name: what the patterns pick, what training leaves alone, what a misspelt one says."""

import keras
import numpy as np
import pytest
from helpers import numpy
from hypothesis import given
from hypothesis import strategies as st

import keras_tfm
from keras_tfm.training import freeze, unfreeze
from keras_tfm.training.parts import named_layers
from training.models import SIZES, X, Y, classifier, writer


def trained_parts(model):
    """First and second steps of the paths of weights that training would change."""
    return {"/".join(v.path.split("/")[:2]) for v in model.trainable_variables}


def test_training_leaves_the_frozen_alone_bit_for_bit():
    model = classifier()
    assert set(freeze(model, "embeddings", "blocks[:-1]", "blocks[1].feed_forward")) == {
        "backbone.token_embedding",
        "backbone.position_embedding",
        "backbone.token_type_embedding",
        "backbone.embedding_norm",
        "backbone.blocks[0]",
        "backbone.blocks[1].feed_forward",
    }
    before = {v.path: numpy(v) for v in model.weights}
    model.compile(keras.optimizers.Adam(1e-2), metrics=[])
    model.train_on_batch(X, Y)
    changed = {
        "/".join(path.split("/")[:2]) for path in before if not np.array_equal(before[path], weight(model, path))
    }
    assert changed == {
        "block_1/attention",
        "block_1/attention_residual",
        "block_1/feed_forward_residual",
        "pooler/kernel",
        "pooler/bias",
        "head/logits",
    }
    assert changed == trained_parts(model)


def weight(model, path):
    return numpy(next(v for v in model.weights if v.path == path))


def test_after_compiling():
    model = classifier(num_layers=1)
    model.compile(keras.optimizers.SGD(0.1), metrics=[])
    model.train_on_batch(X, Y)
    freeze(model, "backbone")
    model.compile(keras.optimizers.SGD(0.1), metrics=[])
    before = [numpy(v) for v in model.backbone.weights]
    model.train_on_batch(X, Y)
    for a, b in zip(before, model.backbone.weights, strict=True):
        np.testing.assert_array_equal(a, numpy(b))


@pytest.mark.once
def test_backbone_and_back():
    model = classifier(num_layers=3)
    everything = trained_parts(model)
    assert freeze(model, "backbone") == ["backbone"]
    assert trained_parts(model) == {"head/logits"}
    unfreeze(model, "blocks[-1].attention", "pooler")
    assert trained_parts(model) == {"head/logits", "block_2/attention", "pooler/kernel", "pooler/bias"}
    assert trained_parts(model.backbone) == {"block_2/attention", "pooler/kernel", "pooler/bias"}
    unfreeze(model, "backbone")
    assert trained_parts(model) == everything
    freeze(model, "head")
    assert everything - trained_parts(model) == {"head/logits"}
    bare = model.backbone
    freeze(bare, "backbone")
    assert not bare.trainable_variables


@pytest.mark.once
@given(start=st.integers(-5, 5), stop=st.integers(-5, 5), step=st.sampled_from([None, 1, 2, -1, -2]))
def test_slices_are_pythons(start, stop, step):
    model = BLOCKS
    unfreeze(model, "backbone")
    text = f"{start}:{stop}" + ("" if step is None else f":{step}")
    expected = {f"blocks[{i}]" for i in range(4)[slice(start, stop, step)]}
    if not expected:
        with pytest.raises(ValueError, match="matches"):
            freeze(model, f"blocks[{text}]")
        return
    assert set(freeze(model, f"blocks[{text}]")) == expected
    assert {i for i in range(4) if not model.blocks[i].trainable_variables} == {int(name[7:-1]) for name in expected}


BLOCKS = keras_tfm.models.gpt(num_layers=4, **SIZES)


@pytest.mark.once
def test_two_stacks_and_shared_blocks():
    model = keras_tfm.models.transformer(num_layers=2, **SIZES)
    names = freeze(model, "query")
    assert len(names) == 6
    assert sum("cross_attention" in name for name in names) == 2
    assert freeze(model, "decoder_blocks[*].cross_attention.key") == [
        "decoder_blocks[0].cross_attention.key",
        "decoder_blocks[1].cross_attention.key",
    ]
    shared = keras_tfm.models.bert(num_layers=3, layer_groups=1, **SIZES)
    freeze(shared, "blocks[-1]")  # which is every block
    assert not any(part.startswith("block_0") for part in trained_parts(shared))


@pytest.mark.once
@pytest.mark.parametrize(
    "pattern, says",
    [
        ("embedding", "Did you mean 'embeddings'"),
        ("querry", "Did you mean 'query'"),
        ("blocks[2]", "matches 'blocks\\[2\\]'. Did you mean"),
        ("blocks[-3]", "matches"),
        ("blocks[0", "A pattern is attribute names"),
        ("blocks[::0]", "A pattern is attribute names"),
        ("", "A pattern is attribute names"),
        ("dropout_layer", "No layer with weights"),
    ],
)
def test_refuses(pattern, says):
    with pytest.raises(ValueError, match=says):
        freeze(classifier(fill=0), pattern)


@pytest.mark.once
def test_refuses_nothing_and_other_models():
    with pytest.raises(ValueError, match="Name the parts"):
        freeze(classifier(fill=0))
    with pytest.raises(ValueError, match="must be a keras_tfm Backbone"):
        freeze(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), "head")
    with pytest.raises(ValueError, match="No layer with weights"):
        freeze(writer(fill=0), "head")  # its logits come from the token table


@pytest.mark.once
def test_every_weight_has_a_path():
    for model in (classifier(fill=0), keras_tfm.models.transformer(num_layers=1, position="relative", **SIZES)):
        found = {id(v) for layer in named_layers(model).values() for v in layer.weights}
        assert found == {id(v) for v in model.weights}
