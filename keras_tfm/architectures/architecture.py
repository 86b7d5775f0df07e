"""What a published family is to us: data, read in both directions."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_tfm.config import TransformerConfig

# Activations by our name and by Hugging Face's. The first that fits is written back.
ACTIVATIONS = (
    ("gelu", "gelu"),
    ("gelu_tanh", "gelu_new"),
    ("gelu_tanh", "gelu_pytorch_tanh"),
    ("gelu_tanh", "gelu_fast"),
    ("quick_gelu", "quick_gelu"),
    ("relu", "relu"),
    ("squared_relu", "relu2"),
    ("silu", "silu"),
    ("silu", "swish"),
    ("tanh", "tanh"),
)

# Keys of a config.json that do not change what the model computes.
WITHOUT_EFFECT = frozenset(
    [
        *(
            "_name_or_path",
            "architectures",
            "attn_implementation",
            "dtype",
            "finetuning_task",
            "gradient_checkpointing",
        ),
        *(
            "id2label",
            "label2id",
            "model_type",
            "num_labels",
            "problem_type",
            "task_specific_params",
            "tokenizer_class",
        ),
        *("bos_token_id", "cls_token_id", "eos_token_id", "mask_token_id", "pad_token_id", "sep_token_id"),
        *("chunk_size_feed_forward", "classifier_dropout", "output_attentions", "output_hidden_states", "return_dict"),
        *("tie_word_embeddings", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache"),
    ]
)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a module: our attribute, their suffix, and the way between them."""

    ours: str
    theirs: str
    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray] = lambda array, shape: array.reshape(shape)
    write: Callable[[np.ndarray], np.ndarray] = lambda array: array


def _split(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.T.reshape(shape)  # (heads * head_dim, width) -> (width, heads, head_dim)


def _merge(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.T.reshape(shape)  # (width, heads * head_dim) -> (heads, head_dim, width)


# How modules are stored: torch keeps a linear layer as (out, in), Keras as (in, out), heads apart.
LINEAR = (
    Tensor("_kernel", "weight", lambda array, shape: array.T.reshape(shape), lambda array: array.T),
    Tensor("bias", "bias"),
)
INTO_HEADS = (
    Tensor("_kernel", "weight", _split, lambda array: array.reshape(array.shape[0], -1).T),
    Tensor("bias", "bias", write=lambda array: array.reshape(-1)),
)
OUT_OF_HEADS = (
    Tensor("_kernel", "weight", _merge, lambda array: array.reshape(-1, array.shape[-1]).T),
    Tensor("bias", "bias"),
)
LAYER_NORM = (Tensor("gamma", "weight"), Tensor("beta", "bias"))
EMBEDDING = (Tensor("embeddings", "weight"),)
TOKEN_EMBEDDING = (Tensor("table._embeddings", "weight"),)
VECTOR = (Tensor("", ""),)

Weights = Mapping[str, tuple[str, tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Head:
    """A task's head as a family stores it.

    Attributes:
        name: Of the class in config.json's "architectures".
        weights: As `Architecture.weights`, from the task model's attributes; their names carry no prefix.
        options: Arguments of our task model that make its head the family's.
        lacks: Optional parts of the backbone that a model with this head goes without.
    """

    name: str
    weights: Weights = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """A family: its options, its sizes, its weight names.

    Attributes:
        model_type: Of config.json.
        base: Class name of the bare model in config.json's "architectures".
        prefix: Before the backbone's tensor names in a checkpoint with a head, such as "bert.".
        options: `TransformerConfig` fields that the family fixes.
        sizes: Key of config.json to our field; "norm.epsilon" is an entry of a dict-valued field.
        defaults: What a key of `sizes` means when config.json leaves it out.
        expects: Keys of config.json with the only value that is implemented.
        weights: Our attribute path, with {i} for the block, to theirs and the way a module is stored.
        heads: Our task's class name to its `Head`.
        optional: Parts of the backbone that a head may lack; config.json does not speak of them.
        unused: Tensor names (without prefix) that may be there and are not needed.
        without_effect: Further keys of config.json that do not change what the model computes.
    """

    model_type: str
    base: str
    prefix: str
    options: Mapping[str, Any]
    sizes: Mapping[str, str]
    weights: Weights
    heads: Mapping[str, Head] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    expects: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    without_effect: frozenset[str] = frozenset()

    def read_config(self, config: Mapping[str, Any]) -> tuple[TransformerConfig, list[str]]:
        """Their config.json as ours, and its keys that this library knows nothing of.

        Raises:
            ValueError: for a missing size, or an option with a value that is not implemented.
        """
        fields: dict[str, Any] = {
            key: dict(value) if isinstance(value, dict) else value for key, value in self.options.items()
        }
        for key, expected in self.expects.items():
            if key in config and config[key] != expected:
                raise ValueError(
                    f"config.json says {key}={config[key]!r}; for {self.model_type!r} only {expected!r} is implemented."
                )
        for theirs, ours in self.sizes.items():
            if theirs not in config and theirs not in self.defaults:
                raise ValueError(f"config.json lacks {theirs!r}, which a {self.model_type!r} model needs.")
            value = config.get(theirs, self.defaults.get(theirs))
            name, _, entry = ours.partition(".")
            if name == "activation":
                value = _activation(value)
            if entry:
                fields[name] = {**fields.get(name, {}), entry: value}
            else:
                fields[name] = value
        unknown = [
            key
            for key in config
            if key not in (WITHOUT_EFFECT | self.without_effect | set(self.sizes) | set(self.expects))
        ]
        return TransformerConfig.from_dict(fields), unknown

    def write_config(self, config: TransformerConfig) -> dict[str, Any]:
        """Ours as their config.json.

        Raises:
            ValueError: for an option that differs from what the family fixes: the format has no word for it.
        """
        written: dict[str, Any] = {"model_type": self.model_type, **self.expects}
        for theirs, ours in self.sizes.items():
            name, _, entry = ours.partition(".")
            value = getattr(config, name)
            if entry:
                value = value.get(entry) if isinstance(value, dict) else None
            if name == "activation":
                value = next((other for mine, other in ACTIVATIONS if mine == value), value)
            if name == "attention_dropout" and value is None:
                value = config.dropout
            if value is None:
                value = self.defaults.get(theirs)
            written[theirs] = value
        again, _ = self.read_config(written)
        differing = [
            name
            for name, value in config.to_dict().items()
            if name not in self.optional
            if getattr(again, name) != value and not _equivalent(name, again, config)
        ]
        if differing:
            values = {name: getattr(config, name) for name in differing}
            raise ValueError(f"The format of {self.model_type!r} cannot express {values}.")
        return written


def _equivalent(name: str, one: TransformerConfig, other: TransformerConfig) -> bool:
    """Fields that are spelled differently and mean the same."""
    if name == "attention_dropout":
        return (one.dropout if one.attention_dropout is None else one.attention_dropout) == (
            other.dropout if other.attention_dropout is None else other.attention_dropout
        )
    return name == "mask_zero"  # of inputs, not of the model


def _activation(name: str) -> str:
    known = {theirs: ours for ours, theirs in ACTIVATIONS}
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config.json names the activation {name!r}; known are {sorted(known)}.{hint}")
    return known[name]
