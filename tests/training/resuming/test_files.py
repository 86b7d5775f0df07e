"""Checkpoints are whole or not there, and what is damaged is noticed."""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from keras_tfm.training.resuming.files import CheckpointFiles, Saved, read

pytestmark = pytest.mark.once
DTYPES = ["float32", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, "int64", "uint32", "uint8", "bool"]


def saved(number=0):
    draws = np.random.default_rng(number)
    arrays = {f"model/{place}": draws.normal(size=(3, 5)).astype(dtype) for place, dtype in enumerate(DTYPES)}
    return Saved(
        {**arrays, "scalar": np.float32(number), "none": np.zeros((0, 4))}, {"at": {"read": number}, "x": [1.5]}
    )


def assert_equal(ours, theirs):
    assert ours.facts == theirs.facts
    assert ours.arrays.keys() == theirs.arrays.keys()
    for name, array in theirs.arrays.items():
        assert ours.arrays[name].dtype == np.asarray(array).dtype
        np.testing.assert_array_equal(ours.arrays[name], array)


def test_what_is_written_is_read(tmp_path):
    files = CheckpointFiles(tmp_path / "new" / "run", 2)
    assert files.newest() is None
    files.open()
    for number in range(5):
        files.write(number, saved(number))
    assert files.numbers() == [3, 4]
    assert_equal(files.newest(), saved(4))
    assert sorted(path.name for path in files.directory.iterdir()) == [
        "checkpoint-000000000003.safetensors",
        "checkpoint-000000000004.safetensors",
        "lock",
    ]
    files.close()


def test_other_programs_read_it(tmp_path):
    from safetensors.numpy import load_file

    files = CheckpointFiles(tmp_path, 2)
    files.write(1, saved(1))
    np.testing.assert_array_equal(load_file(files.path(1))["model/0"], saved(1).arrays["model/0"])


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path):
    files = CheckpointFiles(tmp_path, 2)
    files.write(1, saved(1))
    files.write(2, saved(2))
    whole = files.path(2).read_bytes()
    places = np.random.default_rng(0).integers(0, 8 * len(whole), 150)
    for place in [*range(0, 64, 7), *places.tolist()]:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        files.path(2).write_bytes(content)
        try:
            found = read(files.path(2))
        except ValueError:
            continue
        assert_equal(found, saved(2))  # a bit of padding that nobody reads
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        files.path(2).write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            read(files.path(2))
    with pytest.warns(UserWarning, match="000002.safetensors is damaged.*an older checkpoint is tried"):
        assert_equal(files.newest(), saved(1))
    files.path(1).write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"No checkpoint in .* is whole"):
            files.newest()


def test_what_was_cut_off_in_writing_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-000000000007.part").write_bytes(b"half")
    files = CheckpointFiles(tmp_path, 2)
    assert files.newest() is None
    files.open()
    assert not list(tmp_path.glob("*.part"))
    files.close()


def limited(directory, queue):
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    files = CheckpointFiles(directory, 2)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        files.write_in_background(2, saved(2))
        files.finish()
    queue.put([str(warning.message) for warning in found])


def test_a_disk_that_takes_no_more_costs_nothing_that_was_there(tmp_path):
    files = CheckpointFiles(tmp_path, 2)
    files.write(1, saved(1))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=limited, args=(tmp_path, queue))
    process.start()
    (message,) = queue.get(timeout=60)
    process.join()
    assert "could not be written" in message
    assert "Training goes on" in message
    assert_equal(files.newest(), saved(1))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("place", ["save_file", "fsync", "replace", "fsync of the directory", "unlink of an old one"])
def test_a_disk_that_is_full_at_any_moment(place, tmp_path, monkeypatch):
    """The last good state stays, whatever of a write fails; what is whole by then counts."""
    files = CheckpointFiles(tmp_path, 2)
    for number in (1, 2):
        files.write(number, saved(number))

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def cut_off(arrays, path, metadata):
        Path(path).write_bytes(b"half of it")
        full()

    real = os.fsync
    patches = {
        "save_file": ("safetensors.numpy.save_file", cut_off),
        "fsync": ("os.fsync", full),
        "replace": ("os.replace", full),
        "fsync of the directory": (
            "os.fsync",
            lambda handle: full() if stat.S_ISDIR(os.fstat(handle).st_mode) else real(handle),
        ),
        "unlink of an old one": ("pathlib.Path.unlink", full),
    }
    monkeypatch.setattr(*patches[place])
    files.write_in_background(3, saved(3))
    with pytest.warns(UserWarning, match="No space left on device.*Training goes on; the last good one is kept"):
        assert not files.finish()
    monkeypatch.undo()
    is_whole = place in ("fsync of the directory", "unlink of an old one")
    assert_equal(files.newest(), saved(3 if is_whole else 2))
    assert not list(tmp_path.glob("*.part"))
    files.write_in_background(4, saved(4))  # there is room again
    assert files.finish()
    assert_equal(files.newest(), saved(4))


def test_a_disk_that_is_full_from_the_start(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    (tmp_path / "lock").symlink_to("/dev/full")
    with pytest.raises(OSError, match="checkpoints cannot be written: No space left on device"):
        CheckpointFiles(tmp_path, 2).open()


def test_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="checkpoints cannot be written"):
            CheckpointFiles(place, 2).open()


HOLDS = """
import sys
from keras_tfm.training.resuming.files import CheckpointFiles
CheckpointFiles(sys.argv[1], 2).open()
print("open", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        while other.stdout.readline() != "open\n":
            assert other.poll() is None
        files = CheckpointFiles(tmp_path, 2)
        with pytest.raises(RuntimeError, match=f"in use by process {other.pid} on "):
            files.open()
        other.kill()  # whatever becomes of it, the directory is free again
        other.wait()
        files.open()
        again = CheckpointFiles(tmp_path, 2)  # of this process, whose last run is over
        again.open()
        again.close()
