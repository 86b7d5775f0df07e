"""A small WordPiece tokenizer with BERT's special tokens, trained on the spot."""

import functools
from collections.abc import Sequence

import keras_tfm as tfm

SENTENCES = [
    "The soup was cold, and so was the waiter.",
    "I would go back tomorrow!",
    "Not a single dull minute in the whole film.",
    "The phone is slower than the one it replaced.",
    "She laughed; we all laughed.",
]


@functools.cache  # training it twice may number the pieces differently
def _trained(texts: tuple[str, ...], vocabulary_size: int) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    base = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    base.normalizer = normalizers.BertNormalizer(lowercase=True)
    base.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary_size, special_tokens=special, show_progress=False)
    base.train_from_iterator(texts, trainer)
    base.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return base.to_str()


def train_word_piece(texts: Sequence[str] = SENTENCES, vocabulary_size: int = 200, **options) -> tfm.data.Tokenizer:
    from tokenizers import Tokenizer

    return tfm.data.Tokenizer(Tokenizer.from_str(_trained(tuple(texts), vocabulary_size)), **options)
