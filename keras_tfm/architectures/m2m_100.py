"""M2M100 and NLLB (Fan et al. 2021; NLLB team 2022), as `transformers` stores them: BART with fixed positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Head, Rule
from keras_tfm.architectures.stored import OUTPUT_EMBEDDING
from keras_tfm.config import TransformerConfig


def _position(width: int, offset: int) -> dict[str, Any]:
    """Sinusoids of tensor2tensor, whose last wavelength is exactly 10000 times the first."""
    half = width // 2
    return {**bart.SINUSOIDAL["position"], "base": 10_000.0 ** (half / (half - 1)), "offset": offset}


def _write_position(config: TransformerConfig) -> dict[str, Any]:
    offset = config.position.get("offset", 0) if isinstance(config.position, dict) else 0
    if config.position != _position(config.hidden_dim, offset):
        raise ValueError(f"its positions are the sinusoids of tensor2tensor; this model's are {config.position!r}")
    return {"pad_token_id": offset - 1}


M2M_100 = replace(
    bart.BART,
    model_type="m2m_100",
    base="M2M100Model",
    options=bart.OPTIONS | bart.PRE,
    defaults=bart.DEFAULTS | {"activation_function": "relu", "attention_dropout": 0.1},
    rules=(
        *bart.rules(scale_embedding=True),
        Rule(  # positions begin behind the id of the padding
            ("pad_token_id",),
            lambda config: {"position": _position(config["d_model"], config.get("pad_token_id", 1) + 1)},
            _write_position,
        ),
    ),
    output={"token_embedding": ("lm_head", OUTPUT_EMBEDDING)},
    heads={"Seq2SeqLM": Head("M2M100ForConditionalGeneration")},
    unused=("*.embed_positions.weights",),
)
