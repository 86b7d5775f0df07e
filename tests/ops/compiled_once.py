"""How many programs XLA compiles for TensorFlow while only values change, as JSON: for `test_loops`.

python compiled_once.py FOLDER, with KERAS_BACKEND=tensorflow, and XLA_FLAGS that have XLA write its programs to FOLDER.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_tfm.ops import attention, grouped_loops
from keras_tfm.ops.kernels import blockwise

FOLDER = Path(sys.argv[1])
RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def gradient(function: Callable) -> Callable:
    """The gradient of a function's squares by its first argument, compiled by XLA."""

    def run(x, *others):
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(function(x, *others) ** 2)
        return tape.gradient(value, x)

    return tf.function(run, jit_compile=True)


def in_blocks(x, mask, segments):
    return attention(x, x, x, causal=True, padding_mask=mask, segment_ids=segments, kernel="blockwise")


def grouped(x, kernel, sizes):
    return grouped_loops.product(x, kernel, sizes)


def main() -> None:
    blockwise.QUERIES = blockwise.KEYS = 8
    given = {
        in_blocks: [
            (normal(2, 33, 2, 4), np.arange(33) < np.array([[n], [33 - n]]), np.arange(33)[None] // n * [[1], [2]])
            for n in (30, 12, 7)
        ],
        grouped: [
            (normal(70, 6), normal(4, 6, 5), np.array(sizes, "int32"))
            for sizes in ([70, 0, 0, 0], [1, 33, 30, 6], [0, 0, 35, 35])
        ],
    }
    found = {}
    for function, calls in given.items():
        compiled = gradient(function)
        counts = []
        for call in calls:
            compiled(*(tf.constant(array) for array in call))
            counts.append(len(list(FOLDER.glob("*before_optimizations.txt"))))
        found[function.__name__] = np.diff([0, *counts]).tolist()
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
