"""The parts of a model by names that sort in the order in which they are computed."""

from __future__ import annotations

from typing import Any

from keras_tfm.training.parts import EMBEDDINGS, check_model

_BRANCHES = ("attention", "cross_attention", "feed_forward")


def numbered(prefix: str, index: int, count: int) -> str:
    """The name of one of `count` blocks: "blocks.07" of twelve, so that the tenth does not come before the second."""
    return f"{prefix}.{index:0{len(str(count - 1))}d}"


def blocks(model: Any) -> dict[str, Any]:
    """The blocks of a model by name, the encoder's before the decoder's; shared ones by each of their names."""
    backbone = check_model(model)
    found: dict[str, Any] = {}
    for prefix in ("blocks", "decoder_blocks"):
        layers = getattr(backbone, prefix, None) or []
        found |= {numbered(prefix, index, len(layers)): block for index, block in enumerate(layers)}
    return found


def named_parts(model: Any) -> dict[str, Any]:
    """Embeddings, the branches of each block and each block, what follows them, the head; by name."""
    backbone = check_model(model)
    found: dict[str, Any] = {}
    for decoder in (False, True):
        prefix = "decoder_" if decoder else ""
        for name in EMBEDDINGS:
            if name.startswith("decoder_") == decoder:
                found[name] = getattr(backbone, name, None)
        for name, block in blocks(model).items():
            if name.startswith("decoder_") == decoder:
                found |= {f"{name}.{branch}": getattr(block, branch, None) for branch in _BRANCHES}
                found[name] = block
        for name in ("final_norm", "pooler"):
            found[f"{prefix}{name}"] = getattr(backbone, f"{prefix}{name}", None)
    found["head"] = getattr(model, "head", None)
    return {name: layer for name, layer in found.items() if layer is not None}


def attention_layers(model: Any) -> dict[str, Any]:
    """Every attention layer by its name, as in `named_parts`."""
    return {name: layer for name, layer in named_parts(model).items() if name.endswith("attention")}


def layer_groups(model: Any) -> dict[str, list[Any]]:
    """A model's variables by the part they belong to, each variable once; a branch has the norms around it.

    "other" has what is in none of the named parts.
    """
    left = {id(variable): variable for variable in model.weights}
    found: dict[str, list[Any]] = {}

    def take(name: str, layer: Any) -> None:
        mine = [variable for variable in getattr(layer, "weights", ()) if left.pop(id(variable), None) is not None]
        if mine:
            found.setdefault(name, []).extend(mine)

    inner = blocks(model)
    for name, layer in named_parts(model).items():
        if name in inner:  # what is in no branch, such as a layer of the user's own
            take(name, layer)
            continue
        owner, _, branch = name.rpartition(".")
        if owner in inner:
            take(name, getattr(inner[owner], f"{branch}_residual", None))
        take(name, layer)
    if left:
        found["other"] = list(left.values())
    return found
