"""Small models and data that the tests of training share."""

import numpy as np
import pytest
from helpers import BACKEND, fill_weights

import keras_tfm

# What no backend changes, and only torch does quickly; what JAX compiles longer than it is worth, beside the others.
not_jax = pytest.mark.skipif(BACKEND == "jax", reason="takes long to compile; the code is that of TensorFlow")
quickly = pytest.mark.skipif(BACKEND != "torch", reason="takes long to compile, and no backend changes it")

SIZES = dict(num_heads=2, hidden_dim=8, intermediate_dim=12, vocabulary_size=11, max_sequence_length=6, dropout=0.0)
X = np.random.default_rng(0).integers(1, 11, (8, 5)).astype("int32")
Y = (X[:, 0] % 3).astype("int32")


def classifier(num_layers=2, fill=0.3, **options):
    backbone = keras_tfm.models.bert(num_layers=num_layers, **{**SIZES, **options})
    model = keras_tfm.TextClassifier(backbone, num_classes=3)
    return fill_weights(model, fill) if fill else model


def writer(fill=0.3, **options):
    model = keras_tfm.CausalLM(keras_tfm.models.gpt(num_layers=2, **{**SIZES, **options}))
    return fill_weights(model, fill) if fill else model
