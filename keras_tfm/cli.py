"""keras-tfm: checkpoints from the command line.

keras-tfm inspect SRC          what it is, how large, what of it would load; no weight is read
keras-tfm convert SRC DST      a Hugging Face directory or hub id, or a .keras file, into either format
keras-tfm generate SRC PROMPT  write on from a prompt, with --stream as it comes
keras-tfm chat SRC             talk with a chat model
keras-tfm plan CONFIG          memory, collectives and time of training on many devices
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_tfm import console
from keras_tfm.planning import command as planner

# What else a directory may hold that a conversion passes on.
BESIDE = (
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
)
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
# Names of files in formats that are not written here; a directory of such a name would only mislead.
OTHER_FORMATS = (".h5", ".hdf5", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".onnx", ".tflite", ".gguf")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; errors in the input end it with one line and status 2."""
    parser = argparse.ArgumentParser(
        prog="keras-tfm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect_ = commands.add_parser("inspect", help="what a checkpoint is, and what of it would load")
    inspect_.add_argument("source", metavar="SRC", help="a Hugging Face directory or hub id, or a .keras file")
    inspect_.add_argument(
        "--task", help="as which class a directory is to load, such as TextClassifier (default: its own)"
    )
    inspect_.add_argument("--json", action="store_true", help="print JSON")
    convert_ = commands.add_parser("convert", help="from one format to another")
    convert_.add_argument("source", metavar="SRC", help="a Hugging Face directory or hub id, or a .keras file")
    convert_.add_argument("target", metavar="DST", help="a directory to write, or a .keras file")
    convert_.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: as it is stored")
    convert_.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a directory's files (5GB)")
    for command in (inspect_, convert_):
        command.add_argument("--revision", help="branch, tag or commit of a hub id")
    console.add_commands(commands)
    planner.add_command(commands)
    args = parser.parse_args(arguments)
    runs = {"inspect": _inspect, "convert": _convert, "generate": console.run_generate, "chat": console.run_chat}
    runs["plan"] = planner.run
    try:
        runs[args.command](args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)  # as shells say it: 128 and the signal's number
    except BrokenPipeError:  # whoever reads has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        print(f"keras-tfm: {error}", file=sys.stderr)
        sys.exit(2)


def _inspect(args: argparse.Namespace) -> None:
    facts = inspect(args.source, args.task, args.revision)
    if args.json:
        print(json.dumps(facts, indent=2))
        return
    print(f"{args.source}\n")
    others = f" (the family has {', '.join(facts['classes'])})" if facts["classes"] != [facts["class"]] else ""
    print(f"family      {facts['family'] or 'the first that can express it'}")
    print(f"loads as    {facts['class']}{others}")
    print(f"parameters  {facts['parameters']:,}")
    print("memory      " + ", ".join(f"{size / 2**20:,.1f} MiB as {name}" for name, size in facts["memory"].items()))
    print(
        f"stored      {facts['tensors']} tensors in {facts['files']} file(s), {facts['stored'] or 'of several dtypes'}"
    )
    print(f"tokenizer   {'yes' if facts['tokenizer'] else 'none (no tokenizer.json): takes token ids only'}")
    for title, names in (
        ("starts untrained", facts["new"]),
        ("not loaded", facts["unused"]),
        ("unknown in config.json", facts["unknown"]),
    ):
        if names:
            print(f"\n{title} ({len(names)}):\n  " + "\n  ".join(names[:20]) + ("\n  …" if len(names) > 20 else ""))
    print("\nsizes and options:")
    for name, value in facts["config"].items():
        print(f"  {name:<28}{json.dumps(value)}")


def inspect(source: str | Path, task: str | None = None, revision: str | None = None) -> dict[str, Any]:
    """Facts about a checkpoint, from its config.json and the headers of its files alone.

    Args:
        source: A Hugging Face directory or hub id, or a .keras file.
        task: Our class to load it as. Default: that of the head it has.
        revision: Of a hub id.

    Raises:
        FileNotFoundError, ValueError: as `Backbone.from_pretrained`.
    """
    from keras_tfm import models
    from keras_tfm.checkpoints import hugging_face
    from keras_tfm.checkpoints.checkpoint import Checkpoint

    if str(source).endswith(".keras"):
        return _facts_of_file(source, task, revision)
    checkpoint = Checkpoint(source, revision)
    heads = checkpoint.architecture.heads
    embeds = ["TextEmbedder"] if checkpoint.config.kind != "encoder_decoder" else []
    names = sorted(["Backbone", *heads, *embeds])
    if task is not None and task not in names:
        raise ValueError(f"{checkpoint.architecture.model_type!r} loads as {names}; got {task!r}.")
    cls = hugging_face.task_of(checkpoint) if task is None else getattr(models, task)
    plan = checkpoint.plan(cls)
    return {
        "family": checkpoint.architecture.model_type,
        "class": cls.__name__,
        "classes": names,
        "parameters": plan.parameters,
        "memory": {name: plan.parameters * size for name, size in DTYPES.items()},
        "tensors": len(checkpoint.entries),
        "files": len({entry.path for entry in checkpoint.entries.values()}),
        "stored": checkpoint.dtype(),
        "tokenizer": (checkpoint.directory / "tokenizer.json").is_file(),
        "new": plan.match.new,
        "unused": plan.match.unused,
        "unknown": checkpoint.unknown,
        "config": _changed(checkpoint.config),
    }


def _changed(config: Any) -> dict[str, Any]:
    """Fields of a `TransformerConfig` that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in config.to_dict().items() if value != defaults[name]}


def _facts_of_file(source: str | Path, task: str | None, revision: str | None) -> dict[str, Any]:
    """The same facts about a .keras file, from the config in it."""
    import keras

    from keras_tfm.ops.backend import without_allocating

    if task is not None or revision is not None:
        raise ValueError(
            f"{source} is a .keras file: it loads as what it holds, and has no task or revision to choose."
        )
    try:
        with zipfile.ZipFile(source) as file:
            config = json.loads(file.read("config.json"))
        config.pop("compile_config", None)
        with without_allocating():
            model = keras.saving.deserialize_keras_object(config)
    except (zipfile.BadZipFile, KeyError, TypeError) as error:
        raise ValueError(f"{source} is not readable as a .keras file: {error}") from error
    _check_ours(source, model)
    backbone = getattr(model, "backbone", model)
    parameters = sum(math.prod(variable.shape) for variable in model.weights)
    dtypes = {keras.backend.standardize_dtype(variable.dtype) for variable in model.weights}
    return {
        "family": backbone.config.family,
        "class": type(model).__name__,
        "classes": [type(model).__name__],
        "parameters": parameters,
        "memory": {name: parameters * size for name, size in DTYPES.items()},
        "tensors": len(model.weights),
        "files": 1,
        "stored": dtypes.pop() if len(dtypes) == 1 else None,
        "tokenizer": getattr(model, "tokenizer", None) is not None,
        "new": [],
        "unused": [],
        "unknown": [],
        "config": _changed(backbone.config),
    }


def _check_ours(source: str | Path, model: Any) -> None:
    if not hasattr(model, "save_pretrained"):
        raise ValueError(f"{source} holds a {type(model).__name__}, which is no model of keras_tfm.")


def _convert(args: argparse.Namespace) -> None:
    convert(args.source, args.target, args.dtype, args.max_shard_size, args.revision)
    print(f"{args.target} is written.")


def convert(
    source: str | Path,
    target: str | Path,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    revision: str | None = None,
) -> None:
    """From a Hugging Face directory, hub id or .keras file to a directory or .keras file.

    Args:
        source, target: Where from and to; a target that ends in ".keras" is such a file, any other a directory.
        dtype: Of the weights. Default: as they are stored.
        max_shard_size: Of a directory's files.
        revision: Of a hub id.

    Raises:
        ValueError: for a target that exists and is no such file or directory, or has the name of another format's file;
            and as `from_pretrained`.
    """
    import keras

    from keras_tfm.checkpoints import hugging_face
    from keras_tfm.checkpoints.checkpoint import Checkpoint

    source, target = str(source), Path(target)
    to_file = target.suffix == ".keras"
    if target.exists() and target.is_dir() == to_file:
        raise ValueError(f"{target} exists and is {'a directory' if to_file else 'a file'}; it is left alone.")
    if target.suffix.lower() in OTHER_FORMATS and not target.is_dir():
        raise ValueError(
            f"{target} looks like a file in a format that is not written here. Name a directory, which gets "
            "model.safetensors, config.json and tokenizer.json, or a .keras file."
        )
    directory = None
    if source.endswith(".keras"):
        model = keras.saving.load_model(source)
        _check_ours(source, model)
        model = model if dtype is None else _cast(model, dtype)
    else:
        checkpoint = Checkpoint(source, revision)
        directory = checkpoint.directory
        dtype = dtype or checkpoint.dtype() or "float32"
        model = hugging_face.read(hugging_face.task_of(checkpoint), directory, dtype=dtype)
    if to_file:
        target.parent.mkdir(parents=True, exist_ok=True)
        model.save(target)
        return
    model.save_pretrained(target, max_shard_size=max_shard_size)
    if directory is not None:
        for name in BESIDE:
            if (directory / name).is_file():
                shutil.copy2(directory / name, target / name)


def _cast(model: Any, dtype: str) -> Any:
    """The same model with weights of another dtype.

    Raises:
        ValueError: for a quantized one, whose weights are codes.
    """
    import keras

    if any(layer.quantization_mode is not None for layer in model._flatten_layers()):
        raise ValueError(f"{model.name} is quantized; dtype={dtype!r} needs the model as it was before.")
    config = {**model.get_config(), "dtype": dtype}
    if "backbone" in config:
        config["backbone"] = keras.saving.serialize_keras_object(_cast(model.backbone, dtype))
    again = type(model).from_config(config)
    for variable, new in zip(model.weights, again.weights, strict=True):
        new.assign(keras.ops.cast(variable, new.dtype))
    return again


if __name__ == "__main__":
    main()
