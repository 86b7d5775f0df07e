"""mT5 (Xue et al. 2021), as `transformers` stores it: T5 whose head never scales."""

from dataclasses import replace

from keras_tfm.architectures import t5
from keras_tfm.architectures.architecture import Head, Rule

MT5 = replace(
    t5.T5,
    model_type="mt5",
    base="MT5Model",
    sizes=t5.SIZES | {"tie_word_embeddings": "tie_embeddings"},
    defaults=t5.DEFAULTS | {"tie_word_embeddings": True},
    rules=(
        Rule(
            t5.FEED_FORWARD.keys,
            lambda config: t5.FEED_FORWARD.read({"feed_forward_proj": "gated-gelu", **config}),
            t5.FEED_FORWARD.write,
        ),
        t5.DROPOUT,
    ),
    heads={"Seq2SeqLM": Head("MT5ForConditionalGeneration")},
)
