"""A callback with which an interrupted `fit` goes on where it was."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import keras

from keras_tfm.layers.base import check_positive
from keras_tfm.ops import processes
from keras_tfm.ops.backend import NAME
from keras_tfm.training.resuming import model_state, random_state
from keras_tfm.training.resuming.files import CheckpointFiles, Saved
from keras_tfm.training.resuming.reading import Input, Skipping

_asked = 0  # times that this process has asked whether all are to end, in any `fit`


class Resume(keras.callbacks.Callback):
    """Saves a run as it goes, and begins the same `fit` again where the last one was interrupted.

    Weights, optimizer, metrics, dropout's seeds, the generators of Python, NumPy, Keras and torch, the position in the
    data, the history: a run that was killed and started again ends with the weights of one that was not, on every backend,
    and on another mesh of devices too (there to the order in which sums are taken). Start the program again as before.

    Args:
        directory: Of this run alone, for files "checkpoint-<step>.safetensors".
        every_steps: Save after so many batches.
        every_minutes: Save when so much time has passed, and as each epoch begins. None for neither.
        keep: How many checkpoints are kept; two at least, so that a damaged one leaves another.
        data: What `fit` is given as x. This library's models say so themselves; give it for other Keras models.
        callbacks: Others whose state is to be kept, such as `EarlyStopping`: their numbers, strings and arrays.
        on_sigterm: "exit": when the process is told to end, as preempted machines are, save before the next batch, and exit
            with status 143; of several hosts all do so, a few batches after one was told. "ignore": leave the signal alone.

    Files are written in the background, under another name until they are whole, with a checksum. A save that fails, on a
    full disk say, warns, and training goes on. When a checkpoint is damaged, the one before it is taken. On several hosts,
    give a directory that all of them read; the first one writes. Give this callback last, behind those that change the
    model.

    Raises:
        OSError: when training begins, for a directory that cannot be written to.
        RuntimeError: when training begins, while another run uses the directory.
        ValueError: when training begins, for a checkpoint of another model, optimizer or data, for checkpoints that are all
            damaged, and for data whose order cannot be had again.

    Example:
        >>> model.fit(texts, labels, epochs=3, callbacks=[keras_tfm.training.Resume("runs/sentiment")])
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        every_steps: int | None = None,
        every_minutes: float | None = 10.0,
        keep: int = 2,
        data: Any = None,
        callbacks: Sequence[Any] = (),
        on_sigterm: str = "exit",
    ):
        super().__init__()
        check_positive(keep=keep, **({} if every_steps is None else {"every_steps": every_steps}))
        if every_minutes is not None and not every_minutes > 0:
            raise ValueError(f"every_minutes must be positive, or None; got {every_minutes!r}.")
        if every_steps is None and every_minutes is None:
            raise ValueError("Give every_steps or every_minutes; with neither, nothing would be saved.")
        if keep < 2:
            raise ValueError("keep must be at least 2, so that a damaged checkpoint leaves another; got 1.")
        if on_sigterm not in ("exit", "ignore"):
            raise ValueError(f"on_sigterm must be 'exit' or 'ignore'; got {on_sigterm!r}.")
        if any(isinstance(callback, Resume) for callback in callbacks):
            raise ValueError("callbacks are others than Resume.")
        self.every_steps, self.every_minutes, self.on_sigterm = every_steps, every_minutes, on_sigterm
        self.files = CheckpointFiles(directory, keep)
        self.data = data
        self.callbacks = list(callbacks)
        self._input: Any = None
        self._found: Saved | None = None
        self._is_ready = False
        self._previous: Any = None

    # Before training --------------------------------------------------------------------------------------------------

    def ready(self, data: Any, steps_per_epoch: int | None = None) -> Any:
        """Read the last checkpoint, and give the data to train on: `data`, or of one pass over them what is left.

        Task models call this as `fit` begins. For other models that train on a generator, or with steps_per_epoch:
        `fit(resume.ready(data, steps_per_epoch), steps_per_epoch=..., callbacks=[resume])`.
        """
        self._input = Input(data, steps_per_epoch)
        if processes.index() == 0:
            self.files.open()
        processes.gathered(None)  # none looks while the first still writes what the last `fit` left
        self._found = self.files.newest()
        steps = processes.gathered(None if self._found is None else self._found.facts["at"])
        if any(step != steps[0] for step in steps):
            self.files.close()
            raise ValueError(
                f"Processes find other checkpoints in {self.files.directory}: {steps}. Give a directory that all of them "
                "read."
            )
        self._is_ready = True
        if self._found is None:
            return data
        if self._input.is_one_pass:
            random_state.restore(*_random(self._found, "begin"))
        at = self._found.facts["at"]
        return self._input.without_first(at["read"] - at["step"])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Take up the last checkpoint, if there is one."""
        model = self.model
        if not self._is_ready and self.ready(self.data) is not self.data:
            raise ValueError("Of one pass over data, give `fit` what Resume(...).ready(data, steps_per_epoch) gives.")
        self._is_ready = False  # for the next `fit`
        if not model.built:
            raise ValueError("Resume needs a built model: call it on a batch before fit.")
        if processes.count() > 1 and self.every_minutes is not None:
            raise ValueError("Several hosts have several clocks: give Resume every_steps, and every_minutes=None.")
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._at = {"epoch": 0, "step": 0, "read": 0}
        self._rows = self._input.described(model)
        self._begin = random_state.capture()
        self._at_validation: Saved | None = None
        self._is_to_end = False
        self._drawn: dict[str, Any] | None = None
        self._logs: dict[str, Any] = {}
        if self._found is not None:
            self._take_up(self._found)
        self._last_saved, self._last_read = time.monotonic(), self._at["read"]
        self._previous = None
        is_main = threading.current_thread() is threading.main_thread()
        if self.on_sigterm == "exit" and is_main and (processes.count() == 1 or NAME == "torch"):
            self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)
        self._listens = self._previous is not None or (self.on_sigterm == "exit" and processes.count() > 1)

    def _take_up(self, found: Saved) -> None:
        model, at = self.model, found.facts["at"]
        model_state.check(model, self.callbacks, *found)
        if at["step"] % model.steps_per_execution:
            raise ValueError(
                f"The checkpoint is of batch {at['step']} of an epoch, which steps_per_execution="
                f"{model.steps_per_execution} does not divide; take that of then."
            )
        steps = self.params.get("steps")
        if None not in (steps, found.facts["steps"]) and steps != found.facts["steps"]:
            raise ValueError(
                f"The checkpoint is of other data: an epoch had {found.facts['steps']} batches, one of these has {steps}. "
                "Give the same rows in batches of the same size, or take another directory."
            )
        rows = found.facts.get("rows")
        if None not in (rows, self._rows) and rows != self._rows:
            raise ValueError(
                f"The checkpoint is of other data: {rows} then, {self._rows} now. Give the same rows in batches of the "
                "same size, tokenized as then, or take another directory. (A tokenizer that is trained, by wordpiece or "
                "unigram, comes out differently each time: save it beside the checkpoints, and load it.)"
            )
        if (backend := found.facts["backend"]) != NAME:
            warnings.warn(f"The run was on {backend} and goes on on {NAME}, with other random numbers.", stacklevel=2)
        model_state.restore(model, found.arrays)
        self._at, self._begin = dict(at), _random(found, "begin")
        # As Keras's own BackupAndRestore says where to go on.
        model._initial_epoch = sys.maxsize if found.facts["stopped"] else at["epoch"]
        if model._initial_epoch >= self.params["epochs"]:  # nothing is left to do
            print(f"This run is finished: {self.files.directory} is of its end. Take another directory to train anew.")

    def _restore_history(self, found: Saved) -> None:
        history = self.model.history
        history.history, history.epoch = found.facts["history"], found.facts["epochs"]

    # While training ---------------------------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save; or where a run goes on, bring data and generators to where they were."""
        found, self._found = self._found, None
        self.model._initial_epoch = None  # `fit` has read it
        self._at_validation = None
        if found is not None:
            self._go_on(found)
            return
        self._at |= {"epoch": epoch, "step": 0}
        self._data_state, self._epoch_begin = self._input.state(), random_state.capture()
        if self.every_minutes is not None and self._at["read"]:
            self._save(wait=False)

    def _go_on(self, found: Saved) -> None:
        model, step = self.model, self._at["step"]
        model_state.restore_callbacks(self.callbacks, *found)
        self._restore_history(found)
        self._data_state, self._epoch_begin = found.facts["data"], _random(found, "epoch")
        self._input.restore(self._data_state, step)
        random_state.restore(*self._epoch_begin)
        # As an epoch begins, its batches are drawn from the same generators, by an iterator that one pass has had before.
        if found.facts["is_within"] or self._input.is_one_pass:
            self._drawn = _random(found, "now")[0]
        if not step:
            return
        if NAME == "jax":  # whose loop hands the metrics on from here
            model_state.restore(model, found.arrays, ["metrics"])

        def then(batch: Any) -> None:
            if NAME == "jax":
                return
            if len(model_state.variables_of(model)["metrics"]) < len(found.facts["paths"]["metrics"]):
                model._symbolic_build(data_batch=batch)  # they are made with the first batch
            model_state.restore(model, found.arrays, ["metrics"])

        model.train_function = Skipping(model, step, found.facts["logs"], then)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if it is time."""
        if batch < self._at["step"]:  # it is skipped
            return
        self._catch_up()
        if self._all_are_to_end():
            self._end(self._saved(is_within=True))
        by_steps = self.every_steps is not None and self._at["read"] - self._last_read >= self.every_steps
        seconds = time.monotonic() - self._last_saved
        if by_steps or (self.every_minutes is not None and seconds > 60 * self.every_minutes):
            self._save(wait=by_steps, is_within=True)

    def _catch_up(self) -> None:
        """Put back the generators of layers, now that reading what was skipped has drawn from them again."""
        if self._drawn is not None:
            random_state.restore_drawn_by_models(self._drawn)
            self._drawn = None

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count."""
        self._logs = logs or {}
        if batch + 1 > self._at["step"]:
            self._at["read"] += batch + 1 - self._at["step"]
            self._at["step"] = batch + 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Keep what is to be saved should validation be interrupted, for it changes the metrics."""
        self._catch_up()
        if self._listens:
            self._at_validation = self._saved(is_within=True)

    def on_test_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Save if the process is to end."""
        if self._at_validation is not None and self._all_are_to_end():
            self._end(self._at_validation)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Nothing, but for an epoch whose batches were all skipped."""
        self._catch_up()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Save the end."""
        if self._found is not None:  # nothing was left to do
            self._restore_history(self._found)
        else:
            is_stopped = bool(self.model.stop_training)
            self._at |= {"epoch": self._at["epoch"] + 1, "step": 0}
            self._data_state, self._epoch_begin = self._input.state(), random_state.capture()
            self._save(wait=True, stopped=is_stopped)
        self._close()

    # Saving -----------------------------------------------------------------------------------------------------------

    def _saved(self, is_within: bool = False, stopped: bool = False) -> Saved:
        """The run as it is now, within an epoch or between two; stopped before its last."""
        model = self.model
        arrays, facts = model_state.capture(model, self.callbacks)
        moments = {"begin": self._begin, "epoch": self._epoch_begin, "now": random_state.capture()}
        for moment, (states, _) in moments.items():
            arrays |= {f"random/{moment}/{name}": state for name, state in states.items()}
        history = model.history
        facts |= {
            "at": dict(self._at),
            "is_within": is_within,
            "logs": {name: float(value) for name, value in self._logs.items()},
            "stopped": stopped,
            "steps": self.params.get("steps"),
            "data": self._data_state,
            "rows": self._rows,
            "random": {moment: rest for moment, (_, rest) in moments.items()},
            "history": {name: [float(value) for value in values] for name, values in history.history.items()},
            "epochs": list(history.epoch),
            "backend": NAME,
            "keras": keras.__version__,
        }
        return Saved(arrays, facts)

    def _save(self, wait: bool, **moment: bool) -> None:
        """Save in the background; while the last save is on its way, wait for it or leave it at that."""
        if self.files.is_writing and not wait:
            return
        self._last_saved, self._last_read = time.monotonic(), self._at["read"]
        saved = self._saved(**moment)
        if processes.index() == 0:
            self.files.write_in_background(saved.facts["at"]["read"], saved)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Remember it, while `fit` runs; otherwise let the signal do what it did before."""
        inner = frame
        while inner is not None:
            if inner.f_code.co_name == "fit" and inner.f_locals.get("self") is self._model:
                self._is_to_end = True
                return
            inner = inner.f_back
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _all_are_to_end(self) -> bool:
        """Whether this process was told to; of several, whether any was: they agree on the batch.

        On JAX the coordination service catches the signal itself, since `distribution.initialize`, and waits until all have
        asked equally often.
        """
        global _asked
        if self.on_sigterm != "exit" or processes.count() == 1:
            return self._is_to_end
        if NAME == "torch":
            return processes.any_of(self._is_to_end)
        from jax.experimental import multihost_utils

        _asked += 1
        return multihost_utils.reached_preemption_sync_point(_asked)

    def _end(self, saved: Saved) -> None:
        if processes.index() == 0:
            self.files.write_in_background(saved.facts["at"]["read"], saved)
        is_saved = self.files.finish()
        self._close()
        said = "saved to" if is_saved else "nothing could be saved to"
        print(f"Told to end: {said} {self.files.directory} after {saved.facts['at']['read']} batches.", flush=True)
        sys.exit(128 + signal.SIGTERM)

    def _close(self) -> None:
        self.files.close()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


def _random(saved: Saved, moment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The generators' states, as `random_state.restore` takes them."""
    prefix = f"random/{moment}/"
    states = {name.removeprefix(prefix): array for name, array in saved.arrays.items() if name.startswith(prefix)}
    return states, saved.facts["random"][moment]
