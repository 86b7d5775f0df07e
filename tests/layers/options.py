"""Every constructor argument of every exported layer, with other values than the default, and how each layer is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from helpers import BACKEND, ids, normal

from keras_tfm import layers

BATCH, LENGTH, WIDTH, HEADS = 2, 6, 8, 2


@dataclass
class Fresh:
    """A value made anew for each use, as sub-layers must be."""

    make: Callable[[], Any]


@dataclass
class Change:
    """A value of an argument that differs from the default; what else the layer needs, before and after, for it to matter."""

    value: Any
    base: dict[str, Any] = field(default_factory=dict)
    along: dict[str, Any] = field(default_factory=dict)  # after only: arguments that the value brings with it


def changes(*values: Any, **base: Any) -> list[Change]:
    return [value if isinstance(value, Change) else Change(value, base) for value in values]


INITIALIZERS = changes("zeros", keras.initializers.RandomNormal(stddev=0.3))
REGULARIZERS = changes("l2", keras.regularizers.L1(0.1))
POSITIONS = changes(
    "rotary",
    "alibi",
    {"kind": "rotary", "base": 50.0},
    {"kind": "disentangled", "num_buckets": 8, "max_distance": 20},
    Fresh(lambda: layers.RelativePositionBias(8, 20)),
)
NORMS = changes(
    "rms_norm",
    {"kind": "layer_norm", "epsilon": 0.1},
    Fresh(lambda: keras.layers.LayerNormalization(epsilon=0.2, center=False)),
)
HEAD_NORMS = changes(
    "rms_norm", {"kind": "layer_norm", "epsilon": 0.1}, Fresh(lambda: keras.layers.RMSNormalization(epsilon=0.2))
)
ACTIVATIONS = changes("relu", "gelu_tanh", keras.activations.softplus)

_ATTENTION: dict[str, list[Change]] = {
    "num_heads": changes(4),
    "num_key_value_heads": changes(1),
    "head_dim": changes(3),
    "qk_norm": HEAD_NORMS,
    "qk_norm_scope": changes(
        Change("all_heads", {"qk_norm": "rms_norm"}),
        Change("each_head", {"qk_norm": {"kind": "layer_norm", "center": False}}),
    ),
    "logit_softcap": changes(0.5),
    "scale": changes(2.0),
    "dropout": changes(0.5),
    "use_bias": changes(False, {"key": False, "value": False}),
    "output_gate": changes("headwise", "elementwise"),
    "sinks": changes("learned", "off_by_one"),
    "kernel": changes("reference"),
    "kernel_initializer": INITIALIZERS,
    "bias_initializer": changes("ones", keras.initializers.Constant(0.5)),
    "kernel_regularizer": REGULARIZERS,
    "bias_regularizer": REGULARIZERS,
    "seed": changes(3, dropout=0.5),
}
_PROJECTIONS = {
    name: _ATTENTION[name]
    for name in ("kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer")
}
_RESIDUAL: dict[str, list[Change]] = {
    "norm": NORMS,
    "norm_placement": changes("post", "sandwich", "residual", "none"),
    "dropout": changes(0.5),
    "drop_path": changes(0.5),
    "layer_scale": changes(0.5),
    "seed": changes(3, dropout=0.5),
}
_BLOCK: dict[str, list[Change]] = {
    **_RESIDUAL,
    "norm_placement": changes("post", "sandwich", "residual", "none", {"attention": "none"}, {"feed_forward": "post"}),
    "num_heads": changes(4),
    "intermediate_dim": changes(12),
    "num_key_value_heads": changes(1),
    "head_dim": changes(3),
    "window": changes(1),
    "position": POSITIONS,
    "activation": ACTIVATIONS,
    "gated": changes(True),
    "use_bias": changes(False),
    "attention_dropout": changes(0.5, Change(0.0, {"dropout": 0.5})),
    "activation_dropout": changes(0.5),
    "parallel": changes(True, "shared_norm"),
    "attention": changes(
        {"sinks": "learned"}, {"dropout": 0.5}, Fresh(lambda: layers.MultiHeadSelfAttention(4, causal=True))
    ),
    "feed_forward": changes(
        {"gated": True},
        {"kind": "mixture_of_experts", "num_experts": 3, "top_k": 2},
        Fresh(lambda: layers.FeedForward(12, "relu")),
    ),
    "kernel_initializer": INITIALIZERS,
}
_LEARNED = {"kind": "learned", "max_length": 8}

REQUIRED: dict[str, dict[str, Any]] = {
    "ClassificationHead": {"num_classes": 3},
    "Dropout": {"rate": 0.5},
    "DropPath": {"rate": 0.5},
    "FeedForward": {"intermediate_dim": 16},
    "MaskedLMHead": {"vocabulary_size": 11},
    "MixtureOfExperts": {"num_experts": 4, "top_k": 2, "intermediate_dim": 16},
    "MultiHeadCrossAttention": {"num_heads": HEADS},
    "MultiHeadSelfAttention": {"num_heads": HEADS},
    "PatchEmbedding": {"hidden_dim": WIDTH, "patch_size": 2},
    "TokenEmbedding": {"vocabulary_size": 11, "hidden_dim": WIDTH},
    "TransformerDecoderBlock": {"num_heads": HEADS, "intermediate_dim": 16},
    "TransformerEncoderBlock": {"num_heads": HEADS, "intermediate_dim": 16},
}

OPTIONS: dict[str, dict[str, list[Change]]] = {
    "ALiBi": {},
    "PositionScheme": {},
    "ClassificationHead": {
        "num_classes": changes(5),
        "hidden_dim": changes(7),
        "activation": changes("relu", hidden_dim=7),
        "dropout": changes(0.5),
        "use_bias": changes(False, Change({"hidden": False}, {"hidden_dim": 7})),
        "kernel_initializer": INITIALIZERS,
        "norm": changes(*[change.value for change in NORMS], hidden_dim=7),
    },
    "DisentangledBias": {
        "num_buckets": changes(8, None),
        "max_distance": changes(5, num_buckets=8),
        "terms": changes(["content_to_position"], ["position_to_content"]),
        "norm": changes(None, "rms_norm", {"kind": "layer_norm", "epsilon": 0.1}),
        "embeddings_initializer": INITIALIZERS,
    },
    "Dropout": {"rate": changes(0.2), "seed": changes(3)},
    "DropPath": {"rate": changes(0.2), "seed": changes(3)},
    "LayerScale": {"initial_value": changes(0.5)},
    "FeedForward": {
        "intermediate_dim": changes(12),
        "activation": ACTIVATIONS,
        "gated": changes(True),
        "dropout": changes(0.5),
        "use_bias": changes(False),
        **_PROJECTIONS,
        "seed": changes(3, dropout=0.5),
    },
    "MaskedLMHead": {
        "vocabulary_size": changes(13),
        "activation": ACTIVATIONS,
        "norm": NORMS,
        "hidden_dim": changes(WIDTH + 1),
        "use_bias": changes(False),
        "kernel_initializer": INITIALIZERS,
        "output_bias": changes(False),
    },
    "MixtureOfExperts": {
        "num_experts": changes(3),
        "top_k": changes(1),
        "intermediate_dim": changes(12),
        "activation": ACTIVATIONS,
        "gated": changes(False),
        "dropout": changes(0.5),
        "use_bias": changes(True),
        "use_router_bias": changes(True),
        "normalize": changes(False),
        "clip": changes(0.1),
        "up_offset": changes(1.0),
        "shared_dim": changes(6),
        "shared_gate": changes(True, shared_dim=6),
        "balance_loss": changes(0.5),
        "kernel_initializer": INITIALIZERS,
        "bias_initializer": changes("ones", use_bias=True),
        "kernel_regularizer": REGULARIZERS,
        "bias_regularizer": changes("l2", use_bias=True),
        "seed": changes(3, dropout=0.5),
    },
    "MultiHeadCrossAttention": _ATTENTION,
    "MultiHeadSelfAttention": {
        **_ATTENTION,
        "causal": changes(True),
        "window": changes(1),
        "global_tokens": changes(1, window=1),
        "position": POSITIONS,
    },
    "Pooling": {"kind": changes("first", "last", "max")},
    "PositionalEncoding": {
        "kind": [Change("learned", along={"max_length": 8})],
        "max_length": changes(9, **_LEARNED),
        "base": changes(50.0),
        "interleaved": changes(False),
        "offset": changes(2, Change(2, _LEARNED)),
        "embeddings_initializer": changes("zeros", keras.initializers.RandomNormal(stddev=0.3), **_LEARNED),
    },
    "RelativePositionBias": {
        "num_buckets": changes(8),
        "max_distance": changes(4, num_buckets=8),
        "bidirectional": changes(False),
        "embeddings_initializer": INITIALIZERS,
    },
    "RMSNormalization": {"axis": changes([1, 2]), "epsilon": changes(0.1), "offset": changes(1.0)},
    "Residual": {**_RESIDUAL, "norm": changes(*[change.value for change in NORMS], norm_placement="post")},
    "RotaryEmbedding": {
        "base": changes(50.0),
        "fraction": changes(0.5),
        "scaling": changes(
            {"kind": "linear", "factor": 2.0},
            {"kind": "dynamic", "factor": 2.0, "original_max_length": 3},
            {"kind": "yarn", "factor": 4.0, "original_max_length": 3, "mscale": 0.5, "mscale_all_dim": 1.0},
            {
                "kind": "llama3",
                "factor": 8.0,
                "original_max_length": 16,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            {"kind": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0], "original_max_length": 3},
        ),
        "interleaved": changes(True),
    },
    "TokenEmbedding": {
        "vocabulary_size": changes(13),
        "hidden_dim": changes(6),
        "mask_zero": changes(True),
        "scale": changes(2.0),
        "tied": changes(False),
        "output_bias": changes(True),
        "logit_scale": changes(0.5),
        "logit_softcap": changes(0.5),
        "embeddings_initializer": INITIALIZERS,
        "embeddings_regularizer": REGULARIZERS,
    },
    "PatchEmbedding": {
        "hidden_dim": changes(6),
        "patch_size": changes(3, [2, 3]),
        "class_token": changes(False),
        "use_bias": changes(False),
        "kernel_initializer": INITIALIZERS,
    },
    "TokenTypeEmbedding": {"vocabulary_size": changes(3), "embeddings_initializer": INITIALIZERS},
    "TransformerEncoderBlock": _BLOCK,
    "TransformerDecoderBlock": {
        **_BLOCK,
        "cross_attention": changes(True, {"sinks": "learned"}, Fresh(lambda: layers.MultiHeadCrossAttention(4))),
    },
}


def fresh(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.make() if isinstance(value, Fresh) else value for name, value in values.items()}


def build_layer(layer: str, arguments: dict[str, Any], **keywords: Any) -> keras.Layer:
    return getattr(layers, layer)(**fresh({**REQUIRED.get(layer, {}), **arguments}), **keywords)


def variants(layer: str) -> list[tuple[str, dict[str, Any], dict[str, Any], Any]]:
    """(argument, arguments without the value, arguments with it, the value) of every entry of a layer."""
    found = [
        (argument, change.base, {**change.base, **change.along, argument: change.value}, change.value)
        for argument, entries in OPTIONS[layer].items()
        for change in entries
    ]
    # Arguments are wired alike on every backend. torch, the quickest here, tries all; TensorFlow nearly: its encoder block
    # is its decoder block without cross-attention; JAX, which compiles each eager operation, every third of the long lists.
    steps = {
        "torch": 1,
        "tensorflow": 4 if layer == "TransformerEncoderBlock" else 1,
        "jax": 3 if len(found) > 20 else 1,
    }
    return found[:: steps[BACKEND]]


def argument_sets(layer: str) -> list[dict[str, Any]]:
    """The default, and the arguments of every variant."""
    return [{}, *(after for _, _, after, _ in variants(layer))]


def inputs(width: int = WIDTH) -> dict[str, np.ndarray]:
    """What layers are called on here. Row 1 of the mask is padded on the right, row 0 on the left."""
    return {
        "x": normal(BATCH, LENGTH, width, seed=1),
        "other": normal(BATCH, LENGTH, width, seed=2),
        "context": normal(BATCH, LENGTH - 1, width, seed=3),
        "query": normal(BATCH, LENGTH, HEADS, 4, seed=4),
        "key": normal(BATCH, LENGTH, HEADS, 4, seed=5),
        "token_ids": ids(BATCH, LENGTH) * (np.arange(LENGTH) > 0),
        "images": normal(BATCH, LENGTH, 12, 3, seed=6),
        "token_type_ids": np.array([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]], "int32"),
        "padding_mask": np.array([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], bool),
    }


def call(layer: keras.Layer, given: dict[str, Any], **keywords: Any) -> list[Any]:
    """Call a layer, eagerly or symbolically, on what it takes of `inputs()`; its outputs as a list."""
    name = type(layer).__name__
    if name in ("ALiBi", "DisentangledBias", "RelativePositionBias"):
        return [layer(given["query"], given["key"], **keywords)]
    if name == "RotaryEmbedding":
        return [layer(given["query"], **keywords)]
    if name == "Residual":
        return [layer(given["x"], given["other"], **keywords)]
    if name == "MultiHeadCrossAttention" or getattr(layer, "cross_attention", None) is not None:
        return [layer(given["x"], given["context"], **keywords)]
    if name == "PatchEmbedding":
        return [layer(given["images"], **keywords)]
    if name == "TokenTypeEmbedding":
        return [layer(given["x"], given["token_type_ids"], **keywords)]
    if name == "Pooling":
        return [layer(given["x"], padding_mask=given["padding_mask"], **keywords)]
    if name == "TokenEmbedding":
        embedded = layer(given["token_ids"], **keywords)
        return [embedded, layer(embedded, reverse=True, **keywords)]
    if name == "MaskedLMHead":
        table = layers.TokenEmbedding(
            layer.vocabulary_size,
            layer.hidden_dim or WIDTH,
            embeddings_initializer="ones",
            name="table_of_" + layer.name,
        )
        return [layer(given["x"], token_embedding=table, **keywords)]
    return [layer(given["x"], **keywords)]


def takes_training(layer: keras.Layer) -> bool:
    return layer._call_has_training_arg


def symbolic_inputs(
    given: dict[str, np.ndarray], length: int | None = LENGTH, batch: int | None = None
) -> dict[str, keras.KerasTensor]:
    def spec(name: str, array: np.ndarray) -> keras.KerasTensor:
        shape = [batch, *array.shape[1:]]
        if length is None and name != "images":
            shape[1] = None
        return keras.Input(batch_shape=tuple(shape), dtype=str(array.dtype), name=name)

    return {name: spec(name, array) for name, array in given.items()}
