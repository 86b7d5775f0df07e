"""What task models share: a backbone, a tokenizer, and `fit` on arrays, datasets or raw strings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tfm.config import TransformerConfig
from keras_tfm.data import accepted
from keras_tfm.distribution import check_placed, check_strategy
from keras_tfm.distribution.sharing import (
    batches_of,
    check_arrays,
    check_predictable,
    checked,
    filled_up,
    placed,
    several_hosts,
    shares,
)
from keras_tfm.distribution.strategies import Replicated, in_scope
from keras_tfm.layers.base import argument_names, check_names
from keras_tfm.models.backbone import Backbone
from keras_tfm.models.named_inputs import NamedInputsModel
from keras_tfm.models.objectives import TokenCrossentropy
from keras_tfm.models.pretrained import Pretrained
from keras_tfm.models.raw_data import check_data, is_examples, is_text, split_rows
from keras_tfm.models.raw_rows import RawRows
from keras_tfm.models.recompiled import Recompiled
from keras_tfm.models.resumed import resumed
from keras_tfm.models.text_dataset import TextDataset, is_grain, opened, sharing_itself
from keras_tfm.ops import clipping, fused_adam, token_accumulation
from keras_tfm.ops.shards import on_every_device

STEPS = ("train_step", "test_step", "compute_loss")  # where a subclass may do without labels


class Task(RawRows, Recompiled, Replicated, Pretrained, NamedInputsModel):
    """A backbone with a head. Subclasses make the head in `_head_parts` and apply it in `_apply_head`.

    Args:
        backbone: A `Backbone`.
        tokenizer: What `keras_tfm.data.as_tokenizer` takes: ours, of `tokenizers`, of `transformers`, or of KerasHub. With
            one, `fit`, `evaluate` and `predict` take raw strings. It can be assigned later too.
        name, trainable, dtype: As of any Keras model. dtype is the head's; the backbone has its own.
    """

    kinds: tuple[str, ...] = ("encoder", "decoder", "encoder_decoder")
    reads = "tokens"
    more_inputs: tuple[str, ...] = ()  # of the head, beside the backbone's
    _weighs = False  # batches of accumulated gradients, by their tokens

    def __init__(
        self,
        backbone: Backbone,
        *,
        tokenizer: Any = None,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
    ):
        if not isinstance(backbone, Backbone):
            raise ValueError(f"backbone must be a keras_tfm Backbone; got {type(backbone).__name__}.")
        if backbone.config.kind not in self.kinds:
            raise ValueError(
                f"{type(self).__name__} goes on a backbone of kind {' or '.join(map(repr, self.kinds))}; "
                f"this one is {backbone.config.kind!r}."
            )
        reads = "tokens" if backbone.image_shape is None else "images"
        if reads != self.reads:
            raise ValueError(f"{type(self).__name__} reads {self.reads}; this backbone reads {reads}.")
        dtype = backbone.dtype_policy if dtype is None else dtype
        self.vocabulary_size = backbone.config.vocabulary_size
        self.image_shape = backbone.image_shape
        self.tokenizer = tokenizer
        parts = {"backbone": backbone, **self._head_parts(backbone, dtype)}
        super().__init__(
            list(backbone._input_keys),
            len(backbone._required_keys),
            parts,
            more=self.more_inputs,
            name=name,
            trainable=trainable,
            dtype=dtype,
        )

    def __setattr__(self, name, value):
        # KerasHub's tokenizers are Keras layers: they are wrapped before Keras takes one for a part of this model.
        if name == "tokenizer" and value is not None:
            value = accepted.as_tokenizer(value)
            if self.vocabulary_size is not None and value.vocabulary_size > self.vocabulary_size:
                raise ValueError(
                    f"The tokenizer has {value.vocabulary_size} tokens, the backbone's vocabulary_size is "
                    f"{self.vocabulary_size}: give it a tokenizer of at most that many, or build a larger backbone."
                )
        super().__setattr__(name, value)

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any):
        """As `Backbone.from_pretrained`; `labels` alone say num_classes too, and an unknown option raises ValueError."""
        own = [name for name in argument_names(cls) if name != "backbone"]
        fields = [field.name for field in dataclasses.fields(TransformerConfig)]
        check_names(
            f"{cls.__name__}.from_pretrained", options, [*own, *fields, "revision", "dtype", "tokenizer", "name"]
        )
        if options.get("labels") is not None and "num_classes" in own:
            options.setdefault("num_classes", len(options["labels"]))
        return super().from_pretrained(source, **options)

    def _head_parts(self, backbone: Backbone, dtype: Any) -> dict[str, Any]:
        """The layers of the head, by attribute name."""
        raise self._not_implemented_error(self._head_parts)

    def _apply_head(self, hidden: Any, inputs: dict[str, Any], training: bool | None) -> Any:
        raise self._not_implemented_error(self._apply_head)

    def compute(self, inputs, training=None):
        given = {name: inputs[name] for name in self.backbone._input_keys}
        return self._apply_head(self.backbone(given, training=training), inputs, training)

    def standardize(self, inputs, required=None):
        if is_text(inputs):
            texts = [inputs] if isinstance(inputs, str) else list(inputs)
            batch = self._require_tokenizer()(texts, self._longest())
            inputs = {name: batch[name] for name in self._input_keys if name in batch}
        return super().standardize(inputs, required)

    def __call__(self, inputs, *args, **kwargs):
        # Keras takes no strings as layer inputs: they are tokenized before it looks.
        return super().__call__(self.standardize(inputs) if is_text(inputs) else inputs, *args, **kwargs)

    # Training ---------------------------------------------------------------------------------------------------------

    def _default_loss(self) -> Any:
        raise self._not_implemented_error(self._default_loss)

    def _default_metrics(self) -> Any:
        raise self._not_implemented_error(self._default_metrics)

    @in_scope
    def compile(self, optimizer: Any = None, loss: Any = "auto", *, metrics: Any = "auto", **options: Any) -> None:
        """As `keras.Model.compile`, with defaults for fine-tuning, and Adam steps by the backend's fused kernel.

        Args:
            optimizer: Default: AdamW at a rate of 5e-5, without decay of biases and norms. One with
                `gradient_accumulation_steps` takes the mean over the tokens of all these batches.
            loss: "auto" is the task's own.
            metrics: "auto" are the task's own.
            options: Everything else that Keras takes.
        """
        if optimizer is None:
            optimizer = keras.optimizers.AdamW(5e-5, weight_decay=0.01)
            optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "scale"])
        loss = self._default_loss() if isinstance(loss, str) and loss == "auto" else loss
        metrics = self._default_metrics() if isinstance(metrics, str) and metrics == "auto" else metrics
        optimizer = keras.optimizers.get(optimizer)
        fused_adam.accelerate(optimizer)
        clipping.clip_summed(optimizer)
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **options)
        # Weighed by tokens where the loss is a mean over them.
        self._weighs = isinstance(self.loss, TokenCrossentropy) and token_accumulation.weigh_by_tokens(self.optimizer)

    def train_step(self, *args, **kwargs):
        if not self._weighs:
            return super().train_step(*args, **kwargs)
        data = kwargs["data"] if "data" in kwargs else args[-1]
        _, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        with token_accumulation.of(self.optimizer, self.loss.total_weight(labels, weights)):
            return super().train_step(*args, **kwargs)

    @in_scope
    def fit(
        self,
        x=None,
        y=None,
        *,
        batch_size: int | None = None,
        validation_data=None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        sample_weight=None,
        **options,
    ):
        """As `keras.Model.fit`; also on raw rows, as `dataset` takes them. Compiles if need be."""
        check_data(x)
        check_placed(self)
        if not self.compiled:
            self.compile()
        check_strategy(self)
        rows = batch_size or 32
        if self._is_raw(x):
            if validation_split:
                (x, y, sample_weight), validation_data = split_rows(validation_split, x, y, sample_weight)
                validation_split = 0.0
            x = self.dataset(x, y, batch_size=rows, shuffle=shuffle, sample_weight=sample_weight)
            y = sample_weight = None
        given = x if isinstance(x, TextDataset) else None
        if given is not None:
            self._check_labelled("fit", given)
            resumed(options.get("callbacks"), given, options.get("steps_per_epoch"))
            x, batch_size, shuffle = given.for_fit(self.loss), None, False  # it shuffles itself
        else:
            y = self._array_labels(x, y)
            self._check_labelled("fit", x, y)
            shuffle = shuffle and not is_grain(x)
            check_arrays(x, rows, validation_split)
            x = checked(resumed(options.get("callbacks"), opened(x), options.get("steps_per_epoch")))
        if isinstance(validation_data, (tuple, list)):
            held_out, labels, *weights = (*validation_data, None) if len(validation_data) == 1 else validation_data
            if self._is_raw(held_out):
                weight = weights[0] if weights else None
                validation_data = self.dataset(held_out, labels, batch_size=rows, sample_weight=weight)
            else:
                check_arrays(held_out, options.get("validation_batch_size") or rows)
                validation_data = (held_out, self._array_labels(held_out, labels), *weights)
        validation_data = (
            validation_data.for_fit(self.loss)
            if isinstance(validation_data, TextDataset)
            else checked(opened(validation_data))
        )
        self._given_to_fit = given
        try:
            with sharing_itself(x, validation_data):
                return super().fit(
                    x=x,
                    y=y,
                    batch_size=batch_size,
                    shuffle=shuffle,
                    validation_data=validation_data,
                    validation_split=validation_split,
                    sample_weight=sample_weight,
                    **options,
                )
        finally:
            self._given_to_fit = None

    @in_scope
    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **options):
        """As `keras.Model.evaluate`; also on raw rows, as `dataset` takes them."""
        check_data(x)
        if not self.compiled:
            self.compile()
        if self._is_raw(x):
            x = self.dataset(x, y, batch_size=batch_size or 32, sample_weight=sample_weight)
            y = sample_weight = None
        if isinstance(x, TextDataset):
            self._check_labelled("evaluate", x)
            x, batch_size = x.for_fit(self.loss), None
        else:
            y = self._array_labels(x, y)
            self._check_labelled("evaluate", x, y)
            check_arrays(x, batch_size or 32)
            x = checked(opened(x))
        with sharing_itself(x):
            return super().evaluate(x=x, y=y, batch_size=batch_size, sample_weight=sample_weight, **options)

    @in_scope
    def predict(self, x, batch_size=None, **options):
        """As `keras.Model.predict`; also on raw rows, in whose order the outputs come back.

        Outputs with a length axis are padded to the longest batch's (with zeros), for batches of strings differ in length.
        On several hosts, give the same rows, raw ones or arrays, to each; every one gets all outputs.
        """
        check_data(x)
        if self._is_raw(x):
            x = x if is_examples(x) else [x] if isinstance(x, str) else list(x)
            x = self.dataset(x, batch_size=batch_size or 32)
        batches: Iterator[Any]
        back: Any
        if isinstance(x, TextDataset):
            batches, back = (x[index][0] for index in range(len(x))), np.argsort(x.batches.order)
        elif several_hosts():
            check_predictable(x, options)
            batches, back = batches_of(x, batch_size or 32), slice(None)
        else:
            return super().predict(x, batch_size=batch_size, **options)
        with self._predicting(x):
            parts = [self._predicted(batch) for batch in batches]
        return keras.tree.map_structure(lambda *rows: _join(rows)[back], *parts)

    def _predicted(self, x: Any) -> Any:
        """Outputs of a batch, which devices, or processes, share where there are several."""
        rows = len(keras.tree.flatten(x)[0])
        x = filled_up((x,), shares())[0]
        outputs = self.predict_on_batch(placed(x)) if several_hosts() else self._predict_batch(x)
        return keras.tree.map_structure(lambda output: output[:rows], outputs)

    def predict_step(self, *args, **kwargs):
        result = super().predict_step(*args, **kwargs)
        if not several_hosts():
            return result
        outputs, state = result
        return on_every_device(outputs), state  # each host reads all of them

    def _check_labelled(self, method: str, x: Any, y: Any = None) -> None:
        """Raise ValueError where there is a loss to compute and nothing to compute it from."""
        steps = (getattr(type(self), step) for step in STEPS)
        own_step = any(not step.__module__.startswith(("keras.", "keras_tfm.")) for step in steps)  # the user's
        if y is not None or self.loss is None or own_step:
            return
        spec = getattr(x, "element_spec", None)
        if isinstance(x, TextDataset):
            missing = len(x[0]) < 2
        elif spec is not None:
            missing = not (isinstance(spec, tuple) and len(spec) > 1)
        else:
            missing = isinstance(x, (dict, list, tuple)) or keras.ops.is_tensor(x) or isinstance(x, np.ndarray)
        if missing:
            raise ValueError(
                f"{type(self).__name__}.{method} needs labels: {method}(x, y), or a dataset of pairs (x, y)."
            )

    def _array_labels(self, x: Any, y: Any) -> Any:
        """Labels for array inputs, where a task can make them itself."""
        return y

    _given_to_fit: TextDataset | None = None  # while `fit` runs, for callbacks that count tokens

    # Saving -----------------------------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        tokenizer = None if self.tokenizer is None else self.tokenizer.to_json()
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "tokenizer": tokenizer,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])}
        if config.get("tokenizer") is not None:
            config["tokenizer"] = accepted.from_json(config["tokenizer"])
        return super().from_config(config)


def _join(parts: tuple[np.ndarray, ...]) -> np.ndarray:
    """Batches one after another, padded on axis 1 where lengths differ."""
    if parts[0].ndim > 1 and len({part.shape[1] for part in parts}) > 1:
        longest = max(part.shape[1] for part in parts)
        parts = tuple(
            np.pad(part, [(0, 0), (0, longest - part.shape[1])] + [(0, 0)] * (part.ndim - 2)) for part in parts
        )
    return np.concatenate(parts)
