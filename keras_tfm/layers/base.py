"""What every layer here shares: registration, a config read off the constructor, checks with good messages."""

from __future__ import annotations

import difflib
import inspect
import zlib
from collections.abc import Iterable
from typing import Any

import keras
from keras import saving

from keras_tfm.ops.attention import check_mask
from keras_tfm.ops.backend import Tensor, static_shape

PACKAGE = "keras_tfm"
KERAS_ARGUMENTS = ("name", "dtype", "trainable", "activity_regularizer", "autocast")  # that any layer takes

# Other libraries' names for arguments, where spelling alone would not lead to ours.
SAME_AS = {
    "num_labels": ("num_classes",),
    "n_classes": ("num_classes",),
    "id2label": ("labels",),
    "class_names": ("labels",),
    "heads": ("num_heads",),
    "n_head": ("num_heads",),
    "num_attention_heads": ("num_heads",),
    "num_kv_heads": ("num_key_value_heads",),
    "key_dim": ("head_dim",),
    "size_per_head": ("head_dim",),
    "d_model": ("hidden_dim",),
    "embed_dim": ("hidden_dim",),
    "embedding_dim": ("hidden_dim",),
    "output_dim": ("hidden_dim",),
    "hidden_size": ("hidden_dim",),
    "ff_dim": ("intermediate_dim",),
    "ffn_dim": ("intermediate_dim",),
    "mlp_dim": ("intermediate_dim",),
    "dim_feedforward": ("intermediate_dim",),
    "intermediate_size": ("intermediate_dim",),
    "input_dim": ("vocabulary_size",),
    "vocab_size": ("vocabulary_size",),
    "sequence_length": ("max_length", "max_sequence_length"),
    "max_position_embeddings": ("max_sequence_length", "max_length"),
    "num_hidden_layers": ("num_layers",),
    "rate": ("dropout",),
    "dropout_rate": ("dropout", "rate"),
    "hidden_dropout_prob": ("dropout",),
    "pre_norm": ("norm_placement",),
    "norm_first": ("norm_placement",),
    "normalize_first": ("norm_placement",),
    "preprocessor": ("tokenizer",),
    "is_causal": ("causal",),
}


def register(cls):
    """Register a class for `.keras` files under this library's name, so that no `custom_objects` are needed."""
    return saving.register_keras_serializable(package=PACKAGE)(cls)


class Layer(keras.layers.Layer):
    """A Keras layer whose config is its constructor's arguments.

    The rule that makes this work: a constructor keeps every argument as an attribute of the same name, in the form the
    caller gave. Where that name holds the sub-layer made from the argument instead, `given` keeps the argument. Dtypes
    that quantization gave to sub-layers are kept in the config too, so a quantized layer reloads as one.
    """

    _widths: tuple[tuple[str, int], ...] = ()  # of the call's leading arguments, as `build` saw them

    def __new__(cls, *args: Any, **kwargs: Any):
        check_arguments(cls, args, kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._check_call(args, kwargs)
        # Keras casts float arguments to the compute dtype; a cache keeps the dtype it was made with.
        cache = kwargs.get("cache")
        if cache is not None and not any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(cache)):
            kwargs["cache"] = Held(release(cache))
        return super().__call__(*args, **kwargs)

    def _check_call(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Raise ValueError for a mask without a meaning, and for another width than the layer was built for."""
        names = self.call_signature_parameters
        if "mask" in kwargs and "mask" not in names:
            masks = " or ".join(name for name in names if name.endswith("_mask"))
            way_out = f"say which mask is meant: {masks}" if masks else "none is needed"
            raise ValueError(f"{type(self).__name__} has no argument 'mask'; {way_out}.")
        for index, (name, width) in enumerate(self._widths):
            value = args[index] if len(args) > index else kwargs.get(name)
            shape = getattr(value, "shape", None)
            if shape is not None and len(shape) == 3 and shape[-1] not in (None, width):
                raise ValueError(
                    f"{self.name} was built for {name} of width {width}; got width {shape[-1]}, shape {tuple(shape)}. "
                    "Another width needs a layer of its own."
                )

    def quantize(self, mode: Any = None, type_check: bool = True, config: Any = None) -> None:
        """As Keras's, which warns of layers that it passes over; those without weights are no loss, and pass quietly."""
        if self.weights:
            super().quantize(mode, type_check=type_check, config=config)

    def given(self, **arguments: Any) -> None:
        """Keep arguments whose attribute holds a sub-layer made from them. A layer the caller made speaks for itself."""
        self._given = {name: value for name, value in arguments.items() if not isinstance(value, keras.layers.Layer)}

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        given = getattr(self, "_given", {})
        for name in argument_names(type(self)):
            config[name] = serialize(given[name] if name in given else getattr(self, name))
        config["dtype"] = keras.dtype_policies.serialize(sublayer_dtypes(self))
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]):
        config = {name: deserialize(value) for name, value in config.items()}
        return cls(**config)

    def compute_output_shape(self, x_shape: tuple, **shapes: tuple) -> Any:
        """Shapes of what `call` returns for float inputs of these shapes, the further ones by name (`context_shape`)."""
        specs = {
            name.removesuffix("_shape"): keras.KerasTensor(shape, dtype=self.compute_dtype)
            for name, shape in shapes.items()
        }
        x = keras.KerasTensor(x_shape, dtype=self.compute_dtype)
        return keras.tree.map_structure(lambda spec: spec.shape, self.compute_output_spec(x, **specs))

    def sublayer_options(self, name: str) -> dict[str, Any]:
        """Constructor keywords of a sub-layer called `name`: its name, and the dtype that it has in this layer."""
        policy = self._dtype_policy  # the map itself; `dtype_policy` would resolve it for this layer's path
        return {"name": name, "dtype": policy}


