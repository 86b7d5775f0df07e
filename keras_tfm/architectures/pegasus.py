"""Pegasus (Zhang et al. 2020), as `transformers` stores it: BART, normed before, with fixed positions."""

from dataclasses import replace

import numpy as np

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Head
from keras_tfm.config import TransformerConfig


def sinusoids(config: TransformerConfig) -> dict[str, np.ndarray]:
    """The table of positions, all sines and then all cosines, which files hold although it is fixed."""
    positions = np.arange(config.max_sequence_length or 0)[:, None]
    angles = positions / np.power(10_000, np.arange(0, config.hidden_dim, 2) / config.hidden_dim)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return dict.fromkeys(("encoder.embed_positions.weight", "decoder.embed_positions.weight"), table)


PEGASUS = replace(
    bart.BART,
    model_type="pegasus",
    base="PegasusModel",
    options=bart.OPTIONS | bart.SINUSOIDAL | bart.PRE | {"head_bias": True},
    heads={"Seq2SeqLM": Head("PegasusForConditionalGeneration")},
    fixed=sinusoids,
    unused=("*.embed_positions.weight",),
)
