"""Backbones by family: a size name, keywords, or a whole `TransformerConfig`."""

from __future__ import annotations

import difflib
from typing import Any

from keras_tfm.config import TransformerConfig
from keras_tfm.models.backbone import Backbone


def _sizes(rows: dict[str, tuple[int, int, int]], **common: Any) -> dict[str, dict[str, Any]]:
    """Rows of (layers, width, heads); the feed-forward width is four times the width."""
    return {
        name: {"num_layers": layers, "hidden_dim": width, "num_heads": heads, "intermediate_dim": 4 * width, **common}
        for name, (layers, width, heads) in rows.items()
    }


# Devlin et al. 2019, section 3; the smaller ones from Turc et al. 2019, table 1.
BERT_OPTIONS: dict[str, Any] = dict(
    kind="encoder",
    vocabulary_size=30_522,
    max_sequence_length=512,
    token_type_vocabulary_size=2,
    embedding_norm=True,
    norm={"kind": "layer_norm", "epsilon": 1e-12},
    norm_placement="post",
    dropout=0.1,
    pooler=True,
)
BERT_SIZES = _sizes(
    {
        "tiny": (2, 128, 2),
        "mini": (4, 256, 4),
        "small": (4, 512, 8),
        "medium": (8, 512, 8),
        "base": (12, 768, 12),
        "large": (24, 1024, 16),
    }
)

# Radford et al. 2019, table 2.
GPT_OPTIONS: dict[str, Any] = dict(
    kind="decoder",
    vocabulary_size=50_257,
    max_sequence_length=1024,
    norm={"kind": "layer_norm", "epsilon": 1e-5},
    activation="gelu_tanh",
    dropout=0.1,
)
GPT_SIZES = _sizes({"small": (12, 768, 12), "medium": (24, 1024, 16), "large": (36, 1280, 20), "xl": (48, 1600, 25)})

# Vaswani et al. 2017, table 3; one table for both languages and the head, scaled by sqrt(width) (section 3.4).
TRANSFORMER_OPTIONS: dict[str, Any] = dict(
    kind="encoder_decoder",
    vocabulary_size=37_000,
    position="sinusoidal",
    norm={"kind": "layer_norm", "epsilon": 1e-6},
    norm_placement="post",
    activation="relu",
    attention_dropout=0.0,
)
TRANSFORMER_SIZES = {
    "base": {**_sizes({"base": (6, 512, 8)})["base"], "dropout": 0.1},
    "big": {**_sizes({"big": (6, 1024, 16)})["big"], "dropout": 0.3},
}

# Dosovitskiy et al. 2021, table 1 and appendix B.1 (dropout 0 when fine-tuned); tiny and small from Touvron et al. 2021.
VIT_OPTIONS: dict[str, Any] = dict(
    kind="encoder",
    vocabulary_size=None,
    image_size=224,
    patch_size=16,
    norm={"kind": "layer_norm", "epsilon": 1e-6},
)
VIT_SIZES = _sizes(
    {
        "tiny": (12, 192, 3),
        "small": (12, 384, 6),
        "base": (12, 768, 12),
        "large": (24, 1024, 16),
        "huge": (32, 1280, 16),
    }
)
VIT_SIZES["huge"]["patch_size"] = 14


def _build(
    family: str, size: Any, options: dict[str, Any], sizes: dict[str, dict[str, Any]], given: dict[str, Any]
) -> Backbone:
    model = {key: given.pop(key) for key in ("name", "dtype", "trainable") if key in given}
    model = {"name": f"{family}_backbone", **model}
    if isinstance(size, TransformerConfig):
        if size.kind != options["kind"]:
            raise ValueError(f"{family} is of kind {options['kind']!r}; the config is of kind {size.kind!r}.")
        if (size.image_shape is None) != ("image_size" not in options):
            raise ValueError(
                f"{family} reads {'images' if 'image_size' in options else 'tokens'}; the config's model does not."
            )
        return Backbone(size.replace(**given), **model)
    if size is not None and size not in sizes:
        near = difflib.get_close_matches(str(size), sizes, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{family} has the sizes {list(sizes)}; got {size!r}.{hint}")
    fields = {**options, **(sizes[size] if size is not None else {}), **given}
    if "hidden_dim" in given and "intermediate_dim" not in given:
        fields["intermediate_dim"] = 4 * given["hidden_dim"]
    missing = [name for name in ("num_layers", "hidden_dim", "num_heads") if name not in fields]
    if missing:
        raise ValueError(f"{family} needs a size from {list(sizes)}, or keywords; missing are {missing}.")
    if fields["kind"] == "encoder_decoder" and "embedding_scale" not in given:
        fields["embedding_scale"] = float(fields["hidden_dim"]) ** 0.5
    return Backbone(TransformerConfig.from_dict(fields), **model)


def bert(size: str | TransformerConfig | None = None, **options: Any) -> Backbone:
    """A BERT encoder (Devlin et al. 2019) with its pooler.

    Args:
        size: "tiny", "mini", "small", "medium", "base" or "large" (English, uncased), a `TransformerConfig`, or None.
        options: Fields of `TransformerConfig` that differ from the size's; without a size at least num_layers,
            hidden_dim and num_heads. Also name, dtype and trainable.

    Returns:
        A `Backbone`: {"token_ids", ...} to {"sequence_output", "pooled_output"}.

    Example:
        >>> keras_tfm.models.bert("tiny").count_params()
        4385920
    """
    return _build("bert", size, BERT_OPTIONS, BERT_SIZES, options)


def gpt(size: str | TransformerConfig | None = None, **options: Any) -> Backbone:
    """A GPT-2 decoder (Radford et al. 2019).

    Args:
        size: "small" (124 M), "medium", "large" or "xl", a `TransformerConfig`, or None.
        options: As in `bert`; position="rotary", norm="rms_norm", gated=True and so on give later designs.

    Returns:
        A `Backbone`: {"token_ids", ...} to hidden states, (batch, length, hidden_dim).
    """
    return _build("gpt", size, GPT_OPTIONS, GPT_SIZES, options)


def transformer(size: str | TransformerConfig | None = None, **options: Any) -> Backbone:
    """The encoder-decoder of Vaswani et al. 2017, one table shared by both sides and the head.

    Args:
        size: "base" or "big", a `TransformerConfig`, or None.
        options: As in `bert`; num_decoder_layers sets the decoder's depth apart.

    Returns:
        A `Backbone`: {"token_ids", "decoder_token_ids", ...} to {"sequence_output", "encoder_sequence_output"}.
    """
    return _build("transformer", size, TRANSFORMER_OPTIONS, TRANSFORMER_SIZES, options)


def vit(size: str | TransformerConfig | None = None, **options: Any) -> Backbone:
    """A vision transformer (Dosovitskiy et al. 2021): an encoder of images.

    Args:
        size: "tiny", "small", "base", "large" (patches of 16 pixels) or "huge" (14), a `TransformerConfig`, or None.
        options: As in `bert`; image_size (224), patch_size and num_channels (3) set what it reads. Dropout is 0.

    Returns:
        A `Backbone`: images, (batch, height, width, channels) float, to {"sequence_output"}, (batch, patches + 1,
        hidden_dim), the class token first.

    Example:
        >>> keras_tfm.models.vit("base").count_params()
        85798656
    """
    return _build("vit", size, VIT_OPTIONS, VIT_SIZES, options)
