"""ALBERT (Lan et al. 2020), as `transformers` stores it: one block, or few, for all depths, and narrow embeddings."""

from keras_tfm.architectures import bert
from keras_tfm.architectures.architecture import Architecture, Head, Rule
from keras_tfm.architectures.stored import INTO_HEADS, LAYER_NORM, LINEAR, OUT_OF_HEADS, VECTOR

BLOCK = "encoder.albert_layer_groups.{i}.albert_layers.0."
GROUPS = Rule(
    ("num_hidden_groups",),
    lambda config: {"layer_groups": config.get("num_hidden_groups", 1)},
    lambda config: {"num_hidden_groups": config.layer_groups or config.num_layers},
)

ALBERT = Architecture(
    model_type="albert",
    base="AlbertModel",
    prefix="albert.",
    options=bert.OPTIONS,
    sizes={**bert.SIZES, "embedding_size": "embedding_dim"},
    defaults={
        **bert.DEFAULTS,
        "embedding_size": 128,
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    expects={**bert.EXPECTS, "inner_group_num": 1},
    rules=(GROUPS,),
    weights={
        **bert.EMBEDDINGS,
        "embedding_projection": ("encoder.embedding_hidden_mapping_in", LINEAR),
        "blocks.{i}.attention.query": (BLOCK + "attention.query", INTO_HEADS),
        "blocks.{i}.attention.key": (BLOCK + "attention.key", INTO_HEADS),
        "blocks.{i}.attention.value": (BLOCK + "attention.value", INTO_HEADS),
        "blocks.{i}.attention.output_projection": (BLOCK + "attention.dense", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.output_norm": (BLOCK + "attention.LayerNorm", LAYER_NORM),
        "blocks.{i}.feed_forward.up": (BLOCK + "ffn", LINEAR),
        "blocks.{i}.feed_forward.down": (BLOCK + "ffn_output", LINEAR),
        "blocks.{i}.feed_forward_residual.output_norm": (BLOCK + "full_layer_layer_norm", LAYER_NORM),
        "pooler": ("pooler", LINEAR),
    },
    heads=bert.heads(
        "Albert",
        MaskedLM=Head(
            "AlbertForMaskedLM",
            {
                "head.hidden": ("predictions.dense", LINEAR),
                "head.norm": ("predictions.LayerNorm", LAYER_NORM),
                "head.bias": ("predictions.bias", VECTOR),
            },
            changes=bert.WITHOUT_POOLER,
        ),
    ),
    optional=("pooler",),
    unused=("embeddings.position_ids", "predictions.decoder.*"),
    # Dropout says nothing of what a trained head computes; the others are of the original TensorFlow code.
    without_effect=frozenset(
        "classifier_dropout_prob down_scale_factor gap_size net_structure_type num_memory_blocks".split()  # noqa: SIM905
    ),
)
