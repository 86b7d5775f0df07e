"""A functional Keras model with named inputs of which only the first ones are required."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import keras
from keras import ops

from keras_tfm.layers.base import check_arguments, sublayer_dtypes, suggestion
from keras_tfm.layers.token_embedding import check_token_ids

# name: (shape without batch, dtype)
INPUTS: dict[str, tuple[tuple[int | None, ...], str]] = {
    "token_ids": ((None,), "int32"),
    "padding_mask": ((None,), "bool"),
    "token_type_ids": ((None,), "int32"),
    "segment_ids": ((None,), "int32"),
    "positions": ((None,), "int32"),
    "attention_mask": ((None, None), "bool"),
    "decoder_token_ids": ((None,), "int32"),
    "decoder_padding_mask": ((None,), "bool"),
    "decoder_segment_ids": ((None,), "int32"),
    "decoder_positions": ((None,), "int32"),
    "segment_starts": ((None,), "int32"),
    "images": ((None, None, None), "float32"),  # the sizes are the model's
}

# What other libraries call them.
SAME_AS = {
    "input_ids": "token_ids",
    "inputs": "token_ids",
    "tokens": "token_ids",
    "encoder_token_ids": "token_ids",
    "encoder_input_ids": "token_ids",
    "attention_mask": "padding_mask",
    "input_mask": "padding_mask",
    "encoder_padding_mask": "padding_mask",
    "encoder_attention_mask": "padding_mask",
    "decoder_input_ids": "decoder_token_ids",
    "decoder_attention_mask": "decoder_padding_mask",
    "position_ids": "positions",
    "decoder_position_ids": "decoder_positions",
    "pixel_values": "images",
    "image": "images",
}


class NamedInputsModel(keras.Model):
    """Makes a functional model out of `compute(inputs: dict)`, and calls that same method when the model is called.

    Inputs are a dict; those left out are None, and the first may be passed bare. `compute` is made of Keras layers
    alone, so that the graph and the call cannot drift apart.

    Args:
        names: Keys of `INPUTS`.
        required: How many of them, from the front, must be given.
        parts: Attributes that `compute` uses: layers, lists of layers, None.
        more: Further optional inputs, with which outputs are of other shapes than the functional graph's.
        name, trainable, dtype: As of any Keras model.
    """

    vocabulary_size: int | None = None
    image_shape: tuple[int, int, int] | None = None

    # What training did to a model (LoRA, what is frozen), as JSON-able data, and done again to a new one. Models know of
    # neither: `keras_tfm.training` fills these in.
    changes_of: ClassVar[Callable[[Any], dict[str, Any]] | None] = None
    restore_changes: ClassVar[Callable[[Any, dict[str, Any]], None] | None] = None

    def __new__(cls, *args: Any, **kwargs: Any):
        if args or kwargs:  # Keras calls this with none, for its own ends
            check_arguments(cls, args, kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        names: list[str],
        required: int,
        parts: dict[str, Any],
        *,
        more: tuple[str, ...] = (),
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
    ):
        # `compute` needs the parts to make the graph that Keras's constructor takes, and Keras tracks attributes only
        # after its constructor: so they are plain attributes first.
        self.__dict__.update(parts)
        symbols = {}
        for index, key in enumerate(names):
            shape, input_dtype = INPUTS[key] if key != "images" else (self.image_shape, "float32")
            symbols[key] = keras.Input(shape, dtype=input_dtype, name=key, optional=index >= required)
        self._input_keys = (*names, *more)
        self._required_keys = tuple(names[:required])
        super().__init__(inputs=symbols, outputs=self.compute(symbols), name=name)
        for attribute, part in parts.items():
            self.__dict__.pop(attribute, None)
            setattr(self, attribute, part)
        if not trainable:  # a part that was frozen before stays so
            self.trainable = False
        self.dtype_policy = keras.dtype_policies.get(dtype)

    def compute(self, inputs: dict[str, Any], training: bool | None = None) -> Any:
        """The computation, in terms of layers. `inputs` has every name; absent ones are None."""
        raise self._not_implemented_error(self.compute)

    def call(self, inputs, training=None, mask=None):
        return self.compute(self.standardize(inputs), training=training)

    def compute_output_spec(self, inputs, training=None, mask=None):
        outputs = self.compute(self.standardize(inputs), training=training)
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), outputs)

    @property
    def input_spec(self):
        return None  # `standardize` checks, with better messages

    def _assert_input_compatibility(self, *args):
        """Nothing: Keras's compares what is given with the graph's inputs one by one, absent ones included."""

    def standardize(self, inputs: Any, required: tuple[str, ...] | None = None) -> dict[str, Any]:
        """The inputs as a dict of tensors by name, None for the absent, checked.

        Args:
            inputs: A dict, or the first input bare.
            required: Names that must be given. Default: the model's.

        Raises:
            ValueError: for an unknown or missing name, a wrong rank, or token ids outside the vocabulary where these
                can be read without cost.
        """
        if isinstance(inputs, (list, tuple)) and len(inputs) == 1:
            inputs = inputs[0]
        given = dict(inputs) if isinstance(inputs, dict) else {self._input_keys[0]: inputs}
        for key in given:
            if key not in self._input_keys:
                same = SAME_AS.get(key)
                hint = f" Did you mean {same!r}?" if same in self._input_keys else suggestion(key, self._input_keys)
                raise ValueError(f"{self.name} has no input {key!r}; it takes {list(self._input_keys)}.{hint}")
        for key in self._required_keys if required is None else required:
            if given.get(key) is None:
                raise ValueError(f"{self.name} needs the input {key!r}; got {sorted(given)}.")
        tensors = {key: self._tensor(key, given.get(key)) for key in self._input_keys}
        for key, value in tensors.items():
            which = "decoder_token_ids" if key.startswith("decoder_") else "token_ids"
            first = tensors.get(which) if key != "segment_starts" else None
            if value is not None and first is not None and not _agree(value.shape, first.shape):
                shapes = tuple(first.shape), tuple(value.shape)
                raise ValueError(f"{key} must go with {which} of shape {shapes[0]}; got shape {shapes[1]}.")
        return tensors

    def _tensor(self, key: str, value: Any) -> Any:
        if value is None:
            return None
        if key == "images":
            return self._images(value)
        shape, dtype = INPUTS[key]
        if holds_strings(value):
            raise ValueError(f"{key} must be integers; got strings. {STRINGS}")
        if not isinstance(value, keras.KerasTensor):
            if key.endswith("token_ids") and self.vocabulary_size is not None:
                check_token_ids(value, self.vocabulary_size, key)
            value = ops.cast(ops.convert_to_tensor(value), dtype)
        rank = len(value.shape)
        if rank != len(shape) + 1 and not (key == "attention_mask" and rank == 4):
            expected = (
                "(batch, queries, keys) or (batch, heads, queries, keys)"
                if key == "attention_mask"
                else "(batch, length)"
            )
            hint = " A mask of real tokens is padding_mask." if key == "attention_mask" and rank == 2 else ""
            raise ValueError(f"{key} must be {expected}; got shape {tuple(value.shape)}.{hint}")
        return value

    def _images(self, value: Any) -> Any:
        if not isinstance(value, keras.KerasTensor):
            value = ops.convert_to_tensor(value)
        dtype = keras.backend.standardize_dtype(value.dtype)
        if "float" not in dtype:
            raise ValueError(
                f"images must be float, scaled as the model was trained, such as images / 127.5 - 1; got {dtype}."
            )
        shape, own = tuple(value.shape), self.image_shape or ()
        if len(shape) != 4 or any(size not in (None, known) for size, known in zip(shape[1:], own, strict=True)):
            height, width, channels = own
            hint = " Channels come last." if len(shape) == 4 and shape[1] == channels != height else ""
            raise ValueError(f"images must be (batch, {height}, {width}, {channels}); got shape {shape}.{hint}")
        return value if dtype == "float32" else ops.cast(value, "float32")

    def get_config(self) -> dict[str, Any]:
        policy = keras.dtype_policies.serialize(sublayer_dtypes(self))  # with what quantization changed
        config = {"name": self.name, "trainable": self.trainable, "dtype": policy}
        changes = NamedInputsModel.changes_of(self) if NamedInputsModel.changes_of is not None else None
        return {**config, "changes": changes} if changes else config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None):
        if isinstance(config.get("dtype"), dict):
            config = {**config, "dtype": keras.dtype_policies.deserialize(config["dtype"])}
        changes = config.get("changes")
        model = cls(**{name: value for name, value in config.items() if name != "changes"})
        if changes:
            assert NamedInputsModel.restore_changes is not None, "keras_tfm.training has not been imported"
            NamedInputsModel.restore_changes(model, changes)
        return model


STRINGS = (
    "A task model with a tokenizer reads strings from a list or a NumPy array, fit(texts, labels), or as the dataset that "
    "model.dataset(texts, labels) makes of them; any other dataset holds token ids."
)


def holds_strings(value: Any) -> bool:
    """Whether a tensor, an array or a spec of one has a dtype of strings."""
    dtype = getattr(value, "dtype", None)
    return getattr(dtype, "kind", "") in ("U", "S") or "string" in str(getattr(dtype, "name", dtype)).lower()


def _agree(shape: Any, first: Any) -> bool:
    """Whether batch (1 serves all rows) and length of an input are those of the tokens, as far as both are known."""
    lengths = shape[1:] if len(shape) < 4 else shape[2:]  # a mask by head has (batch, heads, queries, keys)
    same_batch = shape[0] in (1, None, first[0]) or first[0] is None
    return same_batch and all(length in (None, first[1]) or first[1] is None for length in lengths)
