"""Marian (Junczys-Dowmunt et al. 2018; the OPUS-MT models), as `transformers` stores it: BART with fixed positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Head, Rule
from keras_tfm.architectures.pegasus import sinusoids


def _read_vocabulary(config: Mapping[str, Any]) -> dict[str, Any]:
    size, shared = config.get("decoder_vocab_size"), config.get("share_encoder_decoder_embeddings", True)
    if size not in (None, config["vocab_size"]) or not shared:
        raise ValueError(
            f"config.json says vocab_size={config['vocab_size']}, decoder_vocab_size={size}, "
            f"share_encoder_decoder_embeddings={shared}: a table for each side is not implemented."
        )
    return {}


MARIAN = replace(
    bart.BART,
    model_type="marian",
    base="MarianModel",
    options=bart.OPTIONS | bart.SINUSOIDAL | bart.POST | {"head_bias": True},
    rules=(
        *bart.rules(),
        Rule(
            ("decoder_vocab_size", "share_encoder_decoder_embeddings"),
            _read_vocabulary,
            lambda config: {
                "decoder_vocab_size": config.vocabulary_size,
                "share_encoder_decoder_embeddings": True,
            },
        ),
    ),
    heads={"Seq2SeqLM": Head("MarianMTModel")},
    fixed=sinusoids,
    unused=("*.embed_positions.weight",),
)
