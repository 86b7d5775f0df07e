"""M2M100 and NLLB (Fan et al. 2021; NLLB team 2022), as `transformers` stores them."""

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Architecture, Head, Rule


def _position(hidden_dim, offset):
    """Sinusoids of tensor2tensor, whose last wavelength is exactly 10000 times the first."""
    half = hidden_dim // 2
    return {"kind": "sinusoidal", "interleaved": False, "base": 10_000.0 ** (half / (half - 1)), "offset": offset}


def _write_position(config):
    position = config.position if isinstance(config.position, dict) else {}
    if position != _position(config.hidden_dim, position.get("offset", 0)):
        raise ValueError(f"its positions are the sinusoids of tensor2tensor; this model's are {config.position!r}")
    return {"pad_token_id": position["offset"] - 1}


# Positions begin after the padding's id.
POSITION = Rule(
    ("pad_token_id",),
    lambda config: {"position": _position(config["d_model"], config.get("pad_token_id", 1) + 1)},
    _write_position,
)

M2M_100 = Architecture(
    model_type="m2m_100",
    base="M2M100Model",
    options=bart.OPTIONS | bart.PRE,
    sizes=bart.SIZES,
    defaults=bart.DEFAULTS | {"activation_function": "relu", "attention_dropout": 0.1},
    expects=bart.EXPECTS,
    rules=(
        *bart.RULES[:2],
        Rule(
            bart.RULES[2].keys,
            lambda config: bart.RULES[2].read({"scale_embedding": True, **config}),
            bart.RULES[2].write,
        ),
        POSITION,
    ),
    heads={"Seq2SeqLM": Head("M2M100ForConditionalGeneration")},
    unused=("*.embed_positions.weights",),
    **bart.NAMES,
)
