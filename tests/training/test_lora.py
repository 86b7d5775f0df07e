"""LoRA: the papers' formulas, a base that stays bit for bit, merging, quantized bases, several updates."""

import zlib

import keras
import numpy as np
import pytest
from helpers import assert_close, normal, numpy
from hypothesis import given
from hypothesis import strategies as st

import keras_tfm
from keras_tfm.training import add_lora, freeze, merge_lora, set_adapter
from keras_tfm.training.lora import adapted
from keras_tfm.training.low_rank import LowRank, low_rank
from training.models import SIZES, X, Y, classifier, quickly, writer

TARGETS = ["query", "output_projection", "feed_forward.*", "pooler"]
OPTIONS = {"rank": 2, "alpha": 3.0, "rank_stabilized": False, "dropout": 0.0, "dora": False}


def is_update(variable):
    return "lora_" in variable.path


def shaken(model, size=0.3):
    """The model with updates that do something."""
    for variable in filter(is_update, model.weights):
        rng = np.random.default_rng(zlib.crc32(variable.path.encode()))
        variable.assign(
            (numpy(variable) if variable.path.endswith("magnitude") else 0) + size * rng.normal(size=variable.shape)
        )
    return model


# The layer ----------------------------------------------------------------------------------------------------------------


def projection(kind, activation=None):
    if kind == "dense":
        layer, shape = keras.layers.Dense(6, activation=activation), (2, 3, 4)
    elif kind == "into_heads":
        layer, shape = keras.layers.EinsumDense("btd,dnh->btnh", (None, 2, 3), bias_axes="nh"), (2, 3, 4)
    else:
        layer, shape = keras.layers.EinsumDense("btnh,nhd->btd", (None, 6), bias_axes="d"), (2, 3, 2, 2)
    layer.build(shape)
    layer.bias.assign(normal(*layer.bias.shape, seed=3))
    return layer, normal(*shape, seed=4)


@pytest.mark.parametrize("kind", ["dense", "into_heads", "out_of_heads"])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_is_the_papers_formula(kind, dora, rank_stabilized):
    layer, x = projection(kind, activation="tanh" if kind == "dense" else None)
    kernel, bias = numpy(layer.kernel), numpy(layer.bias)
    before = numpy(layer(x))
    low_rank(layer).add_adapter("one", **{**OPTIONS, "dora": dora, "rank_stabilized": rank_stabilized})
    layer.use_adapter("one")
    assert_close(layer(x), before)  # B is zero, the magnitude that of the kernel
    shaken(layer)
    adapter = layer.adapter
    scale = 3.0 / (np.sqrt(2) if rank_stabilized else 2)
    w = kernel.reshape(4, 6) + scale * numpy(adapter.a) @ numpy(adapter.b)
    if dora:
        w = numpy(adapter.magnitude) * w / np.linalg.norm(w, axis=0)
    expected = (x.reshape(-1, 4) @ w + bias.reshape(-1)).reshape(before.shape)
    expected = np.tanh(expected) if kind == "dense" else expected
    assert_close(layer(x), expected)
    assert_close(layer.kernel, w.reshape(kernel.shape))
    layer.use_adapter(None)
    np.testing.assert_array_equal(numpy(layer(x)), before)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_of_the_updates_inputs(dora):
    layer, x = projection("dense")
    layer.use_bias = False
    layer.bias.assign(np.zeros(6))
    before = numpy(layer(x))
    low_rank(layer).add_adapter("one", **{**OPTIONS, "dropout": 0.5, "dora": dora})
    layer.use_adapter("one")
    if not dora:  # without an effect of B, dropout has none either
        np.testing.assert_array_equal(numpy(layer(x, training=True)), numpy(layer(x, training=False)))
    shaken(layer)
    quiet = numpy(layer(x, training=False))
    many = np.repeat(x[:1, :1], 4000, axis=1)
    noisy = numpy(layer(many, training=True))
    assert noisy.std(axis=1).min() > 1e-3
    error = noisy.std(axis=1).max() / np.sqrt(4000)
    assert np.abs(noisy.mean(axis=1) - quiet[:1, 0]).max() < 5 * error
    assert np.abs(quiet - before).max() > 0.1


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["dense", "into_heads", "out_of_heads"])
def test_is_added_to_what_quantized_weights_give(kind, mode):
    layer, x = projection(kind)
    layer.quantize(mode)
    base = numpy(layer(x))
    low_rank(layer).add_adapter("one", **OPTIONS)
    layer.use_adapter("one")
    shaken(layer)
    update = x.reshape(-1, 4) @ (3.0 / 2 * numpy(layer.adapter.a) @ numpy(layer.adapter.b))
    assert_close(layer(x), base + update.reshape(base.shape))


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantizing_before_and_behind_is_the_same(mode):
    (layer, x), (later, _) = projection("dense"), projection("dense")
    later._kernel.assign(numpy(layer._kernel))
    layer.quantize(mode)
    for each in (layer, later):
        low_rank(each).add_adapter("one", **OPTIONS)
        each.use_adapter("one")
        each.adapter.a.assign(normal(4, 2, seed=6))
        each.adapter.b.assign(normal(2, 6, seed=7))
    later.quantize(mode)
    np.testing.assert_array_equal(numpy(layer(x)), numpy(later(x)))
    assert [v.name for v in layer.trainable_variables] == ["lora_one_a", "lora_one_b"]
    assert [v.name for v in later.trainable_variables] == ["lora_one_a", "lora_one_b"]


