"""Every argument of every layer survives its config and a `.keras` file, and has an effect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, normal, numpy, policy, reset_seeds
from keras import ops

from keras_tfm import layers
from keras_tfm.layers.base import argument_names
from keras_tfm.ops.kernels import KERNELS

from .options import (
    OPTIONS,
    REQUIRED,
    WIDTH,
    Fresh,
    argument_sets,
    build_layer,
    call,
    inputs,
    symbolic_inputs,
    takes_training,
    variants,
)

CALLABLE = [name for name in OPTIONS if name != "PositionScheme"]  # which has no effect of its own
VARIANTS = [(layer, *variant) for layer in CALLABLE for variant in variants(layer)]


def label(value: Any) -> str | None:
    return value if isinstance(value, str) else "" if isinstance(value, dict) else type(value).__name__


# The table is complete -----------------------------------------------------------------------------------------------


def test_every_exported_layer_is_in_the_table():
    assert set(OPTIONS) == set(layers.__all__)


@pytest.mark.parametrize("layer", layers.__all__)
def test_every_argument_is_in_the_table(layer):
    assert set(OPTIONS[layer]) == set(argument_names(getattr(layers, layer)))
    assert all(OPTIONS[layer].values())


# Configs -------------------------------------------------------------------------------------------------------------


def plain_data(config: dict[str, Any]) -> str:
    """A config as JSON, without the identities that Keras gives to shared objects."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: strip(item) for name, item in value.items() if name != "shared_object_id"}
        return [strip(item) for item in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(strip(config), sort_keys=True)


@pytest.mark.parametrize("layer", layers.__all__)
def test_configs_round_trip(layer):
    for arguments in argument_sets(layer):
        made = build_layer(layer, arguments, name="given", dtype="mixed_bfloat16", trainable=False)
        text = plain_data(made.get_config())
        again = type(made).from_config(json.loads(text))
        assert plain_data(again.get_config()) == text
        assert (again.name, again.dtype_policy.name, again.trainable) == ("given", "mixed_bfloat16", False)


@pytest.mark.parametrize("layer, argument, before, after, value", VARIANTS, ids=label)
def test_configs_hold_what_was_given(layer, argument, before, after, value):
    plain, changed = (build_layer(layer, arguments, name="given").get_config() for arguments in (before, after))
    assert changed[argument] != plain.get(argument)
    if isinstance(value, (bool, int, float, str)):
        assert changed[argument] == value
    for other in set(changed) - set(after) - {"dtype"}:
        assert changed[other] == plain[other], f"{argument} changed the config of {other}"


# Every argument has an effect ----------------------------------------------------------------------------------------


def observe(layer: str, arguments: dict[str, Any], argument: str) -> dict[str, Any]:
    """What can be seen of a layer; `argument` says which of the random parts are its business."""
    used: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, module in KERNELS.items():
            patch.setattr(
                module, "attend", lambda request, name=name, real=module.attend: used.append(name) or real(request)
            )
        keras.utils.set_random_seed(0)
        made, given = build_layer(layer, arguments), inputs()
        call(made, given)
        seen: dict[str, Any] = {
            "kernels": used,
            "weights": {w.path.split("/", 1)[-1]: tuple(w.shape) for w in made.weights},
        }
        if argument.endswith("initializer") or argument == "initial_value":
            seen["initial"] = [numpy(w) for w in made.weights]
        if argument == "seed":
            seen["draws"] = [numpy(call(made, given, training=True)) for _ in range(6)]
            return seen
        fill_weights(made)
        if argument.endswith("regularizer"):
            seen["losses"] = [float(loss) for loss in made.losses]
        outputs = call(made, given)
        seen["outputs"] = numpy(outputs)
        seen["masks"] = [getattr(output, "_keras_mask", None) is not None for output in outputs]
        if takes_training(made):
            reset_seeds(made)
            seen["training"] = numpy(call(made, given, training=True))
            seen["added losses"] = [float(numpy(loss)) for loss in made.losses]
    return seen


_plain: dict[str, Any] = {}


def observe_plain(layer: str, arguments: dict[str, Any], argument: str) -> dict[str, Any]:
    """`observe`, remembered; what is observed must be reproducible to be compared."""
    kind = (
        argument
        if argument == "seed"
        else argument.rpartition("_")[-1]
        if argument.endswith(("initializer", "regularizer"))
        else ""
    )
    key = f"{layer} {arguments} {kind} {argument if argument == 'initial_value' else ''}"
    if key not in _plain:
        _plain[key] = observe(layer, arguments, argument)
        assert same(_plain[key], observe(layer, arguments, argument))
    return _plain[key]


def same(first: Any, second: Any) -> bool:
    flat = [keras.tree.flatten(x) for x in (first, second)]
    return len(flat[0]) == len(flat[1]) and all(np.array_equal(a, b) for a, b in zip(*flat, strict=True))


# Arguments are wired alike on every backend: torch, the quickest here, tries every value, the others the first of each.
FIRST = {(layer, argument): value for layer, argument, _, _, value in reversed(VARIANTS)}


@pytest.mark.parametrize("layer, argument, before, after, value", VARIANTS, ids=label)
def test_every_argument_changes_something(layer, argument, before, after, value):
    if BACKEND != "torch" and value is not FIRST[layer, argument]:
        pytest.skip("the argument's first value is tried")
    assert not same(observe_plain(layer, before, argument), observe(layer, after, argument)), (
        f"{argument}={value!r} changes nothing"
    )


def test_the_observation_sees_no_change_where_there_is_none():
    for argument in ("dropout", "kernel_initializer", "seed"):
        plain = observe("MultiHeadSelfAttention", {"dropout": 0.5}, argument)
        assert same(plain, observe("MultiHeadSelfAttention", {"dropout": 0.5, "name": "other", "scale": 0.5}, argument))


# Files ---------------------------------------------------------------------------------------------------------------


def model_of(made: list[keras.Layer]) -> keras.Model:
    """A functional model that calls each layer on shared inputs."""
    given = symbolic_inputs(inputs())
    outputs = [output for layer in made for output in call(layer, given)]
    return keras.Model(given, outputs)


def reload(model: keras.Model, folder: Path, **options: Any) -> keras.Model:
    path = folder / "model.keras"
    model.save(path)
    return keras.saving.load_model(path, **options)


def assert_same_model(model: keras.Model, loaded: keras.Model, given: Any) -> None:
    for expected, actual in zip(
        keras.tree.flatten(numpy(model(given))), keras.tree.flatten(numpy(loaded(given))), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)
    assert [w.shape for w in loaded.weights] == [w.shape for w in model.weights]
    assert plain_data(loaded.get_config()) == plain_data(model.get_config())


def train(model: keras.Model, given: Any) -> None:
    model.compile(keras.optimizers.Adam(0.01), "mse", run_eagerly=True, jit_compile=False)
    targets = keras.tree.map_structure(np.zeros_like, numpy(model(given)))
    before = [numpy(w) for w in model.trainable_weights]
    model.train_on_batch(given, targets)
    moved = [not np.array_equal(a, numpy(b)) for a, b in zip(before, model.trainable_weights, strict=True)]
    assert any(moved)


@pytest.mark.parametrize("layer", CALLABLE)
def test_files_give_the_same_outputs_untrained_and_trained(layer, tmp_path):
    given = inputs()
    model = model_of([build_layer(layer, arguments) for arguments in argument_sets(layer)])
    for made in model.layers:
        if type(made).__module__.startswith("keras_tfm"):
            fill_weights(made)
    assert_same_model(model, reload(model, tmp_path), given)
    model = model_of([build_layer(layer, arguments) for arguments in argument_sets(layer)[:3]])
    if model.trainable_weights and (
        BACKEND != "jax" or layer in ("TransformerDecoderBlock", "TokenEmbedding")
    ):  # a real step for a few, with their optimizer's state
        train(model, given)
        assert_same_model(model, reload(model, tmp_path), given)


def block(**options: Any) -> layers.TransformerEncoderBlock:
    return layers.TransformerEncoderBlock(2, 16, **options)


def stack(*made: keras.Layer) -> keras.Model:
    x = outputs = keras.Input((6, WIDTH))
    for layer in made:
        outputs = layer(outputs)
    return keras.Model(x, outputs)


@pytest.mark.xfail(strict=True, reason="Keras copies a layer's config before it marks what is shared in it")
def test_a_relative_bias_shared_between_blocks_stays_shared(tmp_path):
    """As T5 does it: one table for a stack of blocks."""
    shared = layers.RelativePositionBias(8, 20)
    model = stack(block(position=shared), block(position=shared))
    assert sum("embeddings" in w.path for w in model.weights) == 1
    loaded = reload(model, tmp_path)
    assert_same_model(model, loaded, normal(2, 6, WIDTH))
    tables = [layer.attention.position for layer in loaded.layers[1:]]
    assert tables[0] is tables[1]


def test_a_shared_token_embedding_survives_as_a_tied_head(tmp_path):
    table = layers.TokenEmbedding(11, WIDTH)
    token_ids = keras.Input((None,), dtype="int32")
    model = keras.Model(token_ids, table(block()(table(token_ids)), reverse=True))
    assert_same_model(model, reload(model, tmp_path), inputs()["token_ids"])


def test_a_masked_lm_head_keeps_its_tie(tmp_path):
    table, head = layers.TokenEmbedding(11, WIDTH), layers.MaskedLMHead(11)
    token_ids = keras.Input((None,), dtype="int32")
    model = keras.Model(token_ids, head(table(token_ids), token_embedding=table))
    given = inputs()["token_ids"]
    model(given)
    loaded = reload(model, tmp_path)
    assert_same_model(model, loaded, given)
    train(loaded, given)
    assert sum("embeddings" in w.path for w in loaded.weights) == 1


def test_weights_load_by_themselves(tmp_path):
    first, second = stack(block(position="relative"), block()), stack(block(position="relative"), block())
    first.save_weights(tmp_path / "w.weights.h5")
    second.load_weights(tmp_path / "w.weights.h5")
    x = normal(2, 6, WIDTH)
    np.testing.assert_array_equal(numpy(first(x)), numpy(second(x)))


@pytest.mark.parametrize("name", ["mixed_bfloat16", "float32"])
def test_a_layers_own_dtype_survives(name, tmp_path):
    with policy("float32" if name != "float32" else "mixed_float16"):
        model = stack(
            block(dtype=name, position="rotary", norm=keras.layers.RMSNormalization()),
            layers.FeedForward(4, dtype=name),
        )
        loaded = reload(model, tmp_path)
        assert_same_model(model, loaded, normal(2, 6, WIDTH))
        for layer in loaded.layers[1:]:
            assert {sub.dtype_policy.name for sub in layer._flatten_layers()} == {name}
            assert {w.dtype for w in layer.weights} == {keras.DTypePolicy(name).variable_dtype}


def test_initializers_and_regularizers_survive_as_objects():
    options = {
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.3, seed=5),
        "kernel_regularizer": keras.regularizers.L2(0.1),
    }
    for cls, first in ((layers.FeedForward, 4), (layers.MultiHeadSelfAttention, 2)):
        again = cls.from_config(cls(first, **options).get_config())
        assert isinstance(again.kernel_initializer, keras.initializers.RandomNormal)
        assert again.kernel_initializer.get_config() == options["kernel_initializer"].get_config()
        assert isinstance(again.kernel_regularizer, keras.regularizers.L2)
        assert again.kernel_regularizer.get_config() == options["kernel_regularizer"].get_config()


