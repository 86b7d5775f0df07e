"""Low-rank updates as files that `peft` reads and writes: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tfm.architectures.architecture import Architecture
from keras_tfm.checkpoints import tensors
from keras_tfm.checkpoints.hugging_face import architecture_of
from keras_tfm.checkpoints.matching import pairs, some
from keras_tfm.checkpoints.writing import by_first
from keras_tfm.ops import processes
from keras_tfm.training.adapter_files import WEIGHTS, read_config, write
from keras_tfm.training.lora import adapted, adapter_names, add_adapters, check_name
from keras_tfm.training.low_rank import Adapter
from keras_tfm.training.parts import check_model
from keras_tfm.training.peft_modules import Module, modules
from keras_tfm.training.products import column_norms

ROOT = "base_model.model."
TASKS = {
    "TextClassifier": "SEQ_CLS",
    "TokenClassifier": "TOKEN_CLS",
    "QuestionAnswerer": "QUESTION_ANS",
    "CausalLM": "CAUSAL_LM",
    "Seq2SeqLM": "SEQ_2_SEQ_LM",
}


def save_adapter(
    model: keras.Model, directory: str | Path, name: str | None = None, *, base: str | None = None
) -> None:
    """Write an update, and the task's head if that is trained, as `peft.PeftModel.from_pretrained` reads it.

    Families that fuse projections, such as GPT-2's query, key and value, have one pair of matrices for them: it gets the
    ranks of all of them together, and computes the same.

    Args:
        model: With LoRA, of a family that `save_pretrained` can write.
        directory: Made if need be. Other files in it stay.
        name: Of the update. Default: the one in use.
        base: What the file says of the model that it is for, a directory or hub id ("base_model_name_or_path").

    Where hosts on JAX share the model, all of them call this, and the first writes.

    Raises:
        ValueError: for a model without that update, and for what the format has no word for: other trained parts of the
            backbone, a projection that is not one linear layer there.
    """
    layers = adapted(model)
    names = adapter_names(model)
    if not names:
        raise ValueError(f"{model.name!r} has no LoRA to save; add_lora makes one.")
    if name is None:
        name = next((layer._active for layer in layers.values() if layer._active), None)
        if name is None:
            raise ValueError(f"{model.name!r} uses no adapter now; name the one to save, of {names}.")
    if name not in names:
        raise ValueError(f"{model.name!r} has no adapter {name!r}; it has {names}.")
    architecture, prefix = _family(model)
    chosen = {path: layer._adapters[name] for path, layer in layers.items() if name in layer._adapters}
    known = list(modules(model, architecture))
    lost = sorted(set(chosen) - {path for module in known for path in module.paths})
    if lost:
        raise ValueError(
            f"{some(lost)} are no linear layers of their own in the format of {architecture.model_type!r}."
        )
    written: dict[str, np.ndarray] = {}
    heads = _trained_head(model, architecture)
    settings: dict[str, tuple[int, float]] = {}
    for module in known:
        if any(path in chosen for path in module.paths):
            full = module.name if module.in_head else prefix + module.name
            found = [chosen.get(path) for path in module.paths]
            written |= {f"{ROOT}{full}.{part}": value for part, value in _join(module, found).items()}
            settings[full] = _setting(written[f"{ROOT}{full}.lora_A.weight"].shape[0], found)
    first = next(iter(chosen.values()))
    config = {
        "peft_type": "LORA",
        "task_type": TASKS.get(type(model).__name__),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": any(module.transposed for module in known),
        "init_lora_weights": True,
        "lora_dropout": first.dropout,
        "use_rslora": first.rank_stabilized,
        "use_dora": first.magnitude is not None,
        "target_modules": _targets(settings, known, prefix),
        "modules_to_save": sorted({key.rpartition(".")[0] for key in heads}) or None,
        **_patterns(settings),
    }
    written |= {ROOT + key: value for key, value in heads.items()}
    by_first(model.weights, iter(()), lambda: write(Path(directory), config, written))


def load_adapter(model: keras.Model, directory: str | Path, name: str = "default") -> list[str]:
    """Read an update that `peft` or `save_adapter` wrote, and use it; the backbone is frozen. Compile afterwards.

    A head in the file takes the place of the model's. A model has one head, which `set_adapter` does not change.

    Args:
        model: Of the family that the update is for.
        directory: With adapter_config.json and adapter_model.safetensors.
        name: To give the update.

    Returns:
        The paths of the layers with the update.

    Raises:
        FileNotFoundError: for a directory without these files.
        ValueError: for another kind of update than LoRA, rsLoRA and DoRA of linear layers; for tensors that the model
            has no place for, or of other shapes. The model is then as it was.
    """
    check_name(model, name)
    directory = Path(directory)
    config = read_config(directory)
    architecture, prefix = _family(model)
    reader = tensors.Reader(tensors.index(directory / WEIGHTS))
    left = dict.fromkeys(reader.entries)
    found: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {}
    for module in modules(model, architecture):
        starts = [""] if module.in_head else dict.fromkeys([prefix, "", architecture.prefix])
        spelled = [f"{ROOT}{start}{module.name}" for start in starts]
        full = next((key for key in spelled if f"{key}.lora_A.weight" in left), None)
        if full is not None:
            parts = {key.removeprefix(f"{full}."): key for key in list(left) if key.startswith(f"{full}.lora_")}
            arrays = {part: np.asarray(reader[key], np.float32) for part, key in parts.items()}
            for key in parts.values():
                del left[key]
            found |= _split(module, full.removeprefix(ROOT), arrays, config)
    in_head = [pair for pair in pairs(model, architecture) if pair.in_head]
    heads = [(pair, ROOT + pair.theirs) for pair in in_head if ROOT + pair.theirs in left]
    for pair, key in heads:
        del left[key]
        if reader.entries[key].shape != pair.shape():
            raise ValueError(
                f"{directory} has {key} of shape {reader.entries[key].shape}; the model's is {pair.shape()}."
            )
    if left:
        raise ValueError(f"{directory} has tensors that {model.name!r} has no place for: {some(sorted(left))}.")
    if not found:
        raise ValueError(f"{directory} has no LoRA.")
    add_adapters(model, name, {path: options for path, (options, _) in found.items()})
    for path, layer in adapted(model).items():
        for part, value in found.get(path, ({}, {}))[1].items():
            getattr(layer._adapters[name], part).assign(value)
    for pair, key in heads:
        pair.read(np.asarray(reader[key]))
    return list(found)


def _family(model: Any) -> tuple[Architecture, str]:
    """The model's family, and what precedes the backbone's names in a file of this task."""
    architecture, _ = architecture_of(check_model(model))
    return architecture, architecture.prefix_with(architecture.heads.get(type(model).__name__))


def _join(module: Module, found: list[Adapter | None]) -> dict[str, np.ndarray]:
    """Tensors of a module by what follows its name."""
    scale = next(adapter.scale for adapter in found if adapter is not None)
    parts: list[tuple[np.ndarray, np.ndarray] | None] = []
    for adapter in found:
        if adapter is None:
            parts.append(None)
            continue
        a, b = map(processes.whole, (adapter.a, adapter.b))
        parts.append((a, b * np.float32(adapter.scale / scale)))
    a, b = module.join(parts)
    arrays = {"lora_A.weight": a, "lora_B.weight": b}
    if any(adapter is not None and adapter.magnitude is not None for adapter in found):
        magnitude = np.empty(module.outputs, np.float32)
        for adapter, layer, rows in zip(found, module.layers, module.rows, strict=True):
            value = column_norms(layer) if adapter is None else adapter.magnitude
            magnitude[rows] = processes.whole(value)
        arrays["lora_magnitude_vector"] = magnitude
    return arrays


def _setting(rank: int, found: list[Adapter | None]) -> tuple[int, float]:
    """The rank of a module's pair, and the alpha that gives it the updates' scale."""
    first = next(adapter for adapter in found if adapter is not None)
    alpha = first.scale * (math.sqrt(rank) if first.rank_stabilized else rank)
    return rank, round(alpha, 6) if math.isclose(alpha, round(alpha, 6), rel_tol=1e-12) else alpha


def _patterns(settings: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """The usual rank and alpha, and those of the modules that differ."""
    values = list(settings.values())
    rank, alpha = max(set(values), key=values.count)
    differing = {re.escape(name): value for name, value in settings.items() if value != (rank, alpha)}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value[0] for name, value in differing.items()},
        "alpha_pattern": {name: value[1] for name, value in differing.items()},
    }


def _targets(settings: dict[str, Any], known: list[Module], prefix: str) -> list[str]:
    """The last names of the modules where these name no others; else their whole names."""
    last = {name.rpartition(".")[2] for name in settings}
    meant = {m.name if m.in_head else prefix + m.name for m in known if m.name.rpartition(".")[2] in last}
    return sorted(last) if meant == set(settings) else list(settings)


def _trained_head(model: Any, architecture: Architecture) -> dict[str, np.ndarray]:
    """Tensors of the head, if that is trained, by name.

    Raises:
        ValueError: for other trained weights, and for those that belong to no module of theirs.
    """
    written: dict[str, np.ndarray] = {}
    placed: set[int] = set()
    for pair in pairs(model, architecture):
        if pair.in_head and any(variable.trainable for variable in pair.whole()):
            placed |= {id(variable) for variable in pair.whole()}
            written[pair.theirs] = np.asarray(pair.write(), np.float32)
    updates = {
        id(v) for layer in adapted(model).values() for a in layer._adapters.values() for v in a.variables.values()
    }
    lost = [v.path for v in model.trainable_variables if id(v) not in placed | updates]
    lost += [key for key in written if key.rpartition(".")[2] not in ("weight", "bias") or "predictions" in key]
    if lost:
        raise ValueError(
            f"{some(lost)} are trained, and an adapter's file has no place for them: freeze them, or use save_pretrained."
        )
    return written


def _split(
    module: Module, full: str, arrays: dict[str, np.ndarray], config: dict[str, Any]
) -> dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]]:
    """The options and values of our projections' updates, by path."""
    a, b = arrays.pop("lora_A.weight"), arrays.pop("lora_B.weight", None)
    magnitude = arrays.pop("lora_magnitude_vector", None)
    dora = bool(config.get("use_dora"))
    if arrays or b is None or (magnitude is None) == dora:
        raise ValueError(
            f"{full} has {sorted(arrays) or 'too few tensors'}; lora_A, lora_B and DoRA's magnitude are read."
        )
    expected = (a.shape[0], len(module.inputs)), (module.outputs, a.shape[0])
    if (a.shape, b.shape) != expected or (magnitude is not None and magnitude.shape != (module.outputs,)):
        raise ValueError(f"{full} has lora_A {a.shape} and lora_B {b.shape}; the model implies {expected}.")
    alphas = config.get("alpha_pattern") or {}
    pattern = next((key for key in alphas if re.match(rf"(.*\.)?({key})$", full)), None)
    options = {
        "rank": a.shape[0],
        "alpha": float(config.get("lora_alpha", 8) if pattern is None else alphas[pattern]),
        "rank_stabilized": bool(config.get("use_rslora")),
        "dropout": float(config.get("lora_dropout") or 0.0),
        "dora": dora,
    }
    found = {}
    for path, rows, (ours_a, ours_b) in zip(module.paths, module.rows, module.split(a, b), strict=True):
        values = {"a": ours_a, "b": ours_b}
        if magnitude is not None:
            values["magnitude"] = magnitude[rows]
        found[path] = options, values
    return found
