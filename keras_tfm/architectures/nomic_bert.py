"""Nomic BERT (Nussbaum et al. 2024), as `transformers` stores it: BERT with rotary positions and gates, without biases."""

from keras_tfm.architectures import bert
from keras_tfm.architectures.architecture import Architecture, Head
from keras_tfm.architectures.llama import head_dim
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import LAYER_NORM, LINEAR, OUT_OF_HEADS, QUERY_KEY_VALUE, VECTOR

HEADS = bert.heads(
    "NomicBert",
    TextClassifier=Head(
        "NomicBertForSequenceClassification",
        {"head.logits": ("classifier", LINEAR)},
        {"pooling": "pooler"},
        {"pooler": True},  # which the bare model goes without
    ),
    MaskedLM=Head(
        "NomicBertForMaskedLM",
        {
            "head.hidden": ("cls.predictions.transform.dense", LINEAR),
            "head.norm": ("cls.predictions.transform.layer_norm", LAYER_NORM),
            "head.bias": ("cls.predictions.bias", VECTOR),
        },
    ),
)

NOMIC_BERT = Architecture(
    model_type="nomic_bert",
    base="NomicBertModel",
    prefix="nomic_bert.",
    options={**bert.OPTIONS, "pooler": False, "gated": True, "use_bias": False},
    sizes=bert.SIZES,
    defaults={
        **bert.DEFAULTS,
        "hidden_act": "silu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": 2048,
        "type_vocab_size": 2,
    },
    expects={"tie_word_embeddings": True},
    rules=(rope(1000.0), head_dim()),
    weights={
        "token_embedding": bert.EMBEDDINGS["token_embedding"],
        "token_type_embedding": bert.EMBEDDINGS["token_type_embedding"],
        "embedding_norm": ("emb_ln", LAYER_NORM),
        tuple(f"blocks.{{i}}.attention.{part}" for part in ("query", "key", "value")): (
            "encoder.layers.{i}.attn.Wqkv",
            QUERY_KEY_VALUE,
        ),
        "blocks.{i}.attention.output_projection": ("encoder.layers.{i}.attn.out_proj", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.output_norm": ("encoder.layers.{i}.norm1", LAYER_NORM),
        "blocks.{i}.feed_forward.up": ("encoder.layers.{i}.mlp.fc11", LINEAR),
        "blocks.{i}.feed_forward.gate": ("encoder.layers.{i}.mlp.fc12", LINEAR),
        "blocks.{i}.feed_forward.down": ("encoder.layers.{i}.mlp.fc2", LINEAR),
        "blocks.{i}.feed_forward_residual.output_norm": ("encoder.layers.{i}.norm2", LAYER_NORM),
        **bert.POOLER,
    },
    heads={task: head for task, head in HEADS.items() if task != "QuestionAnswerer"},
    optional=("pooler",),
    unused=("cls.predictions.decoder.*",),
)
