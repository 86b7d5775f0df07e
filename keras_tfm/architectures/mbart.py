"""mBART and mBART-50 (Liu et al. 2020; Tang et al. 2020), as `transformers` stores them: BART, normed before."""

from keras_tfm.architectures import bart
from keras_tfm.architectures.architecture import Architecture, Head

MBART = Architecture(
    model_type="mbart",
    base="MBartModel",
    options=bart.OPTIONS | bart.LEARNED | bart.PRE | {"head_bias": True},
    sizes=bart.SIZES,
    defaults=bart.DEFAULTS,
    expects=bart.EXPECTS,
    rules=bart.RULES,
    heads={"Seq2SeqLM": Head("MBartForConditionalGeneration")},
    **bart.NAMES,
)