def test_starts_as_the_papers_code():
    layer = keras.layers.Dense(300)
    layer.build((None, 400))
    low_rank(layer).add_adapter("one", **{**OPTIONS, "rank": 50})
    a = numpy(layer._adapters["one"].a)
    assert np.abs(a).max() <= 1 / np.sqrt(400)
    assert a.std() == pytest.approx(1 / np.sqrt(3 * 400), rel=0.02)
    assert not numpy(layer._adapters["one"].b).any()


@pytest.mark.once
def test_refuses_other_products():
    layer = keras.layers.EinsumDense("btd,nde->btne", (None, 2, 3))
    layer.build((None, None, 4))
    with pytest.raises(ValueError, match="computes 'btd,nde->btne'"):
        low_rank(layer).add_adapter("one", **OPTIONS)


# The model ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [pytest.param({}, marks=quickly), {"dora": True, "rank_stabilized": True, "dropout": 0.2}],
    ids=["lora", "dora"],
)
def test_trains_updates_and_head_and_merges(options):
    model = classifier(num_layers=1)
    start = {v.path: numpy(v) for v in model.weights}
    before = numpy(model(X))
    chosen = add_lora(model, 2, targets=TARGETS, **options)
    assert len(chosen) == 5
    assert_close(model(X), before, 1e-6)
    assert {v.path for v in model.trainable_variables if not is_update(v)} == {"head/logits/kernel", "head/logits/bias"}
    assert sum(map(is_update, model.trainable_variables)) == 5 * (3 if options else 2)
    model.compile(keras.optimizers.Adam(0.03), metrics=[])
    model.fit(X, Y, batch_size=4, epochs=2, verbose=0)
    for variable in model.weights:
        if variable.path in start:
            same = np.array_equal(numpy(variable), start[variable.path])
            assert same is not variable.path.startswith("head/"), variable.path
        else:  # A moves once B has
            assert np.abs(numpy(variable)).max() > 1e-3
    trained = numpy(model(X))
    assert np.abs(trained - before).max() > 1e-2
    assert sorted(merge_lora(model)) == sorted(chosen)
    assert_close(model(X), trained, 1e-5)
    assert [v.path for v in model.weights] == list(start)
    assert not any(isinstance(layer, LowRank) for layer in model._flatten_layers())


def test_counts_the_papers_parameters():
    """Keras's own LoRA of a kernel (width, heads, head_dim) would have `heads` times those of A."""
    model = classifier(fill=0)
    add_lora(model, 2)
    assert sum(np.prod(v.shape) for v in model.weights if is_update(v)) == 2 * 2 * 2 * (8 + 8)


@quickly
def test_writes_text_with_the_update():
    model = writer()
    prompt = X[:1, :2]
    plain = numpy(model.generate(prompt[0], max_new_tokens=3, return_details=True).log_probs)
    add_lora(model, 4, targets=["query", "value", "feed_forward.*"])
    shaken(model, 1.0)
    after = model.generate(prompt[0], max_new_tokens=3, return_details=True)
    tokens = np.concatenate([prompt[0], after.token_ids])[None]
    logits = numpy(model(tokens[:, :-1]))[0, 1:]
    expected = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[np.arange(3), after.token_ids]
    assert_close(after.log_probs, expected, 1e-4)
    set_adapter(model, None)  # which the compiled programs must see
    assert_close(model.generate(prompt[0], max_new_tokens=3, return_details=True).log_probs, plain, 1e-5)


def test_several_updates():
    model = classifier(num_layers=1)
    plain = numpy(model(X))
    add_lora(model, 2, name="one", targets="query")
    add_lora(model, 3, name="two", targets=["query", "pooler"], dora=True)
    shaken(model)
    two = numpy(model(X))
    assert {v.path.split("lora_")[1][:3] for v in model.trainable_variables if is_update(v)} == {"two"}
    set_adapter(model, "one")
    one = numpy(model(X))
    assert {v.path.split("lora_")[1][:3] for v in model.trainable_variables if is_update(v)} == {"one"}
    set_adapter(model, None)
    assert_close(model(X), plain, 1e-6)  # torch takes other kernels where weights are frozen, which may round otherwise
    assert not any(map(is_update, model.trainable_variables))
    set_adapter(model, "two")
    assert_close(model(X), two, 1e-6)
    assert min(np.abs(a - b).max() for a, b in ((one, two), (one, plain), (two, plain))) > 1e-3
    set_adapter(model, "one")
    merge_lora(model)
    assert_close(model(X), one, 1e-5)


