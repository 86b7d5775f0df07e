"""DistilBERT (Sanh et al. 2019), as `transformers` stores it: BERT without token types and pooler, under other names."""

from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.architectures.bert import EMBEDDINGS, heads
from keras_tfm.architectures.stored import INTO_HEADS, LAYER_NORM, LINEAR, OUT_OF_HEADS, VECTOR

DISTILBERT = Architecture(
    model_type="distilbert",
    base="DistilBertModel",
    prefix="distilbert.",
    options={
        "kind": "encoder",
        "norm": {"kind": "layer_norm", "epsilon": 1e-12},
        "norm_placement": "post",
        "embedding_norm": True,
    },
    sizes={
        "vocab_size": "vocabulary_size",
        "dim": "hidden_dim",
        "n_layers": "num_layers",
        "n_heads": "num_heads",
        "hidden_dim": "intermediate_dim",
        "max_position_embeddings": "max_sequence_length",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "initializer_range",
    },
    defaults={"activation": "gelu", "dropout": 0.1, "attention_dropout": 0.1, "initializer_range": 0.02},
    expects={"tie_word_embeddings": True},
    weights={
        **{ours: theirs for ours, theirs in EMBEDDINGS.items() if ours != "token_type_embedding"},
        "blocks.{i}.attention.query": ("transformer.layer.{i}.attention.q_lin", INTO_HEADS),
        "blocks.{i}.attention.key": ("transformer.layer.{i}.attention.k_lin", INTO_HEADS),
        "blocks.{i}.attention.value": ("transformer.layer.{i}.attention.v_lin", INTO_HEADS),
        "blocks.{i}.attention.output_projection": ("transformer.layer.{i}.attention.out_lin", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.output_norm": ("transformer.layer.{i}.sa_layer_norm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("transformer.layer.{i}.ffn.lin1", LINEAR),
        "blocks.{i}.feed_forward.down": ("transformer.layer.{i}.ffn.lin2", LINEAR),
        "blocks.{i}.feed_forward_residual.output_norm": ("transformer.layer.{i}.output_layer_norm", LAYER_NORM),
    },
    heads=heads(
        "DistilBert",
        TextClassifier=Head(
            "DistilBertForSequenceClassification",
            {"head.hidden": ("pre_classifier", LINEAR), "head.logits": ("classifier", LINEAR)},
            {"pooling": "first", "head": lambda config: {"hidden_dim": config.hidden_dim, "activation": "relu"}},
        ),
        MaskedLM=Head(
            "DistilBertForMaskedLM",
            {
                "head.hidden": ("vocab_transform", LINEAR),
                "head.norm": ("vocab_layer_norm", LAYER_NORM),
                "head.bias": ("vocab_projector.bias", VECTOR),
            },
        ),
    ),
    unused=("vocab_projector.weight", "embeddings.position_ids"),
    # The table of positions is in the file, sinusoids or not; and dropout says nothing of what a trained head computes.
    without_effect=frozenset({"sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_"}),
)
