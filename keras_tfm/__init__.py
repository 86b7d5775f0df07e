"""Every transformer, from the same few Keras layers."""

try:
    import keras as _keras  # noqa: F401
except ModuleNotFoundError as error:
    _missing = (error.name or "").partition(".")[0]
    if _missing not in ("tensorflow", "jax", "torch"):
        raise
    raise ImportError(
        f"Keras is set to compute with {_missing}, which is not installed. Install it (pip install "
        f"'keras_tfm[{_missing}]'), or set the environment variable KERAS_BACKEND to one that is: tensorflow, jax, torch."
    ) from None

from keras_tfm import checkpoints, data, distribution, generation, layers, models, ops, planning, training
from keras_tfm.checkpoints import from_keras_hub, from_pretrained
from keras_tfm.config import TransformerConfig
from keras_tfm.models import (
    Backbone,
    CausalLM,
    ImageClassifier,
    MaskedLM,
    QuestionAnswerer,
    Seq2SeqLM,
    TextClassifier,
    TextEmbedder,
    TokenClassifier,
)

__version__ = "0.1.0"
__all__ = [
    "Backbone",
    "CausalLM",
    "ImageClassifier",
    "MaskedLM",
    "QuestionAnswerer",
    "Seq2SeqLM",
    "TextClassifier",
    "TextEmbedder",
    "TokenClassifier",
    "TransformerConfig",
    "checkpoints",
    "data",
    "distribution",
    "from_keras_hub",
    "from_pretrained",
    "generation",
    "layers",
    "models",
    "ops",
    "planning",
    "training",
]
