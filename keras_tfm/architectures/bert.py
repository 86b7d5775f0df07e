"""BERT (Devlin et al. 2019), as `transformers` stores it."""

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

BERT = Architecture(
    model_type="bert",
    base="BertModel",
    prefix="bert.",
    options={
        "kind": "encoder",
        "norm": {"kind": "layer_norm"},
        "norm_placement": "post",
        "embedding_norm": True,
        "pooler": True,
    },
    sizes={
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
    },
    defaults={
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "hidden_act": "gelu",
    },
    expects={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    weights={
        "token_embedding": ("embeddings.word_embeddings", TOKEN_EMBEDDING),
        "position_embedding": ("embeddings.position_embeddings", EMBEDDING),
        "token_type_embedding": ("embeddings.token_type_embeddings", EMBEDDING),
        "embedding_norm": ("embeddings.LayerNorm", LAYER_NORM),
        "blocks.{i}.attention.query": ("encoder.layer.{i}.attention.self.query", INTO_HEADS),
        "blocks.{i}.attention.key": ("encoder.layer.{i}.attention.self.key", INTO_HEADS),
        "blocks.{i}.attention.value": ("encoder.layer.{i}.attention.self.value", INTO_HEADS),
        "blocks.{i}.attention.output_projection": ("encoder.layer.{i}.attention.output.dense", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.output_norm": ("encoder.layer.{i}.attention.output.LayerNorm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("encoder.layer.{i}.intermediate.dense", LINEAR),
        "blocks.{i}.feed_forward.down": ("encoder.layer.{i}.output.dense", LINEAR),
        "blocks.{i}.feed_forward_residual.output_norm": ("encoder.layer.{i}.output.LayerNorm", LAYER_NORM),
        "pooler": ("pooler.dense", LINEAR),
    },
    heads={
        "TextClassifier": Head(
            "BertForSequenceClassification", {"head.logits": ("classifier", LINEAR)}, {"pooling": "pooler"}
        ),
        "TokenClassifier": Head(
            "BertForTokenClassification", {"head.logits": ("classifier", LINEAR)}, changes={"pooler": False}
        ),
        "QuestionAnswerer": Head(
            "BertForQuestionAnswering", {"head.logits": ("qa_outputs", LINEAR)}, changes={"pooler": False}
        ),
        "MaskedLM": Head(
            "BertForMaskedLM",
            {
                "head.hidden": ("cls.predictions.transform.dense", LINEAR),
                "head.norm": ("cls.predictions.transform.LayerNorm", LAYER_NORM),
                "head.bias": ("cls.predictions.bias", VECTOR),
            },
            changes={"pooler": False},
        ),
    },
    optional=("pooler",),
    unused=("embeddings.position_ids",),
)