class Held:
    """An argument that Keras is not to look into; `release` gives it back."""

    def __init__(self, value: Any):
        self.value = value


def release(value: Any) -> Any:
    """What was held; anything else as it is."""
    return value.value if isinstance(value, Held) else value


def argument_names(cls: type) -> list[str]:
    """The constructor's own arguments, those it hands on to a base class included, Keras's (name, dtype, …) not."""
    names: dict[str, None] = {}
    for base in cls.__mro__:
        if base in (keras.layers.Layer, object):
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names |= dict.fromkeys(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def check_arguments(cls: type, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raise an error that names `cls` if its constructor would refuse these arguments, before it is run.

    Python's own names the base class that the constructor is inherited from, Keras's suggests nothing. A constructor that
    is not this library's is left alone: it may take what it likes.

    Raises:
        ValueError: for unknown names; the nearest known one is suggested.
        TypeError: for missing arguments, or too many.
    """
    owner = next(base for base in cls.__mro__ if "__init__" in vars(base))
    if not owner.__module__.startswith("keras_tfm."):
        return
    known = [*argument_names(cls), *(KERAS_ARGUMENTS if issubclass(cls, Layer) else ())]
    check_names(cls.__name__, kwargs, known)
    try:
        inspect.signature(cls.__init__).bind(None, *args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{cls.__name__}: {error}.") from None


def check_names(owner: str, given: Iterable[str], known: list[str]) -> None:
    """Raise ValueError if a name is not among the known ones; the nearest is suggested."""
    unknown = [name for name in given if name not in known]
    if unknown:
        hints = "".join(suggestion(name, known) for name in unknown) or f" It takes {known}."
        raise ValueError(f"{owner} has no argument {', '.join(map(repr, unknown))}.{hints}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question that names what a misspelt name, or another library's, stands for; nothing if no known one is near."""
    known = list(known)
    near = [ours for ours in SAME_AS.get(name, ()) if ours in known] or difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def serialize(value: Any) -> Any:
    """JSON-able form of an argument: plain data as it is, Keras objects and callables by Keras's serializer."""
    if isinstance(value, dict):
        return {name: serialize(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [serialize(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return saving.serialize_keras_object(value)


def deserialize(value: Any) -> Any:
    """The inverse of `serialize`."""
    if isinstance(value, dict):
        if is_serialized(value):
            return saving.deserialize_keras_object(value)
        return {name: deserialize(item) for name, item in value.items()}
    if isinstance(value, list):
        return [deserialize(item) for item in value]
    return value


def is_serialized(value: Any) -> bool:
    """Whether value is a Keras object in serialized form, rather than a dict of options."""
    return isinstance(value, dict) and "class_name" in value and "config" in value


def sublayer_dtypes(layer: keras.layers.Layer) -> Any:
    """The layer's dtype policy, or a `DTypePolicyMap` by path where quantization has changed that of sub-layers."""
    own = layer._dtype_policy
    quantized = {
        sub.path: sub.dtype_policy for sub in layer._flatten_layers() if sub.path and sub.quantization_mode is not None
    }
    if not quantized:
        return own.default_policy if isinstance(own, keras.dtype_policies.DTypePolicyMap) else own
    default = own.default_policy if isinstance(own, keras.dtype_policies.DTypePolicyMap) else own
    return keras.dtype_policies.DTypePolicyMap(default, quantized)


def clone_initializer(initializer: Any) -> Any:
    """A fresh copy, so that two weights of one shape do not start equal."""
    if isinstance(initializer, keras.initializers.Initializer):
        return type(initializer).from_config(initializer.get_config())
    return initializer


def derived_seed(seed: int | None, part: str) -> int | None:
    """A seed for a part of a layer, so that one seed makes all parts reproducible and none draws like another."""
    return None if seed is None else (seed + zlib.crc32(part.encode())) % 2**31


def logical_axes(variable: Any, *axes: str | None) -> None:
    """State what each dimension of a weight means ("vocab", "embed", "heads", …), for layouts to go by."""
    if variable is None:
        return
    variable.logical_axes = axes
    place = getattr(keras.distribution.distribution(), "place", None)  # of keras_tfm.distribution.Layouts
    if place is not None:
        place(variable)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise ValueError unless `value` is among `choices`; the nearest is suggested."""
    choices = list(choices)
    if value in choices:
        return
    hint = suggestion(str(value), map(str, choices))
    raise ValueError(f"{name} must be one of {choices}; got {value!r}.{hint}")


def check_options(name: str, options: dict[str, Any], cls: type) -> None:
    """Raise ValueError if `options` has a key that the constructor of `cls` does not take; suggest the nearest."""
    known = [*argument_names(cls), "name", "dtype", "trainable"]
    for option in options:
        if option not in known:
            hint = suggestion(option, known) or f" It takes {known}."
            raise ValueError(f"{name} does not take the option {option!r}.{hint}")


def check_positive(**values: int | None) -> None:
    """Raise ValueError unless each named value is None or a positive integer."""
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
            raise ValueError(f"{name} must be a positive integer; got {value!r}.")


def check_rate(**values: float | None) -> None:
    """Raise ValueError unless each named value is None or in [0, 1]."""
    for name, value in values.items():
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must be between 0 and 1; got {value!r}.")


def check_sequence(
    x: Tensor,
    num_heads: int,
    padding_mask: Tensor | None,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    positions: Tensor | None,
) -> None:
    """Raise ValueError unless masks and positions of self-attention over x have the shapes and dtypes they should."""
    check_hidden("x", x)
    batch, length, _ = static_shape(x)
    check_boolean(padding_mask=padding_mask, attention_mask=attention_mask)
    check_mask("padding_mask", padding_mask, [(batch, length)])
    if attention_mask is not None and static_shape(attention_mask) == (batch, length) and batch != length:
        raise ValueError(
            f"attention_mask of shape {(batch, length)} tells tokens from padding: give it as padding_mask."
        )
    check_mask("attention_mask", attention_mask, [(batch, length, length), (batch, num_heads, length, length)])
    check_mask("segment_ids", segment_ids, [(batch, length)], boolean=False)
    if positions is not None:
        shape = static_shape(positions)
        fits = len(shape) == 2 and (shape[0] in (1, None, batch) or batch is None) and shape[1] in (None, length)
        if not fits and length is not None:
            raise ValueError(f"positions must have shape {(batch, length)}, or 1 for the batch; got {shape}.")


def check_places(places: Tensor | None, batch: int | None, cache: Any) -> None:
    """Raise ValueError unless the tokens whose outputs are asked for are (batch, n) int, and no cache is beside them."""
    if places is None:
        return
    if cache is not None:
        raise ValueError("places cannot be combined with cache, of which every new token is asked.")
    shape = static_shape(places)
    if "int" not in str(places.dtype) or len(shape) != 2 or (None not in (shape[0], batch) and shape[0] != batch):
        raise ValueError(f"places must be ({batch}, n) integers; got shape {shape}, {places.dtype}.")


def check_boolean(**masks: Tensor | None) -> None:
    """Raise ValueError for a mask of floats, which other libraries add to the scores."""
    for name, mask in masks.items():
        if mask is not None and "float" in str(mask.dtype):
            of_tokens = name.endswith("padding_mask")
            raise ValueError(
                f"{name} must be boolean or 0/1 integers, true = {'a token' if of_tokens else 'may attend'}; "
                f"got {keras.backend.standardize_dtype(mask.dtype)}."
                + ("" if of_tokens else " What is added to scores comes from `position`, such as 'alibi' or a layer.")
            )


def check_hidden(name: str, x: Tensor) -> int:
    """The width of x, (batch, length, width); ValueError unless it has three dimensions and a known width."""
    shape = static_shape(x) if hasattr(x, "shape") else tuple(x)
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(f"{name} must be (batch, length, width) with a known width; got shape {shape}.")
    return shape[-1]


def pack(output: Any, *extras: Any) -> Any:
    """`output` alone, or a tuple with those extras that are not None: how every layer here returns."""
    extras = tuple(extra for extra in extras if extra is not None)
    return (output, *extras) if extras else output
