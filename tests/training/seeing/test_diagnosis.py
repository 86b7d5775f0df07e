import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy

import keras_tfm
from keras_tfm.training import diagnose, freeze, layer_rates
from keras_tfm.training.seeing.probing import Probe
from training.models import SIZES, X, Y, classifier, not_jax, writer

TARGETS = np.random.default_rng(1).integers(1, 11, X.shape).astype("int32")
TEXTS = ["some words", "other words that go on", "few", "many more words of these"] * 2


def fresh(**options):
    model = classifier(fill=0, **options)
    model.compile(keras.optimizers.Adam(0.01))
    return model


def kinds(model, batch):
    return [(finding.kind, finding.where) for finding in diagnose(model, batch)]


def pairs():
    model = keras_tfm.Seq2SeqLM(keras_tfm.models.transformer(num_layers=1, **SIZES))
    return model, ({"token_ids": X, "decoder_token_ids": X}, TARGETS)


@pytest.mark.parametrize(
    "make", [lambda: (fresh(), (X, Y)), lambda: (writer(fill=0), X), pytest.param(pairs, marks=not_jax)]
)
def test_nothing_is_found_in_healthy_models(make):
    model, batch = make()
    model.compile(keras.optimizers.Adam(0.01))
    found = diagnose(model, batch)
    assert not found, str(found)
    assert str(found) == "Nothing looks wrong in 17 checks."
    if BACKEND != "torch":
        return  # what training gives does not depend on it, and takes long to compile
    model.fit(*(batch if isinstance(batch, tuple) else (batch,)), epochs=4, verbose=0)
    found = diagnose(model, batch)
    assert not found, str(found)


def test_batches():
    """What would crash a lookup or a loss is found before it is computed."""
    model = fresh()
    wrong = Y.copy()
    wrong[5] = 3
    (finding,) = diagnose(model, (X, wrong))
    assert (finding.kind, finding.where, finding.value) == ("labels", "row 5", 3)
    assert "0 to 2" in str(finding)
    ids = X.copy()
    ids[2, 3] = 11
    (finding,) = diagnose(model, (ids, Y))
    assert (finding.kind, finding.where, finding.value) == ("token_ids", "row 2", 11)
    assert "11" in finding.message
    assert kinds(model, (ids, wrong)) == [("labels", "row 5"), ("token_ids", "row 2")]
    assert kinds(model, (X, ["a"] * 8)) == [("batch", "the batch")]
    assert kinds(model, X) == [("labels", "the batch")]
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrong[5] = -7
    assert kinds(model, (X, wrong)) == [("labels", "row 5")]


def test_padding_and_labels_of_it():
    model = writer(fill=0)
    model.compile(keras.optimizers.Adam(0.01))
    mask = np.ones(X.shape, bool)
    mask[3] = False
    mask[4, 3:] = False
    labels = TARGETS.copy()
    labels[3] = -100
    inputs = {"token_ids": X, "padding_mask": mask}
    assert [found[:2] for found in diagnose(model, (inputs, labels))] == [
        ("padding", "row 3"),
        ("padded_labels", "row 4"),
    ]
    found = diagnose(model, (inputs, np.full(X.shape, -100)))
    assert [finding.kind for finding in found] == ["no_labels", "padding", "no_gradient"]


@not_jax
def test_rows_are_counted_as_they_were_given():
    tokenizer = keras_tfm.data.train_tokenizer(TEXTS, 60, kind="wordpiece", max_length=6)
    model = classifier(fill=0, vocabulary_size=tokenizer.vocabulary_size)
    model.tokenizer = tokenizer
    model.compile(keras.optimizers.Adam(0.01))
    assert not diagnose(model, (TEXTS, Y)), "raw rows"
    assert not diagnose(model, model.dataset(TEXTS, Y, batch_size=8)), "a dataset"
    assert not diagnose(model, model.dataset(TEXTS, Y, batch_size=8)[0]), "an element of one"
    for row in range(8):  # batches are grouped by length
        wrong = Y.copy()
        wrong[row] = 9
        assert kinds(model, (TEXTS, wrong)) == [("labels", f"row {row}")]


def planted(change, model=None, **options):
    model = model or fresh(**options)
    change(model)
    return model, kinds(model, (X, Y))


def put(variable, value):
    variable.assign(np.full(variable.shape, value, "float32"))


def test_where_it_is_not_finite():
    def overflow(model):  # a finite weight, and an output beyond float32
        block = model.backbone.blocks[1]
        put(block.feed_forward.up.kernel, 1e30)
        put(block.feed_forward.down.kernel, 1e30)

    model, found = planted(overflow)
    assert found == [("not_finite", "blocks.1.feed_forward")]
    put(model.backbone.blocks[0].attention.query.kernel, np.nan)
    assert kinds(model, (X, Y)) == [("not_finite", "blocks.0.attention")]
    assert "query/kernel" in str(diagnose(model, (X, Y)))


@not_jax
def test_layers_out_of_proportion():
    options = {"norm_placement": "pre", "final_norm": True, "embedding_norm": False}
    _, found = planted(
        lambda model: model.backbone.blocks[1].feed_forward.down.kernel.assign(
            model.backbone.blocks[1].feed_forward.down.kernel * 1e8
        ),
        **options,
    )
    assert ("exploding_activation", "blocks.1.feed_forward") in found
    _, found = planted(lambda model: put(model.backbone.blocks[0].feed_forward.down.kernel, 0.0), **options)
    assert not [where for kind, where in found if kind == "exploding_activation"]
    _, found = planted(lambda model: put(model.backbone.blocks[1].attention_residual.output_norm.gamma, 0.0))
    assert ("dead_norm", "blocks.1") in found
    _, found = planted(lambda model: put(model.backbone.blocks[1].feed_forward_residual.output_norm.gamma, 0.0))
    assert ("vanishing_activation", "blocks.1") in found
    assert ("vanishing_gradient", "blocks.0.attention") in found


