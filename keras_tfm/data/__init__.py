"""Text to batches of NumPy arrays. Needs no Keras."""

from keras_tfm.data.accepted import as_tokenizer
from keras_tfm.data.batches import TextBatches
from keras_tfm.data.keras_hub_tokenizer import KerasHubTokenizer
from keras_tfm.data.tables import read_table
from keras_tfm.data.tokenizer import Tokenizer

__all__ = ["KerasHubTokenizer", "TextBatches", "Tokenizer", "as_tokenizer", "read_table"]
