"""BERT (Devlin et al. 2019), as `transformers` stores it.

Its names and sizes are those of many later encoders, which take the tables from here.
"""

from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.architectures.stored import (
    EMBEDDING,
    INTO_HEADS,
    LAYER_NORM,
    LINEAR,
    OUT_OF_HEADS,
    TOKEN_EMBEDDING,
    VECTOR,
)

OPTIONS = {
    "kind": "encoder",
    "norm": {"kind": "layer_norm"},
    "norm_placement": "post",
    "embedding_norm": True,
    "pooler": True,
}
SIZES = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "hidden_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "type_vocab_size": "token_type_vocabulary_size",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "norm.epsilon",
    "initializer_range": "initializer_range",
}
DEFAULTS = {
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_act": "gelu",
}
EXPECTS = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
EMBEDDINGS = {
    "token_embedding": ("embeddings.word_embeddings", TOKEN_EMBEDDING),
    "position_embedding": ("embeddings.position_embeddings", EMBEDDING),
    "token_type_embedding": ("embeddings.token_type_embeddings", EMBEDDING),
    "embedding_norm": ("embeddings.LayerNorm", LAYER_NORM),
}
POOLER = {"pooler": ("pooler.dense", LINEAR)}
WEIGHTS = {
    **EMBEDDINGS,
    "blocks.{i}.attention.query": ("encoder.layer.{i}.attention.self.query", INTO_HEADS),
    "blocks.{i}.attention.key": ("encoder.layer.{i}.attention.self.key", INTO_HEADS),
    "blocks.{i}.attention.value": ("encoder.layer.{i}.attention.self.value", INTO_HEADS),
    "blocks.{i}.attention.output_projection": ("encoder.layer.{i}.attention.output.dense", OUT_OF_HEADS),
    "blocks.{i}.attention_residual.output_norm": ("encoder.layer.{i}.attention.output.LayerNorm", LAYER_NORM),
    "blocks.{i}.feed_forward.up": ("encoder.layer.{i}.intermediate.dense", LINEAR),
    "blocks.{i}.feed_forward.down": ("encoder.layer.{i}.output.dense", LINEAR),
    "blocks.{i}.feed_forward_residual.output_norm": ("encoder.layer.{i}.output.LayerNorm", LAYER_NORM),
    **POOLER,
}
WITHOUT_POOLER = {"pooler": False}
WITHOUT_EFFECT = frozenset(  # in official files (bert-base-chinese, xlm-roberta-base), and read by none
    """
    directionality output_past pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head
    pooler_type
    """.split()  # noqa: SIM905
)


def heads(name: str, **others: Head) -> dict[str, Head]:
    """The heads that `transformers` gives most encoders, under a family's class names, and the family's `others`."""
    classifier = {"head.logits": ("classifier", LINEAR)}
    answers = {"head.logits": ("qa_outputs", LINEAR)}
    return {
        "TextClassifier": Head(f"{name}ForSequenceClassification", classifier, {"pooling": "pooler"}),
        "TokenClassifier": Head(f"{name}ForTokenClassification", classifier, changes=WITHOUT_POOLER),
        "QuestionAnswerer": Head(f"{name}ForQuestionAnswering", answers, changes=WITHOUT_POOLER),
        "MaskedLM": Head(
            f"{name}ForMaskedLM",
            {
                "head.hidden": ("cls.predictions.transform.dense", LINEAR),
                "head.norm": ("cls.predictions.transform.LayerNorm", LAYER_NORM),
                "head.bias": ("cls.predictions.bias", VECTOR),
            },
            changes=WITHOUT_POOLER,
        ),
        **others,
    }


BERT = Architecture(
    model_type="bert",
    base="BertModel",
    prefix="bert.",
    options=OPTIONS,
    sizes=SIZES,
    defaults=DEFAULTS,
    expects=EXPECTS,
    weights=WEIGHTS,
    heads=heads("Bert"),
    optional=("pooler",),
    unused=("embeddings.position_ids",),
    without_effect=WITHOUT_EFFECT,
)
