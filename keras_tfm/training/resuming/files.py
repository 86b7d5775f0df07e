"""Checkpoints of a run in a directory: written whole or not at all, checked when read, the last few kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

NAME = re.compile(r"checkpoint-(\d+)\.safetensors")
LOCK = "lock"
_held: dict[Path, CheckpointFiles] = {}  # by this process
PLAIN = frozenset(  # what NumPy has by itself
    np.dtype(kind).name for kind in ("?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
)


class Saved(NamedTuple):
    """What a checkpoint holds: arrays by name, and what is said of them, JSON-able."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]


class CheckpointFiles:
    """The checkpoints in a directory, numbered.

    Args:
        directory: Made if need be.
        keep: How many of the newest are left there.

    Raises:
        OSError: where the directory cannot be made or written to.
    """

    def __init__(self, directory: str | Path, keep: int):
        self.directory = Path(directory)
        self.keep = keep
        self._lock: Any = None
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None

    def open(self) -> None:
        """Take the directory for this process, until `close`; from an earlier run of this process too, which is over.

        Raises:
            OSError: where it cannot be written to.
            RuntimeError: while another process has it.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = open(self.directory / LOCK, "a+")  # noqa: SIM115 - held for as long as the run is
        except OSError as error:
            raise _unwritable(error, self.directory) from None
        before = _held.pop(self.directory.resolve(), None)
        if before is not None:
            before.close()
        if not _locked(lock):
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise RuntimeError(f"{self.directory} is in use by {owner}: two runs need a directory each.")
        try:
            if os.path.isfile(lock.name):
                lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            lock.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                lock.close()
            raise _unwritable(error, self.directory) from None
        self._lock = lock
        _held[self.directory.resolve()] = self
        for left in self.directory.glob("checkpoint-*.part"):
            left.unlink()

    def close(self) -> None:
        """Let others have the directory, once all is written."""
        self.finish()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def numbers(self) -> list[int]:
        """Of the checkpoints that are there, oldest first."""
        if not self.directory.is_dir():
            return []
        found = (NAME.fullmatch(path.name) for path in self.directory.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, number: int) -> Path:
        """Where the checkpoint of this number is."""
        return self.directory / f"checkpoint-{number:012}.safetensors"

    def write(self, number: int, saved: Saved) -> None:
        """Write a checkpoint, then remove the oldest past `keep`.

        It gets its name when all of it is on the disk, so that what is cut off midway is never taken for one.
        """
        from safetensors.numpy import save_file

        arrays, dtypes = _storable(saved.arrays)
        facts = {**saved.facts, "dtypes": dtypes}
        metadata = {"facts": json.dumps(facts), "sha256": _checksum(arrays, json.dumps(facts))}
        path = self.path(number)
        part = path.with_suffix(".part")
        try:
            save_file(arrays, part, metadata)
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_directory(self.directory)
        for old in self.numbers()[: -self.keep]:
            self.path(old).unlink(missing_ok=True)

    @property
    def is_writing(self) -> bool:
        """Whether a write in the background is on its way."""
        return self._writer is not None and self._writer.is_alive()

    def write_in_background(self, number: int, saved: Saved) -> None:
        """`write` in a thread, after the last one."""
        self.finish()
        self._writer = threading.Thread(target=self._write, args=(number, saved), name="checkpoint")
        self._writer.start()

    def _write(self, number: int, saved: Saved) -> None:
        try:
            self.write(number, saved)
        except Exception as error:  # a full disk is no reason to end a training
            self._error = error

    def finish(self) -> bool:
        """Wait for what is being written, and warn if it could not be; whether it could."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            warnings.warn(
                f"A checkpoint could not be written ({error}). Training goes on; the last good one is kept.",
                stacklevel=3,
            )
        return error is None

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; None where there is none at all.

        Raises:
            ValueError: if there are some, all of them damaged.
        """
        numbers = self.numbers()
        damaged = []
        for number in reversed(numbers):
            try:
                return read(self.path(number))
            except (ValueError, OSError) as error:
                damaged.append(str(error))
                warnings.warn(f"{error}; an older checkpoint is tried.", stacklevel=2)
        if damaged:
            raise ValueError(
                f"No checkpoint in {self.directory} is whole ({damaged[0]}). Move them away to begin anew, or take another "
                "directory."
            )
        return None


def read(path: Path) -> Saved:
    """A checkpoint from its file.

    Raises:
        ValueError: if it is not what was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    text = metadata.get("facts", "")
    if _checksum(arrays, text) != metadata.get("sha256"):
        raise ValueError(f"{path} is damaged: its checksum is not the one that was written")
    facts = json.loads(text)
    for name, dtype in facts.pop("dtypes").items():
        arrays[name] = arrays[name].view(np.dtype(dtype))
    return Saved(arrays, facts)


def _storable(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays as the format has them, and the names of dtypes that it has not (bfloat16 and float8 of `ml_dtypes`)."""
    found, dtypes = {}, {}
    for name, array in arrays.items():
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype.name not in PLAIN:
            dtypes[name] = array.dtype.name
            array = array.view(f"uint{8 * array.dtype.itemsize}")
        found[name] = array
    return found, dtypes


def _checksum(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _unwritable(error: OSError, directory: Path) -> OSError:
    return type(error)(error.errno, f"checkpoints cannot be written: {error.strerror}", str(directory))


def _locked(file: Any) -> bool:
    """Lock a file until it is closed or its process ends; False if another process has it."""
    try:
        import fcntl
    except ImportError:  # no such locks here: two runs are not noticed
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_directory(directory: Path) -> None:
    """Make a new name in it last, where the system can."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
