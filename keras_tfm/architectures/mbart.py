"""mBART and mBART-50 (Liu et al. 2020; Tang et al. 2020), as `transformers` stores them: BART, normed before."""

from dataclasses import replace

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Head

MBART = replace(
    bart.BART,
    model_type="mbart",
    base="MBartModel",
    options=bart.OPTIONS | bart.LEARNED | bart.PRE | {"head_bias": True},
    heads={"Seq2SeqLM": Head("MBartForConditionalGeneration")},
)
