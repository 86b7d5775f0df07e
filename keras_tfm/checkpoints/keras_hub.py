"""Models of KerasHub (keras-nlp), taken over with their weights."""

from __future__ import annotations

import difflib
from typing import Any

import keras
import numpy as np

from keras_tfm import architectures, models
from keras_tfm.architectures.keras_hub import HUB_FAMILIES, HubFamily
from keras_tfm.checkpoints.matching import resolve
from keras_tfm.data import KerasHubTokenizer
from keras_tfm.models import Backbone

IMAGE_POOLING = {"token": "first", "gap": "mean"}


def from_keras_hub(model: Any, *, dtype: Any = None, name: str | None = None) -> Any:
    """A KerasHub backbone as ours, a KerasHub task as our task: the same outputs for the same tokens.

    Args:
        model: A backbone (BERT, RoBERTa, DistilBERT, ALBERT, GPT-2, OPT, Llama, Mistral, Qwen, Gemma, T5, BART, ViT),
            or a text or image classifier, causal or sequence-to-sequence language model on one. Of its preprocessor, the
            tokenizer comes along, with its start token and its sequence length; what is done to images does not.
        dtype: Policy of the new model. Default: the global one.
        name: Of the new model.

    Returns:
        A `Backbone`, `TextClassifier`, `ImageClassifier`, `CausalLM` or `Seq2SeqLM`. KerasHub's "segment_ids" of BERT are
        "token_type_ids" here. Positions are counted over real tokens, KerasHub's over padding too: rows that are padded
        on the left differ where positions are learned.

    Raises:
        ValueError: for a class that is not known here, or options that are not implemented.

    Example:
        >>> backbone = keras_tfm.from_keras_hub(keras_hub.models.BertBackbone.from_preset("bert_tiny_en_uncased"))
    """
    theirs = getattr(model, "backbone", model)
    family = _family(theirs)
    config = _config(theirs, family)
    backbone = Backbone(config, dtype=dtype, name=name if theirs is model else None)
    _copy(theirs, backbone, family)
    return backbone if theirs is model else _task(model, backbone, dtype, name)


def _family(backbone: Any) -> HubFamily:
    known = type(backbone).__name__
    if known not in HUB_FAMILIES:
        near = difflib.get_close_matches(known, HUB_FAMILIES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"{known} is not taken over; known are {sorted(HUB_FAMILIES)}.{hint}")
    return HUB_FAMILIES[known]


def _config(backbone: Any, family: HubFamily) -> Any:
    written: dict[str, Any] = dict(family.fixed)
    for key, attribute in family.sizes.items():
        written[key] = attribute(backbone) if callable(attribute) else getattr(backbone, attribute)
    for option, value in (
        ("use_post_ffw_norm", False),
        ("use_post_attention_norm", False),
        ("num_inner_repetitions", 1),
    ):
        if getattr(backbone, option, value) != value:
            raise ValueError(f"{type(backbone).__name__} with {option}={getattr(backbone, option)} is not taken over.")
    if "max_position_embeddings" not in written and family.model_type not in (
        "t5",
        "gpt2",
        "distilbert",
        "opt",
        "bart",
        "vit",
    ):
        written["max_position_embeddings"] = 2**17  # KerasHub states none
    config, _ = architectures.find(family.model_type).read_config({k: v for k, v in written.items() if v is not None})
    return config.replace(**{name: value(backbone) for name, value in family.fields.items()})


