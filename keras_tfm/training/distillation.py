"""Training a small model on what a large one says."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_tfm.distribution import check_placed, check_strategy
from keras_tfm.distribution.sharing import check_arrays, checked
from keras_tfm.distribution.strategies import Replicated, in_scope
from keras_tfm.layers.base import check_rate, register
from keras_tfm.models.language_models import CausalLM, MaskedLM, Seq2SeqLM
from keras_tfm.models.objectives import LinearCrossentropy, mean_of, weighted
from keras_tfm.models.raw_data import check_data, is_words, split_rows
from keras_tfm.models.recompiled import Recompiled
from keras_tfm.models.resumed import resumed
from keras_tfm.models.text_dataset import TextDataset, opened
from keras_tfm.models.token_classifiers import TokenClassifier
from keras_tfm.ops import replicas, token_accumulation
from keras_tfm.training.student_teacher import block_states, check_pair, layer_pairs


@register
class Distiller(Recompiled, Replicated, keras.Model):
    """A student that learns from a teacher's probabilities (Hinton et al. 2015), and its states (Sanh et al. 2019).

    The loss is hard · L + (1 - hard) · T² · KL(teacher ‖ student) + hidden · (1 - cos): L is the student's own, with
    what its layers add to it; KL is of softmax(logits / T), in float32, the mean over labelled rows or tokens, weighed by
    `sample_weight` (without labels over all rows, or all tokens that are not padding); the cosine is of states behind
    blocks, the mean over tokens that are not padding. The logs have each part as "hard_loss", "soft_loss" and
    "hidden_loss", without their factors `hard`, 1 - hard and `hidden`.

    Args:
        student: A task model: `TextClassifier`, `ImageClassifier`, `TokenClassifier`, `QuestionAnswerer`, `MaskedLM`,
            `CausalLM` or `Seq2SeqLM`. It is trained in place: save or use `distiller.student` afterwards.
        teacher: One of the same task, classes and vocabulary. It is frozen (`trainable = False`), runs as in inference,
            and stays as it is bit for bit.
        temperature: T, above 0.
        hard: The share of the student's own loss, from 0 to 1. At 0 labels need not be given; at 1, without `hidden`, the
            teacher is not called.
        hidden: Weight of the loss between states, at least 0; both models then have one hidden_dim.
        layers: Which block of the student learns the states of which of the teacher's, {student: teacher} or pairs,
            numbers from 0; of an encoder-decoder, of the decoder's blocks. Default: the last of the last.
        name: As of any Keras model.

    Raises:
        ValueError: for models of other tasks, classes or vocabularies, models that share weights, and values out of range.

    Example:
        >>> distiller = keras_tfm.training.Distiller(student, teacher, temperature=2.0, hard=0.5)
        >>> distiller.compile(keras.optimizers.AdamW(1e-4))
        >>> distiller.fit(texts, labels, epochs=3)
        >>> distiller.student.save("student.keras")
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        temperature: float = 2.0,
        hard: float = 0.5,
        hidden: float = 0.0,
        layers: Mapping[int, int] | Sequence[Sequence[int]] | None = None,
        name: str | None = None,
    ):
        check_rate(hard=hard)
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature must be above 0; got {temperature!r}.")
        if not 0.0 <= hidden < float("inf"):
            raise ValueError(f"hidden must not be negative; got {hidden!r}.")
        check_pair(student, teacher)
        pairs = layer_pairs(student, teacher, hidden, layers)
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)  # the models cast as they need
        teacher.trainable = False
        self.student = student
        self.teacher = teacher
        self.temperature = float(temperature)
        self.hard = float(hard)
        self.hidden = float(hidden)
        self.layer_pairs = pairs
        self._call = types.SimpleNamespace(states=[])  # of the student's blocks, from a call until its loss
        parts = {"hard": hard > 0, "soft": hard < 1, "hidden": hidden > 0}
        self._trackers = {part: keras.metrics.Mean(name=f"{part}_loss") for part, used in parts.items() if used}
        self.built = True

    def call(self, inputs, training=None):
        with block_states(self.student, bool(self.hidden)) as self._call.states:
            return self.student(self._inputs_of(self.student, inputs), training=training)

    # The loss ---------------------------------------------------------------------------------------------------------

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """As `keras.Model.compute_loss`; y may be None where hard is 0."""
        states = self._call.states
        loss = self._loss_of(states, x, y, y_pred, sample_weight, training)
        if self._call.states is states:  # replicas of tf.distribute take turns where a loss sums over them
            self._call.states = []
        return loss

    def _loss_of(self, states: list[Any], x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool) -> Any:
        losses = {}
        taught, taught_states = None, []
        if self.hard < 1.0 or self.hidden:
            with block_states(self.teacher, bool(self.hidden)) as taught_states:
                taught = self.teacher(self._inputs_of(self.teacher, x), training=False)
        total: Any = 0.0
        if self.hard:
            losses["hard"] = super().compute_loss(x, y, y_pred, sample_weight, training)
            total = losses["hard"] if self.hard == 1.0 else self.hard * losses["hard"]
        if self.hard < 1.0:
            losses["soft"] = self._soft_loss(x, y, y_pred, taught, sample_weight)
            total = total + (1.0 - self.hard) * losses["soft"]
        if self.hidden:
            losses["hidden"] = self._hidden_loss(x, states, taught_states)
            total = total + self.hidden * losses["hidden"]
        for part, loss in losses.items():
            self._trackers[part].update_state(loss * replicas.addends())  # each replica's is its share of the mean
        return total

    def _soft_loss(self, x: Any, y: Any, logits: Any, taught: Any, sample_weight: Any) -> Any:
        """The sum over outputs, of which only question answerers have two."""
        outputs = keras.tree.flatten(logits)
        labels = [None] * len(outputs) if y is None else keras.tree.flatten(y)
        total: Any = 0.0
        for student, teacher, own in zip(outputs, keras.tree.flatten(taught), labels, strict=True):
            ours, theirs = (
                ops.log_softmax(ops.cast(values, "float32") / self.temperature, axis=-1)
                for values in (student, teacher)
            )
            theirs = ops.stop_gradient(theirs)
            divergence = ops.sum(ops.exp(theirs) * (theirs - ours), axis=-1)
            weights = weighted(self._counted(x, own, divergence), sample_weight)
            divergence = ops.where(weights > 0, divergence, 0.0)
            total = total + mean_of(ops.sum(divergence * weights), ops.sum(weights)) * self.temperature**2
        return total

    def _hidden_loss(self, x: Any, student: list[Any], teacher: list[Any]) -> Any:
        """1 - the cosine between states, the mean over tokens that are not padding and over pairs of blocks."""
        cosines = []
        for ours, theirs in self.layer_pairs:
            states = [ops.cast(values, "float32") for values in (student[ours], ops.stop_gradient(teacher[theirs]))]
            left, right = (ops.normalize(values, axis=-1, order=2, epsilon=1e-12) for values in states)
            cosines.append(ops.sum(left * right, axis=-1))
        distance = 1.0 - sum(cosines[1:], cosines[0]) / len(cosines)
        weights = self._tokens(x, distance)
        return mean_of(ops.sum(ops.where(weights > 0, distance, 0.0)), ops.sum(weights))

    def _counted(self, x: Any, y: Any, values: Any) -> Any:
        """Float32 of 0 and 1, of the shape of values: which rows or tokens have a label; without labels, which are real."""
        if y is not None:
            return ops.cast(ops.cast(y, "int32") >= 0, "float32")
        if isinstance(x, dict) and x.get("segment_starts") is not None:
            raise ValueError("Packed texts need labels, which say how many of them each row has.")
        of_tokens = isinstance(self.student, (TokenClassifier, MaskedLM, CausalLM, Seq2SeqLM))
        return self._tokens(x, values) if of_tokens else ops.ones_like(values)

    def _tokens(self, x: Any, values: Any) -> Any:
        """Float32 of 0 and 1, (batch, length) as values: what is not padding."""
        name = "decoder_padding_mask" if isinstance(self.student, Seq2SeqLM) else "padding_mask"
        mask = x.get(name) if isinstance(x, dict) else None
        return ops.ones_like(values) if mask is None else ops.cast(mask, "float32")

    def _inputs_of(self, model: Any, inputs: Any) -> Any:
        """The inputs without those that the other model alone takes."""
        if not isinstance(inputs, dict):
            return inputs
        other = self.teacher if model is self.student else self.student
        foreign = set(other._input_keys) - set(model._input_keys)
        return {name: value for name, value in inputs.items() if name not in foreign}

    # Training ---------------------------------------------------------------------------------------------------------

    @in_scope
    def compile(self, optimizer: Any = None, loss: Any = "auto", *, metrics: Any = "auto", **options: Any) -> None:
        """As the student's `compile`, whose loss, metrics and optimizer these are: it is compiled along.

        Raises:
            ValueError: for `LinearCrossentropy`, which leaves no logits to compare.
        """
        if loss == "linear_crossentropy" or isinstance(loss, LinearCrossentropy):
            raise ValueError(f"Distillation compares logits, which loss={loss!r} never has as a whole.")
        student = self.student
        loss = student._default_loss() if isinstance(loss, str) and loss == "auto" else loss
        metrics = student._default_metrics() if isinstance(metrics, str) and metrics == "auto" else metrics
        student.compile(optimizer, loss, metrics=metrics, **options)
        super().compile(optimizer=student.optimizer, loss=loss, metrics=metrics, **options)

    def train_step(self, *args, **kwargs):
        if not self.student._weighs:
            return super().train_step(*args, **kwargs)
        _, y, sample_weight = keras.utils.unpack_x_y_sample_weight(kwargs["data"] if "data" in kwargs else args[-1])
        if y is None:
            raise ValueError("gradient_accumulation_steps weighs batches by their labels, and there are none.")
        with token_accumulation.of(self.optimizer, self.loss.total_weight(y, sample_weight)):
            return super().train_step(*args, **kwargs)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if y is None:  # the compiled metrics have nothing to compare with
            return self._own_results()
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def get_metrics_result(self):
        return super().get_metrics_result() if self._compile_metrics_built() else self._own_results()

    def _compile_metrics_built(self) -> bool:
        return self._compile_metrics is None or self._compile_metrics.built

    def _own_results(self) -> dict[str, Any]:
        return {metric.name: metric.result() for metric in (self._loss_tracker, *self._trackers.values())}

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
        """As the student's `fit`, on arrays, on its `dataset`, and on raw rows; compiles if need be."""
        check_data(x)
        check_placed(self)
        if not self.compiled:
            self.compile()
        check_strategy(self)
        if validation_split and self.student._is_raw(x):
            (x, y, sample_weight), validation_data = split_rows(validation_split, x, y, sample_weight)
            validation_split = 0.0
        raw = self.student._is_raw(x) or isinstance(x, TextDataset)
        resume = functools.partial(resumed, options.get("callbacks"), steps_per_epoch=options.get("steps_per_epoch"))
        check_arrays(x, batch_size or 32, validation_split)
        x, y, sample_weight = self._data("fit", x, y, sample_weight, batch_size, shuffle, resume)
        if isinstance(validation_data, (tuple, list)):
            held_out, labels, weight = (*validation_data, None, None)[:3]
            validation_data = self._data("fit", held_out, labels, weight, batch_size)
            if validation_data[1] is None:  # a dataset, or no labels
                validation_data = validation_data[0]
        elif isinstance(validation_data, TextDataset):
            validation_data = self._data("fit", validation_data)[0]
        return super().fit(
            x=x,
            y=y,
            batch_size=None if raw else batch_size,
            shuffle=shuffle and not raw,
            validation_data=validation_data,
            validation_split=validation_split,
            sample_weight=sample_weight,
            **options,
        )

    @in_scope
    def evaluate(self, x=None, y=None, batch_size=None, sample_weight=None, **options):
        """As the student's `evaluate`, with the loss of the distillation."""
        if not self.compiled:
            self.compile()
        raw = self.student._is_raw(x) or isinstance(x, TextDataset)
        x, y, sample_weight = self._data("evaluate", x, y, sample_weight, batch_size)
        return super().evaluate(
            x=x, y=y, batch_size=None if raw else batch_size, sample_weight=sample_weight, **options
        )

    def predict(self, x, batch_size=None, **options):
        """The student's `predict`."""
        return self.student.predict(x, batch_size=batch_size, **options)

    def _data(
        self,
        method: str,
        x: Any,
        y: Any = None,
        weight: Any = None,
        rows: Any = None,
        shuffle: bool = False,
        resume: Callable[[Any], Any] = lambda data: data,
    ) -> tuple[Any, Any, Any]:
        """Inputs, labels and weights as Keras takes them; raw rows become a dataset of all three."""
        student = self.student
        check_data(x)
        if student._is_raw(x):
            if y is None and self.hard == 0.0 and isinstance(student, TokenClassifier) and is_words(x):
                raise ValueError("Lists of words are labelled by their tags; without tags, give texts as strings.")
            limit = self.teacher.backbone.config.max_sequence_length
            options = {"batch_size": rows or 32, "shuffle": shuffle, "max_length": limit}
            x = student.dataset(x, y, sample_weight=weight, **options)
            y = weight = None
        if isinstance(x, TextDataset):
            if self.hard:
                student._check_labelled(method, x)
            more = tuple(name for name in self.teacher._input_keys if name not in x.inputs)
            if more:
                x = copy.copy(x)
                x.inputs = (*x.inputs, *more)
            resume(x)
            return x.for_fit(), None, None
        y = student._array_labels(x, y)
        if self.hard:
            student._check_labelled(method, x, y)
        check_arrays(x, rows or 32)
        return checked(resume(opened(x))), y, weight

    # Saving -----------------------------------------------------------------------------------------------------------

    def get_config(self):
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self.teacher),
            "temperature": self.temperature,
            "hard": self.hard,
            "hidden": self.hidden,
            "layers": [list(pair) for pair in self.layer_pairs] if self.hidden else None,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        models = {name: keras.saving.deserialize_keras_object(config[name]) for name in ("student", "teacher")}
        return cls(**{**config, **models})
