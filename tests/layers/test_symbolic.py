"""What a layer says of its output is what it returns: shapes, dtypes and structure, for every option."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from helpers import BACKEND, assert_close, normal

from keras_tfm import layers

from .options import LENGTH, OPTIONS, WIDTH, argument_sets, build_layer, call, inputs, symbolic_inputs

CALLABLE = [name for name in OPTIONS if name != "PositionScheme"]
Spec = tuple[tuple[int | None, ...], str]


def described(output: Any) -> Any:
    """Each tensor of a structure as (shape, dtype), within the same structure."""

    def describe(x: Any) -> Spec:
        return tuple(None if d is None else int(d) for d in x.shape), keras.backend.standardize_dtype(x.dtype)

    if isinstance(output, dict):
        return {name: described(value) for name, value in output.items()}
    if isinstance(output, (list, tuple)):
        return type(output)(described(value) for value in output)
    return describe(output)


def agrees(said: Any, true: Any) -> bool:
    """`said` is `true`, but for dimensions that it leaves open."""
    if isinstance(true, dict):
        return (
            isinstance(said, dict) and list(said) == list(true) and all(agrees(said[name], true[name]) for name in true)
        )
    if isinstance(true, (list, tuple)) and not isinstance(true[-1], str):
        return type(said) is type(true) and len(said) == len(true) and all(map(agrees, said, true))
    (shape, dtype), (true_shape, true_dtype) = said, true
    return (
        dtype == true_dtype
        and len(shape) == len(true_shape)
        and all(s in (None, t) for s, t in zip(shape, true_shape, strict=True))
    )


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("layer", CALLABLE)
def test_every_option_says_what_it_returns(layer, dtype):
    given = inputs()
    sets = argument_sets(layer)
    if BACKEND != "torch" and dtype != "float32":
        sets = sets[:3]  # torch, the quickest here, tries all
    for arguments in sets:
        made = build_layer(layer, arguments, dtype=dtype)
        said = described(call(made, symbolic_inputs(given, batch=2)))
        true = described(call(made, given))
        assert said == true, arguments
        if dtype == "float32":
            assert agrees(described(call(made, symbolic_inputs(given))), true), arguments
            assert agrees(described(call(made, symbolic_inputs(given, length=None))), true), arguments


X = normal(2, LENGTH, WIDTH)
CONTEXT = normal(2, LENGTH - 1, WIDTH)


def spec(value: Any, length: int | None = -1) -> Any:
    def one(x: Any) -> keras.KerasTensor:
        shape = list(x.shape)
        if length != -1:
            shape[0], shape[1] = None, length
        return keras.KerasTensor(tuple(shape), dtype=keras.backend.standardize_dtype(x.dtype))

    return keras.tree.map_structure(one, value)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["attention", "encoder", "decoder", "cross", "cross_attention"])
def test_scores_are_as_said(kind, dtype):
    made = {
        "attention": lambda: layers.MultiHeadSelfAttention(2, dtype=dtype),
        "encoder": lambda: layers.TransformerEncoderBlock(2, 16, dtype=dtype),
        "decoder": lambda: layers.TransformerDecoderBlock(2, 16, dtype=dtype),
        "cross": lambda: layers.TransformerDecoderBlock(2, 16, True, dtype=dtype),
        "cross_attention": lambda: layers.MultiHeadCrossAttention(2, dtype=dtype),
    }[kind]()
    given = (X, CONTEXT) if kind.startswith("cross") else (X,)
    true = described(made(*given, return_scores=True))
    assert described(made(*spec(given), return_scores=True)) == true
    assert agrees(described(made(*(spec(x, length=None) for x in given), return_scores=True)), true)


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kind", ["attention", "decoder", "cross"])
def test_caches_are_as_said(kind, window, scores):
    given = (X, CONTEXT) if kind == "cross" else (X,)
    if kind == "attention":
        made = layers.MultiHeadSelfAttention(2, 1, causal=True, window=window)
    else:
        made = layers.TransformerDecoderBlock(2, 16, kind == "cross", window=window, num_key_value_heads=1)
    made(*given)
    cache = made.make_cache(2, 9, **({"context": CONTEXT} if kind == "cross" else {}))
    for chunk in (X, X[:, :1]):
        true = described(made(chunk, cache=cache, return_scores=scores))
        assert described(made(spec(chunk), cache=spec(cache), return_scores=scores)) == true
        if len(chunk[0]) > 1:
            assert agrees(described(made(spec(chunk, length=None), cache=spec(cache), return_scores=scores)), true)


def test_cached_steps_make_a_functional_model():
    block = layers.TransformerDecoderBlock(2, 16, position="rotary")
    first = keras.ops.convert_to_tensor(X[:, :1])
    expected = block(first)
    cache = block.make_cache(2, 4)
    x = keras.Input(batch_shape=(2, 1, WIDTH))
    slots = keras.tree.map_structure(
        lambda t: keras.Input(batch_shape=tuple(t.shape), dtype=keras.backend.standardize_dtype(t.dtype)), cache
    )
    model = keras.Model((x, slots), block(x, cache=slots))
    output, updated = model((first, cache))
    assert_close(output, expected, 1e-6)
    assert described(updated) == described(cache)


@pytest.mark.parametrize(
    "layer", ["TransformerEncoderBlock", "TransformerDecoderBlock", "MultiHeadSelfAttention", "FeedForward"]
)
def test_compute_output_shape_is_the_output_shape(layer):
    made = build_layer(layer, {})
    assert tuple(made.compute_output_shape((None, LENGTH, WIDTH))) == (None, LENGTH, WIDTH)


def test_building_by_shape_is_building_by_call():
    for layer in CALLABLE:
        if layer in ("ALiBi", "TokenEmbedding"):
            continue
        built, called = build_layer(layer, {}), build_layer(layer, {})
        call(called, inputs())
        heads, images = (2, LENGTH, 2, 4), inputs()["images"].shape
        shapes = {"RelativePositionBias": heads, "RotaryEmbedding": heads, "PatchEmbedding": images}
        built.build(shapes.get(layer, (2, LENGTH, WIDTH)))
        assert [tuple(w.shape) for w in built.weights] == [tuple(w.shape) for w in called.weights], layer
