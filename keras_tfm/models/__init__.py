"""Whole models: backbones built from a `TransformerConfig`, and task models that put a head on one."""

from keras_tfm.models.backbone import Backbone
from keras_tfm.models.builders import bert, gpt, transformer, vit
from keras_tfm.models.classifiers import ImageClassifier, TextClassifier
from keras_tfm.models.embedder import TextEmbedder
from keras_tfm.models.language_models import CausalLM, MaskedLM, Seq2SeqLM
from keras_tfm.models.token_classifiers import QuestionAnswerer, TokenClassifier

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
    "bert",
    "gpt",
    "transformer",
    "vit",
]
