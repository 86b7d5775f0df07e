"""On torch tasks train with `jit_compile=True`: Dynamo traces what Python says, and the step stays the same."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close

import keras_tfm as tfm

if BACKEND != "torch":
    pytest.skip("elsewhere XLA traces", allow_module_level=True)

import torch

SIZES = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=40, max_sequence_length=16, dropout=0.0)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 40, (4, 8)).astype("int32")
MASK = np.arange(8) < np.array([[8], [5], [3], [8]])
CLASSES = np.array([0, 1, 1, 0], "int32")
TOKENS = np.where(MASK, RANDOM.integers(0, 3, (4, 8)), -100).astype("int32")
IMAGES = RANDOM.random((4, 8, 8, 3), "float32")
TEXT = {"token_ids": IDS, "padding_mask": MASK}


def bert(**options):
    return tfm.models.bert(**SIZES, **options)


def image_sizes():
    sizes = {name: SIZES[name] for name in ("num_layers", "hidden_dim", "num_heads", "dropout")}
    return tfm.models.vit(**sizes, image_size=8, patch_size=4)


TASKS = {  # three, for a trace takes some 20 s; the other tasks passed when this was written
    "classifier, pooler": lambda: (tfm.TextClassifier(bert(), 2), TEXT, CLASSES),
    "causal": lambda: (tfm.CausalLM(tfm.models.gpt(**SIZES)), TEXT, TOKENS),
    "images": lambda: (tfm.ImageClassifier(image_sizes(), 2), IMAGES, CLASSES),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_traced_step_is_the_step(task, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))  # traced, and run as it is
    torch._dynamo.reset()
    found = []
    for jit in (False, True):
        keras.utils.set_random_seed(1)
        model, x, y = TASKS[task]()
        model.compile(keras.optimizers.SGD(0.1), metrics=None, jit_compile=jit)
        losses = [float(np.ravel(model.train_on_batch(x, y))[0]) for _ in range(2)]
        assert model.jit_compile == jit
        found.append((losses, [np.asarray(weight) for weight in model.get_weights()]))
    (plain, weights), (traced, others) = found
    assert_close(np.array(traced), np.array(plain), 1e-5)
    for one, other in zip(weights, others, strict=True):
        assert_close(other, one, 1e-5)
