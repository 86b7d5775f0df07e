"""Pegasus (Zhang et al. 2020), as `transformers` stores it."""

import numpy as np

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Architecture, Head

SINUSOIDAL = {"position": {"kind": "sinusoidal", "interleaved": False}}


def sinusoids(config):
    """The table of positions, all sines and then all cosines, which files hold although it is fixed."""
    positions = np.arange(config.max_sequence_length)[:, None]
    angles = positions / np.power(10_000, np.arange(0, config.hidden_dim, 2) / config.hidden_dim)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return dict.fromkeys(("encoder.embed_positions.weight", "decoder.embed_positions.weight"), table)


PEGASUS = Architecture(
    model_type="pegasus",
    base="PegasusModel",
    options=bart.OPTIONS | SINUSOIDAL | bart.PRE | {"head_bias": True},
    sizes=bart.SIZES,
    defaults=bart.DEFAULTS,
    expects=bart.EXPECTS,
    rules=bart.RULES,
    heads={"Seq2SeqLM": Head("PegasusForConditionalGeneration")},
    fixed=sinusoids,
    unused=("*.embed_positions.weight",),
    **bart.NAMES,
)
