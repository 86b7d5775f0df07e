"""Text to batches of NumPy arrays. Needs no Keras."""

from keras_tfm.data.batches import TextBatches
from keras_tfm.data.tables import read_table
from keras_tfm.data.tokenizer import Tokenizer

__all__ = ["TextBatches", "Tokenizer", "read_table"]
