"""What a published family is to us: data, read in both directions."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keras_tfm.architectures.stored import Weights
from keras_tfm.config import PATTERN_FIELDS, TransformerConfig
from keras_tfm.layers import MultiHeadSelfAttention
from keras_tfm.layers.norm import DEFAULT_EPSILON
from keras_tfm.layers.position import schemes as position_kinds

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
    """
    _name_or_path architectures attn_implementation auto_map dtype finetuning_task gradient_checkpointing id2label
    label2id model_type num_labels problem_type task_specific_params tokenizer_class torch_dtype torchscript
    transformers_version bos_token_id cls_token_id eos_token_id mask_token_id pad_token_id sep_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id chunk_size_feed_forward classifier_dropout
    cross_attention_hidden_size output_attentions output_hidden_states return_dict tie_word_embeddings use_bfloat16
    use_cache pretraining_tp max_length num_beams prefix
    """.split()  # noqa: SIM905
)

# Those of them that a model keeps and writes back, and settings of generation.
METADATA = frozenset(
    """
    bos_token_id cls_token_id eos_token_id mask_token_id pad_token_id sep_token_id decoder_start_token_id
    forced_bos_token_id forced_eos_token_id tokenizer_class task_specific_params max_length num_beams prefix min_length
    length_penalty no_repeat_ngram_size early_stopping bad_words_ids
    """.split()  # noqa: SIM905
)

_ATTENTION_DEFAULTS = {
    name: argument.default for name, argument in inspect.signature(MultiHeadSelfAttention).parameters.items()
}


@dataclass(frozen=True)
class Rule:
    """What several keys of a config.json say together, both ways.

    Attributes:
        keys: Of config.json, that the rule knows.
        read: Their config to fields of `TransformerConfig`; a dict is merged into the field's.
        write: Our config to keys of theirs.
    """

    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    write: Callable[[TransformerConfig], dict[str, Any]]


def setting(theirs: str, ours: str, default: Any = None) -> Rule:
    """The rule of a key that null means something to; `default` is what its absence means.

    `ours` is a field, or "field.entry".
    """
    name, _, entry = ours.partition(".")

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        value = config.get(theirs, default)
        return {name: {entry: value} if entry else value}

    def write(config: TransformerConfig) -> dict[str, Any]:
        value = getattr(config, name)
        return {theirs: (value or {}).get(entry) if entry else value}

    return Rule((theirs,), read, write)


@dataclass(frozen=True)
class Head:
    """A task's head as a family stores it.

    Attributes:
        name: Of the class in config.json's "architectures".
        weights: As `Architecture.weights`, from the task model's attributes, a table or a function from the backbone's
            config; their names carry no prefix.
        options: Arguments of our task model that make its head the family's; a function is given the config.
        changes: Fields of the config that a model with this head has otherwise, such as a pooler that it goes without.
        prefix: Before the backbone's tensor names, where it is not the architecture's.
    """

    name: str
    weights: Weights | Callable[[TransformerConfig], Weights] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    prefix: str | None = None

    def weights_of(self, config: TransformerConfig) -> Weights:
        """`weights` for a model of this config."""
        return self.weights(config) if callable(self.weights) else self.weights

    def arguments(self, config: TransformerConfig) -> dict[str, Any]:
        """`options` for a model of this config."""
        return {name: value(config) if callable(value) else value for name, value in self.options.items()}


@dataclass(frozen=True)
class Architecture:
    """A family: its options, its sizes, its weight names.

    Attributes:
        model_type: Of config.json.
        base: Class name of the bare model in config.json's "architectures".
        prefix: Before the backbone's tensor names in a checkpoint with a head, such as "bert.".
        options: `TransformerConfig` fields that the family fixes.
        sizes: Key of config.json to our field; "norm.epsilon" is an entry of a dict-valued field.
        rules: For what a table cannot say.
        defaults: What a key of `sizes` means when config.json leaves it out.
        older: Other names under which files may have a key, to the name that is used here and written.
        expects: Keys of config.json with the only value that is implemented, which is also what a missing key means.
        weights: Our attribute path, with {i} for the block, to theirs and the way a module is stored; or a function from
            the config to such a table.
        copies: Name of a tensor (without prefix) to others under which a file may have it, instead or too.
        heads: Our task's class name to its `Head`.
        optional: Parts of the backbone that a head may lack; config.json does not speak of them.
        output: The tensors of a language model's head that lie in the backbone's token embedding; names as in heads.
        unused: Patterns of tensor names (without prefix) that may be there and are not needed.
        fixed: From the config to tensors that files must hold although they follow from it, by name without prefix.
        without_effect: Further keys of config.json that do not change what the model computes.
    """

    model_type: str
    base: str
    prefix: str
    options: Mapping[str, Any]
    sizes: Mapping[str, str]
    weights: Weights | Callable[[TransformerConfig], Weights]
    copies: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    output: Weights = field(default_factory=dict)
    heads: Mapping[str, Head] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    older: Mapping[str, str] = field(default_factory=dict)
    expects: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    fixed: Callable[[TransformerConfig], dict[str, np.ndarray]] | None = None
    without_effect: frozenset[str] = frozenset()

    def weights_of(self, config: TransformerConfig) -> Weights:
        """`weights` for a backbone of this config."""
        return self.weights(config) if callable(self.weights) else self.weights

    def prefix_with(self, head: Head | None) -> str:
        """What precedes the backbone's tensor names in a file with this head; nothing without one."""
        if head is None:
            return ""
        return self.prefix if head.prefix is None else head.prefix

    def prefix_in(self, names: Iterable[str]) -> str:
        """What precedes the backbone's tensor names in a file with tensors of these names."""
        names = list(names)
        known = [self.prefix, *(head.prefix for head in self.heads.values() if head.prefix)]
        return next((prefix for prefix in known if any(name.startswith(prefix) for name in names)), "")

    def ignores(self, name: str) -> bool:
        """Whether a tensor, named without prefix, says nothing that the model needs."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.unused)

    def read_config(self, config: Mapping[str, Any]) -> tuple[TransformerConfig, list[str]]:
        """Their config.json as ours, and its keys that this library knows nothing of.

        Raises:
            ValueError: for a missing size, or an option with a value that is not implemented.
        """
        fields: dict[str, Any] = {
            key: dict(value) if isinstance(value, dict) else value for key, value in self.options.items()
        }
        config = {self.older.get(key, key): value for key, value in config.items()}
        for key, expected in self.expects.items():
            if config.get(key) is not None and config[key] != expected:
                raise ValueError(
                    f"config.json says {key}={config[key]!r}; for {self.model_type!r} only {expected!r} is implemented."
                )
        for theirs, ours in self.sizes.items():
            if theirs not in config and theirs not in self.defaults:
                raise ValueError(f"config.json lacks {theirs!r}, which a {self.model_type!r} model needs.")
            value = config.get(theirs, self.defaults.get(theirs))
            name, _, entry = ours.partition(".")
            if name == "activation":
                value = read_activation(value)
            fields = merge(fields, {name: {entry: value} if entry else value})
        for rule in self.rules:
            fields = merge(fields, rule.read(config))
        known = WITHOUT_EFFECT | METADATA | self.without_effect | set(self.sizes) | set(self.expects)
        known |= {key for rule in self.rules for key in rule.keys}
        unknown = [key for key in config if key not in known]
        kept = {key: value for key, value in config.items() if key in METADATA | self.without_effect}
        return TransformerConfig.from_dict({**fields, "metadata": kept or None, "family": self.model_type}), unknown

    def write_config(self, config: TransformerConfig) -> dict[str, Any]:
        """Ours as their config.json.

        Raises:
            ValueError: for an option that differs from what the family fixes: the format has no word for it.
        """
        written: dict[str, Any] = {**(config.metadata or {}), "model_type": self.model_type, **self.expects}
        for theirs, ours in self.sizes.items():
            name, _, entry = ours.partition(".")
            value = getattr(config, name)
            if entry:
                value = _norm(value) if name == "norm" else value
                value = value.get(entry) if isinstance(value, dict) else None
            if name == "activation":
                value = write_activation(value, usual=self.defaults.get(theirs))
            if name == "attention_dropout" and value is None:
                value = config.dropout
            if name == "num_key_value_heads" and value is None:
                value = config.num_heads
            if name == "num_decoder_layers" and value is None:
                value = config.num_layers
            if value is None:
                value = self.defaults.get(theirs)
            if isinstance(self.defaults.get(theirs), bool) and not isinstance(value, bool):
                raise ValueError(
                    f"The format of {self.model_type!r} has yes or no for {ours}, and no word for {value!r}."
                )
            written[theirs] = value
        for rule in self.rules:
            written |= rule.write(config)
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


def merge(fields: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with `more`, dicts entry by entry."""
    merged = dict(fields)
    for name, value in more.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def _equivalent(name: str, one: TransformerConfig, other: TransformerConfig) -> bool:
    """Fields that are spelled differently and mean the same, or mean nothing to what is computed."""
    if name in ("mask_zero", "metadata", "family"):
        return True
    if name == "layer_pattern" or (name in PATTERN_FIELDS and (one.layer_pattern or other.layer_pattern)):
        pairs = list(zip(_blocks(one), _blocks(other), strict=False))
        names = PATTERN_FIELDS if name == "layer_pattern" else (name,)
        return all(_equivalent(field, *pair) for field in names for pair in pairs)
    first, second = getattr(one, name), getattr(other, name)
    if name == "attention_dropout":
        first, second = (c.dropout if c.attention_dropout is None else c.attention_dropout for c in (one, other))
    elif name in ("position", "attention_position"):
        first, second = spelled_out(first), spelled_out(second)
    elif name in ("use_bias", "attention", "feed_forward"):
        first, second = _parts(one), _parts(other)
    elif name == "num_key_value_heads":
        first, second = first or one.num_heads, second or other.num_heads
    elif name == "head_dim":
        first, second = (c.head_dim or c.hidden_dim // c.num_heads for c in (one, other))
    elif name == "final_norm":
        first, second = one.has_final_norm, other.has_final_norm
    elif name == "norm":
        first, second = _norm(first), _norm(second)
    elif name in ("layer_groups", "num_decoder_layers"):
        first, second = first or one.num_layers, second or other.num_layers
    return first == second


def _parts(config: TransformerConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of attention and feed-forward that are not the layers' defaults, the biases of each projection told."""
    attention, feed_forward = (
        {name: value for name, value in (given or {}).items() if value != defaults.get(name)}
        for given, defaults in ((config.attention, _ATTENTION_DEFAULTS), (config.feed_forward, {}))
    )
    feed_forward = {"use_bias": config.use_bias, **feed_forward}
    bias = (config.attention or {}).get("use_bias", config.use_bias)
    names = ("query", "key", "value", "output")
    attention["use_bias"] = {name: bias.get(name, True) if isinstance(bias, dict) else bias for name in names}
    attention.setdefault("scale", (config.head_dim or config.hidden_dim // config.num_heads) ** -0.5)
    if "qk_norm" in attention:
        attention["qk_norm"] = _norm(attention["qk_norm"])
    return attention, feed_forward


def _norm(norm: Any) -> Any:
    """A normalization with its defaults."""
    norm = {"kind": norm} if isinstance(norm, str) else dict(norm)
    return {"epsilon": DEFAULT_EPSILON.get(norm.get("kind")), "offset": 0.0, **norm}


def _blocks(config: TransformerConfig) -> list[TransformerConfig]:
    """For each block the config whose blocks are all like it."""
    return [config.replace(layer_pattern=None, **config.block(index)) for index in range(config.num_layers)]


def spelled_out(position: Any) -> Any:
    """A position scheme with its defaults."""
    if isinstance(position, str):
        position = {"kind": position}
    if not position or position.get("kind") not in position_kinds():
        return position
    arguments = inspect.signature(position_kinds()[position["kind"]][0]).parameters
    defaults = {name: argument.default for name, argument in arguments.items() if argument.default != argument.empty}
    lists = {name: list(default) for name, default in defaults.items() if isinstance(default, tuple)}
    return {**defaults, **lists, **position}


def read_activation(name: str | None) -> str:
    """Our name of an activation, given theirs; ValueError for one that is not implemented."""
    known = {theirs: ours for ours, theirs in ACTIVATIONS}
    if name is None or name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"config.json names the activation {name!r}; known are {sorted(known)}.{hint}")
    return known[name]


def write_activation(activation: str, usual: str | None = None) -> str:
    """The inverse of `read_activation`, by the family's usual name for it where it has one."""
    names = [theirs for ours, theirs in ACTIVATIONS if ours == activation]
    return usual if usual in names else next(iter(names), activation)