def test_weights_of_one_shape_start_different():
    """One initializer object serves all projections, each with draws of its own."""
    layer = layers.MultiHeadSelfAttention(2, kernel_initializer=keras.initializers.RandomNormal())
    layer.build((None, 6, WIDTH))
    assert np.abs(numpy(layer.query.kernel) - numpy(layer.key.kernel)).max() > 1e-3


# LoRA and quantization, as Keras does them ---------------------------------------------------------------------------


def projections(model: keras.Model) -> list[keras.Layer]:
    return [
        layer for layer in model._flatten_layers() if isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense))
    ]


def test_lora_starts_at_the_base_and_reloads(tmp_path):
    model, x = (
        stack(block(gated=True), layers.TransformerDecoderBlock(2, 16, num_key_value_heads=1)),
        normal(2, 6, WIDTH),
    )
    base = numpy(model(x))
    for layer in projections(model):
        layer.enable_lora(2)
    assert_close(model(x), base, 1e-6)
    for layer in projections(model):
        layer.lora_kernel_b.assign(normal(*layer.lora_kernel_b.shape))
    tuned = numpy(model(x))
    assert np.abs(tuned - base).max() > 0.1
    assert_close(reload(model, tmp_path)(x), tuned, 1e-5)


def test_int8_models_reload(tmp_path):
    token_ids = keras.Input((6,), dtype="int32")
    table = layers.TokenEmbedding(11, WIDTH)
    x = table(token_ids)
    decoded = layers.TransformerDecoderBlock(2, 16, cross_attention=True, gated=True, position="rotary")(x, x)
    model = keras.Model(token_ids, [table(decoded, reverse=True), layers.ClassificationHead(3)(decoded)])
    for layer in model.layers:
        fill_weights(layer)
    given = inputs()["token_ids"]
    exact = numpy(model(given))
    model.quantize("int8")
    quantized = numpy(model(given))
    for rough, fine in zip(quantized, exact, strict=True):
        assert 0 < np.abs(rough - fine).max() < 0.2 * np.abs(fine).max()
    assert all(layer.quantization_mode == "int8" for layer in [*projections(model), table.table])
    loaded = reload(model, tmp_path)
    assert all(layer.quantization_mode == "int8" for layer in projections(loaded))
    for again, rough in zip(numpy(loaded(given)), quantized, strict=True):
        np.testing.assert_array_equal(again, rough)


def test_a_composite_of_the_users_own_is_a_part_too(tmp_path):
    """A sub-layer of the caller's class, registered with Keras, serves as feed-forward."""

    @keras.saving.register_keras_serializable("tests")
    class Doubling(keras.layers.Layer):
        def call(self, x):
            return ops.multiply(x, 2.0)

    model, x = stack(block(feed_forward=Doubling())), normal(2, 6, WIDTH)
    assert_same_model(model, reload(model, tmp_path), x)


def test_required_arguments_are_only_those_without_defaults():
    for layer in layers.__all__:
        build_layer(layer, {})
    assert set(REQUIRED) <= set(layers.__all__)
    assert Fresh(list).make() == []
