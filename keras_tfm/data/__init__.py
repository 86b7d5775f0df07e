"""Text to batches of NumPy arrays. Needs no Keras."""

from keras_tfm.data.accepted import as_tokenizer
from keras_tfm.data.batches import ExampleBatches, TextBatches
from keras_tfm.data.examples import Examples, causal_examples, seq2seq_examples
from keras_tfm.data.keras_hub_tokenizer import KerasHubTokenizer
from keras_tfm.data.mapped import MappedExamples, write_examples
from keras_tfm.data.masking import Masking
from keras_tfm.data.packing import first_fit_decreasing, pack
from keras_tfm.data.questions import best_answers, question_examples
from keras_tfm.data.reading import Rows, read_rows
from keras_tfm.data.span_corruption import SpanCorruption
from keras_tfm.data.tables import read_table
from keras_tfm.data.tagged_words import token_examples
from keras_tfm.data.tokenizer import Tokenizer
from keras_tfm.data.tokenizer_training import train_tokenizer

__all__ = [
    "ExampleBatches",
    "Examples",
    "KerasHubTokenizer",
    "MappedExamples",
    "Masking",
    "Rows",
    "SpanCorruption",
    "TextBatches",
    "Tokenizer",
    "as_tokenizer",
    "best_answers",
    "causal_examples",
    "first_fit_decreasing",
    "pack",
    "question_examples",
    "read_rows",
    "read_table",
    "seq2seq_examples",
    "token_examples",
    "train_tokenizer",
    "write_examples",
]