@not_jax
def test_units_and_heads():
    _, found = planted(lambda model: put(model.backbone.blocks[0].feed_forward.up.bias, -100.0), activation="relu")
    assert ("dead_units", "blocks.0.feed_forward") in found
    assert not [where for kind, where in found if kind == "dead_units" and "blocks.1" in where]

    def look_at_one_key(model):
        attention = model.backbone.blocks[0].attention
        for projection in (attention.query, attention.key):
            kernel = np.random.default_rng(0).normal(size=projection.kernel.shape)
            flat = kernel.reshape(8, 2, 4)
            flat[:, 0] *= 100.0
            flat[:, 1] *= 0.0
            projection.kernel.assign(flat.reshape(kernel.shape))

    _, found = planted(look_at_one_key)
    assert ("saturated_attention", "blocks.0.attention, head 0") in found
    assert ("uniform_attention", "blocks.0.attention, head 1") in found


@not_jax
def test_heads_and_losses():
    def frozen_head(model):
        freeze(model, "head")
        model.compile(keras.optimizers.Adam(0.01))

    assert planted(frozen_head)[1] == [("untrained_head", "head")]
    assert planted(lambda model: put(model.head.logits.bias, 0.5))[1] == []

    def sure(model):
        model.head.logits.bias.assign([-9.0, 9.0, -9.0])

    assert ("initial_loss", "the loss") in planted(sure)[1]

    def idle(model):
        model.optimizer.build(model.trainable_variables)
        model.optimizer._iterations.assign(150)

    found = planted(idle)[1]
    assert ("untrained_head", "head") in found

    def idle_with_biases(model):
        idle(model)
        put(model.head.logits.kernel, 0.0)
        put(model.head.logits.bias, 1.0)

    assert ("no_progress", "the loss") in planted(idle_with_biases)[1]


@not_jax
def test_optimizers():
    model = fresh()
    for optimizer, wrong in (
        (keras.optimizers.Adam(0.0), True),
        (keras.optimizers.AdamW(1.0), True),
        (keras.optimizers.SGD(100.0), True),
        (keras.optimizers.SGD(1.0), False),
        (keras.optimizers.Adam(keras_tfm.training.WarmupSchedule(1e-3, 10, 100)), False),
        (layer_rates(model, 0.5, keras.optimizers.AdamW(1e-3)), False),
        (layer_rates(model, 0.5, keras.optimizers.AdamW(1.0)), True),
    ):
        model.compile(optimizer)
        assert [kind for kind, _ in kinds(model, (X, Y))] == ["learning_rate"] * wrong
    model.trainable = False
    model.compile(keras.optimizers.Adam(0.01))
    assert ("frozen", "the model") in kinds(model, (X, Y))


def test_the_model_is_left_as_it_was():
    """And the gradients are those of the step that `fit` makes."""
    model = keras_tfm.QuestionAnswerer(keras_tfm.models.bert(num_layers=1, **{**SIZES, "dropout": 0.0}))
    model.compile(keras.optimizers.SGD(1.0), metrics=None)
    labels = {"start_logits": Y, "end_logits": Y + 1}
    inputs = {"token_ids": X}
    if BACKEND == "torch":
        import torch
    before = [numpy(v) for v in model.weights]
    seeds = None if BACKEND != "torch" else torch.get_rng_state().clone()
    gradients = Probe(model, (inputs, labels)).gradients()
    metrics = [numpy(v) for metric in model.metrics for v in metric.variables]
    assert not any(np.any(value) for value in metrics)
    for old, variable in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, numpy(variable))
    assert seeds is None or torch.equal(seeds, torch.get_rng_state())
    trained = {v.path: numpy(v) for v in model.trainable_variables}
    model.train_on_batch(inputs, labels)
    for variable in model.trainable_variables:
        step = trained[variable.path] - numpy(variable)
        np.testing.assert_allclose(gradients[variable.path], step, atol=2e-6, err_msg=variable.path)


@pytest.mark.once
def test_entropies_are_over_what_a_query_sees():
    """Queries of zeros look everywhere alike, whatever hides some of the keys: padding, causality, segments, a window."""
    mask = np.ones(X.shape, bool)
    mask[1, 3:] = False
    mask[2, :2] = False
    segments = np.array([[0, 0, 1, 1, 1]] * 8, "int32")
    for options in ({}, {"window": 2}):
        model = keras_tfm.CausalLM(keras_tfm.models.gpt(num_layers=1, **{**SIZES, **options}))
        put(model.backbone.blocks[0].attention.query.kernel, 0.0)
        for extra in ({}, {"padding_mask": mask}, {"segment_ids": segments}):
            found = Probe(model, ({"token_ids": X, **extra}, TARGETS)).attention()["blocks.0.attention"]
            assert found.entropy.shape[1] == {"segment_ids": 24, "padding_mask": 28}.get(next(iter(extra), ""), 32)
            np.testing.assert_allclose(found.entropy, 1.0, atol=1e-5)
