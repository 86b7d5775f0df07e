"""Published families as data: sizes, options and weight names, each in a short file."""

from __future__ import annotations

import difflib

from keras_tfm.architectures.albert import ALBERT
from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.architectures.bart import BART
from keras_tfm.architectures.bert import BERT
from keras_tfm.architectures.bloom import BLOOM
from keras_tfm.architectures.camembert import CAMEMBERT
from keras_tfm.architectures.cohere import COHERE
from keras_tfm.architectures.deberta_v2 import DEBERTA_V2
from keras_tfm.architectures.distilbert import DISTILBERT
from keras_tfm.architectures.electra import ELECTRA
from keras_tfm.architectures.falcon import FALCON
from keras_tfm.architectures.gemma import GEMMA
from keras_tfm.architectures.gemma2 import GEMMA2
from keras_tfm.architectures.gemma3 import GEMMA3_TEXT
from keras_tfm.architectures.gpt2 import GPT2
from keras_tfm.architectures.gpt_neo import GPT_NEO
from keras_tfm.architectures.gpt_neox import GPT_NEOX
from keras_tfm.architectures.gpt_oss import GPT_OSS
from keras_tfm.architectures.gptj import GPTJ
from keras_tfm.architectures.llama import LLAMA
from keras_tfm.architectures.m2m_100 import M2M_100
from keras_tfm.architectures.marian import MARIAN
from keras_tfm.architectures.mbart import MBART
from keras_tfm.architectures.mistral import MISTRAL
from keras_tfm.architectures.mixtral import MIXTRAL
from keras_tfm.architectures.modernbert import MODERNBERT
from keras_tfm.architectures.mpnet import MPNET
from keras_tfm.architectures.mt5 import MT5
from keras_tfm.architectures.nomic_bert import NOMIC_BERT
from keras_tfm.architectures.olmo2 import OLMO2
from keras_tfm.architectures.opt import OPT
from keras_tfm.architectures.pegasus import PEGASUS
from keras_tfm.architectures.phi import PHI
from keras_tfm.architectures.phi3 import PHI3
from keras_tfm.architectures.qwen2 import QWEN2
from keras_tfm.architectures.qwen2_moe import QWEN2_MOE
from keras_tfm.architectures.qwen3 import QWEN3
from keras_tfm.architectures.qwen3_moe import QWEN3_MOE
from keras_tfm.architectures.roberta import ROBERTA
from keras_tfm.architectures.smollm3 import SMOLLM3
from keras_tfm.architectures.stablelm import STABLELM
from keras_tfm.architectures.starcoder2 import STARCODER2
from keras_tfm.architectures.t5 import T5
from keras_tfm.architectures.vit import VIT
from keras_tfm.architectures.xlm_roberta import XLM_ROBERTA

FAMILIES: dict[str, Architecture] = {
    architecture.model_type: architecture
    for architecture in (
        ALBERT,
        BART,
        BERT,
        BLOOM,
        CAMEMBERT,
        COHERE,
        DEBERTA_V2,
        DISTILBERT,
        ELECTRA,
        FALCON,
        GEMMA,
        GEMMA2,
        GEMMA3_TEXT,
        GPT2,
        GPTJ,
        GPT_NEO,
        GPT_NEOX,
        GPT_OSS,
        LLAMA,
        M2M_100,
        MARIAN,
        MBART,
        MISTRAL,
        MIXTRAL,
        MODERNBERT,
        MPNET,
        NOMIC_BERT,
        MT5,
        OLMO2,
        OPT,
        PEGASUS,
        PHI,
        PHI3,
        QWEN2,
        QWEN2_MOE,
        QWEN3,
        QWEN3_MOE,
        ROBERTA,
        SMOLLM3,
        STABLELM,
        STARCODER2,
        T5,
        VIT,
        XLM_ROBERTA,
    )
}


def by_preference() -> list[Architecture]:
    """All families, in the order in which a model that names none is offered to them: the plain ones first."""
    plain = ("bert", "gpt2", "llama", "t5", "bart")
    return sorted(FAMILIES.values(), key=lambda a: plain.index(a.model_type) if a.model_type in plain else len(plain))


def find(model_type: str | None) -> Architecture:
    """The family of a config.json's "model_type".

    Raises:
        ValueError: for an unknown one; the nearest known are named.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    near = difflib.get_close_matches(str(model_type), FAMILIES, n=3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"config.json has model_type={model_type!r}; known families are {sorted(FAMILIES)}.{hint}")


__all__ = ["BERT", "FAMILIES", "Architecture", "Head", "find"]
