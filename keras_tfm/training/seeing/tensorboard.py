"""A callback that writes what training does to a transformer for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tfm.layers.base import check_positive
from keras_tfm.models.classifiers import TextClassifier
from keras_tfm.models.generative import Generative
from keras_tfm.ops import processes
from keras_tfm.ops.backend import NAME
from keras_tfm.training.parts import check_model
from keras_tfm.training.rates import LayerRates
from keras_tfm.training.seeing.event_files import (
    EventFile,
    attention_figure,
    check_installed,
    check_matplotlib,
    write_projector,
)
from keras_tfm.training.seeing.given_batch import to_numpy
from keras_tfm.training.seeing.named_parts import layer_groups
from keras_tfm.training.seeing.probing import Probe
from keras_tfm.training.seeing.samples import predictions, token_names, written
from keras_tfm.training.seeing.throughput import CountedTokens, measured_flops

SHOWN = 64  # tokens of an attention map, at most


class TensorBoard(keras.callbacks.Callback):
    """Writes the course of a training for TensorBoard: losses, rates, norms by layer, attention, speed, samples.

    Unlike `keras.callbacks.TensorBoard` it needs no TensorFlow, and knows a transformer's parts: it measures gradients
    and updates layer by layer, and heads one by one. It writes no graph and no profile. The run "train" has the charts,
    "validation" the epochs' validation metrics under the same names. Training is not affected, bit for bit.

    Charts, whose names begin with a layer's place so that they are in its order:
        batch: loss and metrics, as `fit` shows them: means over the epoch so far. epoch: those of whole epochs.
        learning_rate: what the next update uses, by layer with `layer_rates`; every `every` steps, as what follows.
        gradient_norm: of each layer and of all, on `batch`, without dropout and clipping.
        update_norm, relative_update: norm of a layer's change in one update, and over the norm of its weights. With
            gradient accumulation that is the change within as many batches, with steps_per_execution within as many steps.
        activation, dead_units: root mean square of a layer's output on `batch`; the share of feed-forward units that are 0.
        attention_entropy: of each head, on `batch`; 1 is uniform over what a query sees, 0 a single token.
        speed: steps a second; where `fit` is given rows or a `model.dataset(...)` also tokens a second, the share of
            padding, and MFU: the model FLOPs of training (`training_flops`) over `peak_flops`.

    Args:
        log_dir: Of TensorBoard's `--logdir`, for this training.
        batch: What gradients, activations and attention are measured on, as `Probe` takes it: a few rows will do. None
            measures none of them.
        every: Steps between measurements.
        texts: Texts that a classifier classifies after each epoch.
        prompts: Prompts that a language model writes on from after each epoch, the most likely tokens.
        max_new_tokens: Of what it writes.
        images: Attention maps of the first row of `batch`, after each epoch. Needs matplotlib.
        histograms: Distributions of each layer's weights, after each epoch.
        embeddings: So many of the first rows of the token table go to the projector when training ends.
        peak_flops: Floating-point operations a second that the device could do, for MFU. Default: what a large matrix
            product reaches when training begins, in the model's compute dtype; the texts say so.

    Raises:
        ImportError: without tensorboard, or, for images, matplotlib.
        ValueError: for arguments without an effect; when `fit` begins, for a model that they do not fit.

    Example:
        >>> board = keras_tfm.training.TensorBoard("logs/1", batch=(texts[:8], labels[:8]), texts=texts[:4])
        >>> classifier.fit(texts, labels, callbacks=[board])
    """

    of_first_process = NAME != "jax"  # where all hosts measure, each with its part of the weights, and the first writes

    def __init__(
        self,
        log_dir: str | Path,
        batch: Any = None,
        every: int = 100,
        *,
        texts: Sequence[Any] | None = None,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        images: bool | None = None,
        histograms: bool = False,
        embeddings: int | None = None,
        peak_flops: float | None = None,
    ):
        super().__init__()
        check_positive(every=every, max_new_tokens=max_new_tokens, embeddings=embeddings)
        if peak_flops is not None and not peak_flops > 0:
            raise ValueError(f"peak_flops must be positive; got {peak_flops!r}.")
        if max_new_tokens is not None and prompts is None:
            raise ValueError(f"max_new_tokens={max_new_tokens!r} has no effect without prompts.")
        for name, given in (("texts", texts), ("prompts", prompts)):
            if given is not None and (isinstance(given, str) or len(given) == 0):
                raise ValueError(f"{name} must be a list of at least one string; got {given!r}.")
        if images and batch is None:
            raise ValueError("images=True has no effect without a batch, whose attention they show.")
        check_installed()
        self.images = batch is not None if images is None else images
        if self.images:
            check_matplotlib()
        self.log_dir = Path(log_dir)
        self.batch = batch
        self.every = every
        self.texts = None if texts is None else list(texts)
        self.prompts = None if prompts is None else list(prompts)
        self.max_new_tokens = max_new_tokens or 32
        self.histograms = histograms
        self.embeddings = embeddings
        self.peak_flops = peak_flops

    # Beginning and end -----------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the model and open the files."""
        model = self.model
        backbone = check_model(model)
        if self.texts is not None and not isinstance(model, TextClassifier):
            raise ValueError(f"texts are classified by a TextClassifier; this model is a {type(model).__name__}.")
        if self.prompts is not None and not isinstance(model, Generative):
            raise ValueError(f"prompts are for a language model that writes; this is a {type(model).__name__}.")
        if self.embeddings is not None and backbone.token_embedding is None:
            raise ValueError(f"embeddings={self.embeddings}: this model reads images, and has no token table.")
        self._probe = None if self.batch is None else Probe(model, self.batch)
        self._groups = _titled(model)
        optimizer = self._optimizer()
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        # A step behind an earlier training's continues its charts.
        self._accumulation = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        self._step = int(to_numpy(optimizer.iterations)) * self._accumulation
        self._next = self._step
        self._before: dict[int, np.ndarray] | None = None
        self._train = EventFile(self.log_dir / "train", processes.index() == 0)
        self._validation: EventFile | None = None
        data = getattr(model, "_given_to_fit", None)
        if data is None and self.peak_flops is not None:
            raise ValueError(
                f"peak_flops={self.peak_flops!r} is for MFU, which needs tokens counted: give fit rows of text, or a "
                "dataset of model.dataset(...)."
            )
        self._counted = CountedTokens(data) if data is not None else None
        if self._counted is not None and self.peak_flops is None:
            self._peak = measured_flops(keras.backend.standardize_dtype(model.compute_dtype))
            said = f"MFU is over {self._peak / 1e12:.3g} TFLOP/s, what a large matrix product reaches here."
        else:
            self._peak = self.peak_flops or 0.0
            said = f"MFU is over {self._peak / 1e12:.3g} TFLOP/s, which peak_flops says."
        if self._counted is not None:
            self._train.text("speed/peak_flops", said, self._step)
        self._start_clock()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Write the token table and close the files."""
        if self.embeddings is not None:
            table = self.model.backbone.token_embedding.table
            rows = min(self.embeddings, self.model.vocabulary_size)
            vectors = to_numpy(table(np.arange(rows)[None]))[0]
            names = token_names(getattr(self.model, "tokenizer", None), range(rows))
            if self._train.writes:
                write_projector(self._train.directory, vectors, names, "token_embedding")
        if self._counted is not None:
            self._counted.stop()
        for file in filter(None, (self._train, self._validation)):
            file.close()

    # Steps -----------------------------------------------------------------------------------------------------------

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measure, every so many steps, and keep the weights until the update."""
        if self._step < self._next:
            return
        self._write_speed()
        self._next = self._step + self.every
        self._train.scalars(self._rates(), self._step)
        if self._probe is not None:
            self._write_probed(self._probe)
        self._before = {id(v): _copy(v) for v in self.model.trainable_variables}
        self._started = self._step
        self._train.flush()
        self._start_clock()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the loss, and what the update changed."""
        # With steps_per_execution, `batch` is the last of several.
        self._step = self._epoch_start + batch + 1
        self._train.scalars({f"batch/{name}": float(value) for name, value in (logs or {}).items()}, self._step)
        if self._before is not None and self._step - self._started >= self._accumulation:
            began = time.perf_counter()
            self._write_updates(self._before)
            self._before = None
            self._clock += time.perf_counter() - began

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note where the epoch's steps begin."""
        self._epoch_start = self._step

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Write the epoch's metrics, samples, pictures and distributions."""
        began = time.perf_counter()
        logs = logs or {}
        held_out = {name.removeprefix("val_"): float(v) for name, v in logs.items() if name.startswith("val_")}
        own = {name: float(value) for name, value in logs.items() if not name.startswith("val_")}
        self._train.scalars({f"epoch/{name}": value for name, value in own.items()}, self._step)
        if held_out:
            self._validation = self._validation or EventFile(self.log_dir / "validation", self._train.writes)
            self._validation.scalars({f"epoch/{name}": value for name, value in held_out.items()}, self._step)
            self._validation.flush()
        model = self.model
        if self.texts is not None:
            self._train.text("samples/predictions", predictions(model, self.texts), self._step)
        if self.prompts is not None:
            markdown = written(model, self.prompts, self.max_new_tokens)
            self._train.text("samples/generated", markdown, self._step)
        if self.images and self._probe is not None:
            self._write_images(self._probe)
        for title, variables in self._groups.items() if self.histograms else ():
            values = np.concatenate([to_numpy(v.value).astype("float32").ravel() for v in variables])
            self._train.histogram(f"weights/{title}", values, self._step)
        self._train.flush()
        self._clock += time.perf_counter() - began

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Let validation not count for the speed of training."""
        self._test_began = time.perf_counter()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Let validation not count for the speed of training."""
        if hasattr(self, "_clock"):
            self._clock += time.perf_counter() - self._test_began

    # What is measured ------------------------------------------------------------------------------------------------

    def _optimizer(self) -> Any:
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)  # of mixed_float16

    def _rates(self) -> dict[str, float]:
        optimizer = self._optimizer()
        rate = optimizer._learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            # Counted in batches; the update comes with the last of those that are accumulated.
            done = int(to_numpy(optimizer._iterations.value))
            rate = rate(done + self._accumulation - 1 - done % self._accumulation)
        rate = float(to_numpy(keras.ops.convert_to_tensor(rate)))
        if not isinstance(optimizer, LayerRates):
            return {"learning_rate": rate}
        factors = to_numpy(optimizer._rate_factors)
        return {
            f"learning_rate/{title}": rate * float(factors[optimizer._group(variables[0].path)])
            for title, variables in self._groups.items()
        }

    def _write_probed(self, probe: Probe) -> None:
        gradients = probe.gradients()
        norms = {path: float(np.linalg.norm(gradient.astype("float64"))) for path, gradient in gradients.items()}
        values = {
            f"gradient_norm/{title}": _joint([norms[v.path] for v in variables if v.path in norms])
            for title, variables in self._groups.items()
            if any(v.path in norms for v in variables)
        }
        values["gradient_norm/all"] = _joint(list(norms.values()))
        for index, (name, found) in enumerate(probe.activations().items()):
            values[f"activation/{index:02d}_{name}"] = found.rms
            if found.dead is not None:
                values[f"dead_units/{name}"] = found.dead
        for name, attention in probe.attention().items():
            width = len(str(len(attention.entropy) - 1))
            for head, entropies in enumerate(attention.entropy):
                if len(entropies):
                    values[f"attention_entropy/{name}/head_{head:0{width}d}"] = float(entropies.mean())
        self._train.scalars(values, self._step)

    def _write_updates(self, before: dict[int, np.ndarray]) -> None:
        self.model  # noqa: B018 - on JAX, asking for it brings the weights up to date
        values = {}
        for title, variables in self._groups.items():
            kept = [v for v in variables if id(v) in before]
            if kept:
                change = _joint([float(np.linalg.norm(_copy(v) - before[id(v)])) for v in kept])
                size = _joint([float(np.linalg.norm(before[id(v)])) for v in kept])
                values[f"update_norm/{title}"] = change
                if size > 0:
                    values[f"relative_update/{title}"] = change / size
        self._train.scalars(values, self._step)

    def _write_images(self, probe: Probe) -> None:
        for name, found in probe.attention().items():
            decoder = name.startswith("decoder_")
            rows = probe.tokens(decoder)
            columns = probe.tokens(False) if name.endswith("cross_attention") else rows
            shown = found.weights
            for axis, part in ((1, rows), (2, columns)):
                keep = np.arange(shown.shape[axis]) if part is None else part[0]
                shown = np.take(shown, keep[:SHOWN], axis)
            ids = None if rows is None else rows[1][:SHOWN]
            names = [] if ids is None else token_names(getattr(self.model, "tokenizer", None), ids)
            same = rows is columns
            self._train.image(f"attention/{name}", attention_figure(shown, names if same else [], name), self._step)

    # Speed -----------------------------------------------------------------------------------------------------------

    def _start_clock(self) -> None:
        self._clock, self._since = time.perf_counter(), self._step

    def _write_speed(self) -> None:
        steps = self._step - self._since
        seconds = time.perf_counter() - self._clock
        if steps <= 0 or seconds <= 0:
            return
        values = {"speed/steps_per_second": steps / seconds}
        if self._counted is not None and self._counted.batches:
            tokens, share, flops = self._counted.take(self.model)
            values["speed/tokens_per_second"] = tokens * steps / seconds
            values["speed/padding"] = share
            values["speed/mfu"] = flops * steps / seconds / self._peak
        self._train.scalars(values, self._step)


def _titled(model: Any) -> dict[str, list[Any]]:
    """The variables of each layer, by a name that begins with its place."""
    groups = layer_groups(model)
    width = len(str(len(groups) - 1))
    return {f"{index:0{width}d}_{name}": variables for index, (name, variables) in enumerate(groups.items())}


def _copy(variable: Any) -> np.ndarray:
    return np.array(to_numpy(variable.value), "float32")  # torch's arrays share their memory with it


def _joint(norms: list[float]) -> float:
    """The norm of several arrays together."""
    return float(np.sqrt(np.sum(np.square(norms, dtype="float64"))))
