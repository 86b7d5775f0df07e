"""Marian (Junczys-Dowmunt et al. 2018; the OPUS-MT models), as `transformers` stores it."""

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.pegasus import SINUSOIDAL, sinusoids


def _read_vocabulary(config):
    size = config.get("decoder_vocab_size")
    if size not in (None, config["vocab_size"]) or not config.get("share_encoder_decoder_embeddings", True):
        raise ValueError(
            f"config.json says decoder_vocab_size={size}, vocab_size={config['vocab_size']}, "
            f"share_encoder_decoder_embeddings={config.get('share_encoder_decoder_embeddings')}: a table for each side is "
            "not implemented."
        )
    return {}


VOCABULARY = Rule(
    ("decoder_vocab_size", "share_encoder_decoder_embeddings"),
    _read_vocabulary,
    lambda config: {"decoder_vocab_size": config.vocabulary_size, "share_encoder_decoder_embeddings": True},
)

MARIAN = Architecture(
    model_type="marian",
    base="MarianModel",
    options=bart.OPTIONS | SINUSOIDAL | bart.POST | {"head_bias": True},
    sizes=bart.SIZES,
    defaults=bart.DEFAULTS,
    expects=bart.EXPECTS,
    rules=(*bart.RULES, VOCABULARY),
    heads={"Seq2SeqLM": Head("MarianMTModel")},
    fixed=sinusoids,
    unused=("*.embed_positions.weight",),
    **bart.NAMES,
)