def test_trains_on_quantized_weights():
    model = classifier(num_layers=1)
    model.backbone.blocks[0].feed_forward.up.quantize("int8")
    before = numpy(model(X))
    add_lora(model, 2, targets="feed_forward.*")
    assert_close(model(X), before, 1e-6)
    base = {v.path: numpy(v) for v in model.weights if not v.trainable}
    model.compile(keras.optimizers.Adam(0.03), metrics=[])
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    for variable in model.weights:
        if variable.path in base:
            np.testing.assert_array_equal(numpy(variable), base[variable.path])
        elif is_update(variable):
            assert np.abs(numpy(variable)).max() > 1e-3
    with pytest.raises(ValueError, match="rounding would swallow the update"):
        merge_lora(model)


@pytest.mark.once
def test_what_does_not_go_with_quantization():
    model = classifier(fill=0)
    add_lora(model, 2, targets="up", dora=True)
    with pytest.raises(NotImplementedError, match="DoRA needs the norms"):  # of which `Model.quantize` makes a warning
        model.backbone.blocks[0].feed_forward.up.quantize("int8")
    model = classifier(fill=0)
    model.backbone.pooler.quantize("int8")
    model.backbone.blocks[1].feed_forward.up.quantize("int8")
    with pytest.raises(ValueError, match="has an activation behind its product"):
        add_lora(model, 2, targets="pooler")
    with pytest.raises(ValueError, match="DoRA needs the norms"):
        add_lora(model, 2, targets="up", dora=True)
    assert not adapted(model)


@pytest.mark.once
def test_freezing_goes_with_it():
    model = classifier()
    freeze(model, "backbone")
    add_lora(model, 2, targets="query")
    assert sum(map(is_update, model.trainable_variables)) == 4
    freeze(model, "head", "blocks[0]")
    assert {v.path.split("/")[0] for v in model.trainable_variables} == {"block_1"}
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    model.backbone.blocks[1].attention.query.trainable = False
    model.backbone.blocks[1].attention.query.trainable = True
    trained = {v.path for v in model.trainable_variables if v.path.startswith("block_1/attention/query")}
    assert trained == {"block_1/attention/query/lora_default_a", "block_1/attention/query/lora_default_b"}


@pytest.mark.once
def test_shared_blocks_share_the_update():
    model = keras_tfm.models.bert(num_layers=3, layer_groups=1, **SIZES)
    assert add_lora(model, 2, targets="blocks[1:].attention.query") == ["blocks[0].attention.query"]


@pytest.mark.once
@given(st.sampled_from(["bfloat16", "mixed_bfloat16"]), st.booleans())
def test_other_dtypes(policy, dora):
    keras.config.set_dtype_policy(policy)
    layer, x = projection("dense")
    low_rank(layer).add_adapter("one", **{**OPTIONS, "dora": dora})
    layer.use_adapter("one")
    shaken(layer)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert keras.backend.standardize_dtype(layer.adapter.a.dtype) == "float32"
    w = numpy(keras.ops.cast(layer.kernel, "float32"))
    assert_close(y, x @ w + numpy(layer.bias), 0.1)


@pytest.mark.once
@pytest.mark.parametrize(
    "options, says",
    [
        (dict(targets="querry"), "Did you mean 'query'"),
        (dict(targets="embedding_norm"), "matches no projection .* it has \\['down', 'key'"),
        (dict(targets=[]), "targets is empty"),
        (dict(rank=0), "rank must be a positive integer"),
        (dict(rank=9), "rank must be at most 8"),
        (dict(alpha=0.0), "alpha must be positive"),
        (dict(dropout=1.0), "dropout must be from 0"),
        (dict(name="my adapter"), "name must be letters"),
    ],
)
def test_refuses(options, says):
    model = classifier(fill=0)
    weights = len(model.weights)
    with pytest.raises(ValueError, match=says):
        add_lora(model, **options)
    assert len(model.weights) == weights
    assert all(v.trainable for v in model.weights)


@pytest.mark.once
def test_refuses_names():
    model = classifier(fill=0)
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_lora(model)
    add_lora(model, 2)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        add_lora(model, 2)
    with pytest.raises(ValueError, match=r"has no adapter 'defalt'.* Did you mean 'default'"):
        set_adapter(model, "defalt")
