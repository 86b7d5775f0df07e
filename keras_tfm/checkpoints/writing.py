"""Files of a checkpoint directory, written so that an interruption leaves the old ones whole."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_tfm.checkpoints.tensors import INDEX, SINGLE
from keras_tfm.ops import processes

WEIGHT_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|pytorch_model.*\.bin(\.index\.json)?")
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def byte_count(size: int | str) -> int:
    """A number of bytes, also as "500MB" or "5GB".

    Raises:
        ValueError: for anything else, and below 1.
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", size.upper())
        if not match:
            raise ValueError(f"max_shard_size must be a number of bytes, or such as '5GB'; got {size!r}.")
        size = int(float(match[1]) * _UNITS[match[2]])
    if size < 1:
        raise ValueError(f"max_shard_size must be positive; got {size}.")
    return size


def write_tensors(directory: Path, sizes: dict[str, int], arrays: Iterable[tuple[str, np.ndarray]], limit: int) -> None:
    """Tensors as model.safetensors, or as shards of up to `limit` bytes with an index. No more than a shard is in memory.

    Args:
        directory: That exists.
        sizes: Bytes of each tensor, in the order of `arrays`.
        arrays: Names and contiguous arrays.
        limit: A tensor above it has a shard of its own.
    """
    from safetensors.numpy import save_file

    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    source = iter(arrays)
    for file, tensors in zip(names, shards, strict=True):
        save_file(dict(next(source) for _ in tensors), directory / file, metadata={"format": "pt"})
        os.chmod(directory / file, 0o666 & ~_umask())  # `save_file` leaves it to its owner alone
    if len(shards) > 1:
        weight_map = {tensor: file for file, tensors in zip(names, shards, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def by_first(weights: Iterable[Any], arrays: Iterator[Any], write: Callable[[], None]) -> None:
    """Write a model that hosts share from the first of them; any other from whoever asks.

    Args:
        weights: The model's variables. If they are split over hosts, all of them must ask.
        arrays: What `write` goes through, read by the others too, who have parts of it.
        write: Writes.

    Raises:
        RuntimeError: in the other processes, if the first could not write weights that are split.
    """
    values = [variable.value for variable in weights]
    if not any(map(processes.is_shared, values)):
        write()
        return
    error: Exception | None = None
    if processes.index() == 0:
        try:
            write()
        except Exception as failure:
            error = failure
    if not all(map(processes.has_whole, values)):
        for _ in arrays:
            pass
        said = processes.gathered(None if error is None else f"{type(error).__name__}: {error}")[0]
        if said is not None and error is None:
            raise RuntimeError(f"The first process could not write: {said}")
    if error is not None:
        raise error


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A scratch directory beside `directory` that takes its place, in one step, when the block ends well.

    What else lies in `directory` is kept, old weight files are not. If the block fails or the process ends, `directory`
    is as it was. Where directories cannot be exchanged (a mount point), files are moved in one by one, config.json last.
    """
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}.saving-"))
    try:
        os.chmod(scratch, directory.stat().st_mode if directory.exists() else 0o777 & ~_umask())
        yield scratch
        if not directory.exists():
            os.rename(scratch, directory)
            return
        for path in directory.iterdir():
            if not (scratch / path.name).exists() and not WEIGHT_FILES.fullmatch(path.name):
                _same(path, scratch / path.name)
        if not _exchange(scratch, directory):
            _move_into(scratch, directory)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _same(old: Path, new: Path) -> None:
    """The same file or folder under a second name: linked where the file system can, else copied."""
    if old.is_symlink() or not old.is_dir():
        try:
            os.link(old, new, follow_symlinks=False)
        except OSError:
            shutil.copy2(old, new, follow_symlinks=False)
        return
    shutil.copytree(old, new, symlinks=True, copy_function=_same_file)


def _same_file(old: str, new: str) -> None:
    _same(Path(old), Path(new))


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False where the system cannot."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return library.renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
    except (AttributeError, OSError, TypeError):
        return False


def _move_into(scratch: Path, directory: Path) -> None:
    written = {path.name for path in scratch.iterdir()}
    for name in sorted(written, key=lambda name: (name == "config.json", name)):
        if (scratch / name).is_dir():
            continue  # the user's own, still in place
        os.replace(scratch / name, directory / name)
    for path in directory.iterdir():
        if WEIGHT_FILES.fullmatch(path.name) and path.name not in written:
            path.unlink()