def _copy(theirs: Any, ours: Backbone, family: HubFamily) -> None:
    """Layer by layer; every weight of ours must have been written in the end."""
    filled: set[int] = set()
    for mine, (path, change) in _pairs(ours, family):
        target = resolve(ours, mine)
        before, _, last = path.rpartition(".")
        choices = [".".join(filter(None, (before, choice))) for choice in last.split("|")]
        source = next((found for choice in choices if (found := _of_theirs(theirs, choice)) is not None), None)
        if target is None:
            continue  # an option that is off
        if source is None:
            raise ValueError(f"This version of KerasHub has no {path} in {type(theirs).__name__}.")
        pairs = list(zip(_weights(target), _weights(source), strict=True))
        for variable, value in pairs:
            array = keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))
            array = change(array) if change is not None and array.ndim > 1 else array
            if array.size != np.prod(variable.shape):
                raise ValueError(f"{path} of {type(theirs).__name__} has shape {array.shape}, ours {variable.shape}.")
            variable.assign(np.array(array.reshape(variable.shape)))
            filled.add(id(variable))
    for stack, side in (("blocks", "encoder"), ("decoder_blocks", "decoder")):
        _relative_bias(theirs, ours, stack, side, filled)
    for path in family.zeros:
        part = resolve(ours, path)
        for variable in getattr(part, "weights", [part]) if part is not None else []:
            variable.assign(np.zeros(variable.shape))
            filled.add(id(variable))
    left = [v.path for v in ours.weights if id(v) not in filled and "seed_generator" not in v.path]
    if left:
        raise ValueError(f"{type(theirs).__name__} has nothing for {left[:4]}, {len(left)} weights in all.")


def _of_theirs(backbone: Any, path: str) -> Any:
    """As `resolve`; the first step may be a layer's name, for ViT keeps no attributes."""
    first, _, rest = path.partition(".")
    if rest and not hasattr(backbone, first):
        backbone = next((layer for layer in backbone.layers if layer.name == first), None)
        return resolve(backbone, rest)
    return resolve(backbone, path)


def _relative_bias(theirs: Any, ours: Any, stack: str, side: str, filled: set[int]) -> None:
    """T5's table, which lies in the first block of each of KerasHub's stacks."""
    table = resolve(theirs, f"{side}_transformer_layers.0.self_attention.relative_attention_bias")
    if table is not None:
        variable = resolve(ours, f"{stack}.0.attention.position.embeddings")
        variable.assign(keras.ops.convert_to_numpy(table))
        filled.add(id(variable))


def _weights(layer: Any) -> list[Any]:
    return [variable for variable in getattr(layer, "weights", [layer]) if "seed_generator" not in variable.path]


def _pairs(ours: Backbone, family: HubFamily):
    for mine, theirs in family.layers.items():
        path, change = (theirs, None) if isinstance(theirs, str) else theirs
        count = 1
        if "{i}" in mine:
            blocks = resolve(ours, mine.partition(".")[0])
            count = ours.config.layer_groups or len(blocks)
        for i in range(count):
            yield mine.format(i=i), (path.format(i=i), change)


def _task(model: Any, backbone: Backbone, dtype: Any, name: str | None) -> Any:
    """Our task for KerasHub's, its head's weights with it."""
    kind = type(model).__name__
    tokenizer = None
    if getattr(getattr(model, "preprocessor", None), "tokenizer", None) is not None:
        tokenizer = KerasHubTokenizer.from_preprocessor(model.preprocessor)
    for ending, cls in (("CausalLM", "CausalLM"), ("Seq2SeqLM", "Seq2SeqLM")):
        if kind.endswith(ending):
            return getattr(models, cls)(backbone, tokenizer=tokenizer, dtype=dtype, name=name)
    if not kind.endswith(("TextClassifier", "ImageClassifier")):
        raise ValueError(f"{kind} is not taken over; classifiers, causal and seq2seq language models are.")
    if model.output_dense.activation not in (None, keras.activations.linear):
        raise ValueError(f"{kind} ends in an activation; take one with activation=None, whose outputs are logits.")
    options: dict[str, Any] = {"num_classes": model.num_classes, "dropout": model.dropout, "dtype": dtype, "name": name}
    layers = {"head.logits": "output_dense"}
    between = next((layer for layer in ("pooled_dense", "intermediate_layer") if hasattr(model, layer)), None)
    if between is not None:
        hidden = getattr(model, between)
        options["head"] = {"hidden_dim": hidden.units, "activation": keras.activations.serialize(hidden.activation)}
        layers["head.hidden"] = between
    if kind.endswith("ImageClassifier"):
        ours = models.ImageClassifier(backbone, pooling=IMAGE_POOLING[model.pooling], **options)
    else:
        pooling = None if between is None else "first"
        ours = models.TextClassifier(backbone, pooling=pooling, tokenizer=tokenizer, **options)
    for mine, theirs in layers.items():
        target, source = resolve(ours, mine), resolve(model, theirs)
        target.set_weights(source.get_weights())
    return ours
