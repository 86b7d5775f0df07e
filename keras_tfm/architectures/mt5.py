"""mT5 (Xue et al. 2021), as `transformers` stores it: T5 whose head scales nothing."""

from keras_tfm.architectures import t5
from keras_tfm.architectures.architecture import Architecture, Head, Rule

MT5 = Architecture(
    model_type="mt5",
    base="MT5Model",
    options=t5.OPTIONS,
    sizes=t5.SIZES | {"tie_word_embeddings": "tie_embeddings"},
    defaults=t5.DEFAULTS | {"tie_word_embeddings": True},
    expects=t5.EXPECTS,
    rules=(
        Rule(
            t5.FEED_FORWARD.keys,
            lambda config: t5.FEED_FORWARD.read({"feed_forward_proj": "gated-gelu", **config}),
            t5.FEED_FORWARD.write,
        ),
        t5.DROPOUT,
    ),
    heads={"Seq2SeqLM": Head("MT5ForConditionalGeneration")},
    **t5.NAMES,
)
