"""MPNet (Song et al. 2020), as `transformers` stores it: RoBERTa with a relative bias that all blocks share."""

from keras_tfm.architectures import bert, roberta
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.stored import EMBEDDING, INTO_HEADS, LAYER_NORM, OUT_OF_HEADS

OFFSET = 2  # RoBERTa's, whatever the id of the padding token
ATTENTION = "encoder.layer.{i}.attention."

MPNET = Architecture(
    model_type="mpnet",
    base="MPNetModel",
    prefix="mpnet.",
    options={
        **bert.OPTIONS,
        "position": {"kind": "learned", "offset": OFFSET},
        "attention_position": {"kind": "relative", "num_buckets": 32, "max_distance": 128, "bidirectional": True},
    },
    sizes={
        theirs: ours
        for theirs, ours in bert.SIZES.items()
        if theirs not in ("max_position_embeddings", "type_vocab_size")
    },
    defaults=bert.DEFAULTS,
    # Their code computes 32 buckets, whatever the number of rows in the table.
    expects={"tie_word_embeddings": True, "relative_attention_num_buckets": 32},
    rules=(
        Rule(
            ("max_position_embeddings",),
            lambda config: {"max_sequence_length": config.get("max_position_embeddings", 512) - OFFSET},
            lambda config: {"max_position_embeddings": (config.max_sequence_length or 0) + OFFSET},
        ),
    ),
    weights={
        **{ours: theirs for ours, theirs in bert.WEIGHTS.items() if ours != "token_type_embedding"},
        "blocks.{i}.attention.query": (ATTENTION + "attn.q", INTO_HEADS),
        "blocks.{i}.attention.key": (ATTENTION + "attn.k", INTO_HEADS),
        "blocks.{i}.attention.value": (ATTENTION + "attn.v", INTO_HEADS),
        "blocks.{i}.attention.output_projection": (ATTENTION + "attn.o", OUT_OF_HEADS),
        "blocks.{i}.attention_residual.output_norm": (ATTENTION + "LayerNorm", LAYER_NORM),
        "blocks.0.attention.position": ("encoder.relative_attention_bias", EMBEDDING),
    },
    heads=roberta.heads("MPNet"),
    optional=("pooler",),
    unused=("embeddings.position_ids", "lm_head.decoder.*"),
)
