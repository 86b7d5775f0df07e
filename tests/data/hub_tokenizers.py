"""Small tokenizers of KerasHub, trained on the spot."""

import functools
import io
import json
from collections.abc import Callable
from typing import Any

import keras_hub
import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from data.word_piece import SENTENCES, train_word_piece

hub = keras_hub.tokenizers
TEXTS = [
    "The soup was cold, and so was the waiter.",
    "",
    "  Not a\tsingle dull\nminute!? 1234 words; naïve Straße …",
    "日本語 and 😀 emoji",
    "soup",
]


@functools.cache
def _byte_pairs(*special: str) -> tuple[dict[str, int], list[str]]:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=330, special_tokens=list(special), show_progress=False)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [" ".join(merge) for merge in model["merges"]]


def byte_pairs(cls: type, *special: str, **options: Any) -> Any:
    vocabulary, merges = _byte_pairs(*special)
    return cls(vocabulary=vocabulary, merges=merges, **options)


@functools.cache
def _sentence_piece(**options: Any) -> bytes:
    written = io.BytesIO()
    options = {"vocab_size": 90, "hard_vocab_limit": False, "model_type": "unigram", "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=written, **options)
    return written.getvalue()


def sentence_piece(cls: type, options: dict[str, Any], **more: Any) -> Any:
    return cls(proto=_sentence_piece(**options), **more)


def word_piece(cls: type, **options: Any) -> Any:
    vocabulary = train_word_piece().tokenizer.get_vocab()
    return cls(vocabulary=sorted(vocabulary, key=vocabulary.get), **{"lowercase": True, **options})


# As the published ones were trained.
AS_IS = dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
LLAMA = dict(AS_IS, vocab_size=350, unk_id=0, bos_id=1, eos_id=2)
GEMMA = dict(
    AS_IS,
    vocab_size=350,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    bos_piece="<bos>",
    eos_piece="<eos>",
    add_dummy_prefix=False,
)
T5 = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
ALBERT = dict(pad_id=0, unk_id=1, bos_id=2, eos_id=3, bos_piece="[CLS]", eos_piece="[SEP]", control_symbols="[MASK]")
DEBERTA = dict(ALBERT, pad_piece="[PAD]", unk_piece="[UNK]", bos_id=1, eos_id=2, unk_id=3, control_symbols="")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")

MAKE: dict[str, Callable[..., Any]] = {
    "Bert": lambda **k: word_piece(hub.BertTokenizer, **k),
    "DistilBert": lambda **k: word_piece(hub.DistilBertTokenizer, **k),
    "Albert": lambda **k: sentence_piece(hub.AlbertTokenizer, ALBERT, **k),
    "DebertaV3": lambda **k: sentence_piece(hub.DebertaV3Tokenizer, DEBERTA, **k),
    "Roberta": lambda **k: byte_pairs(hub.RobertaTokenizer, *ROBERTA, **k),
    "XLMRoberta": lambda **k: sentence_piece(hub.XLMRobertaTokenizer, {}, **k),
    "GPT2": lambda **k: byte_pairs(hub.GPT2Tokenizer, "<|endoftext|>", **k),
    "OPT": lambda **k: byte_pairs(hub.OPTTokenizer, *ROBERTA, **k),
    "Llama": lambda **k: sentence_piece(hub.LlamaTokenizer, LLAMA, **k),
    "Llama3": lambda **k: byte_pairs(hub.Llama3Tokenizer, *LLAMA3, **k),
    "Mistral": lambda **k: sentence_piece(hub.MistralTokenizer, LLAMA, **k),
    "Qwen": lambda **k: byte_pairs(hub.QwenTokenizer, "<|endoftext|>", **k),
    "Gemma": lambda **k: sentence_piece(hub.GemmaTokenizer, GEMMA, **k),
    "Bart": lambda **k: byte_pairs(hub.BartTokenizer, *ROBERTA, **k),
    "T5": lambda **k: sentence_piece(hub.T5Tokenizer, T5, **k),
}


@functools.cache
def make(name: str) -> Any:
    return MAKE[name]()
