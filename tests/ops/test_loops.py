"""Loops over blocks and tiles go where data says, in one program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import BACKEND, assert_close, normal, numpy
from keras import ops

from keras_tfm.ops import loops

WORKER = Path(__file__).with_name("compiled_once.py")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's XLA takes values for constants where it can")
def test_new_values_are_not_compiled_again(tmp_path):
    command = [sys.executable, str(WORKER), str(tmp_path)]
    flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text --xla_dump_hlo_pass_re=none"
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    for first, *more in found.values():
        assert first > 0
        assert more == [0, 0], found


def test_blocks_and_rows_from_a_computed_place():
    x = normal(5, 4)
    place = ops.sum(ops.convert_to_tensor(np.array([1, 2], "int32")))
    assert_close(loops.block(ops.convert_to_tensor(x), place), x[3])
    assert_close(loops.rows(ops.convert_to_tensor(x), place, 2), x[3:5])
    assert numpy(loops.block(ops.arange(7), 2)) == 2
