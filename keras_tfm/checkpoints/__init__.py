"""Published checkpoints, read and written. Importing this gives models their `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_tfm.models.pretrained import Pretrained


def _read(cls: type, source: str | Path, **options: Any) -> Any:
    from keras_tfm.checkpoints import hugging_face

    return hugging_face.read(cls, source, **options)


def _write(model: Any, directory: str | Path, **options: Any) -> None:
    from keras_tfm.checkpoints import hugging_face

    hugging_face.write(model, directory, **options)


def from_pretrained(source: str | Path, **options: Any) -> Any:
    """Read a checkpoint as what it is: the task whose head it has, or the bare `Backbone`.

    Args:
        source: A Hugging Face directory or hub id.
        options: As of `Backbone.from_pretrained` and its like.

    Example:
        >>> model = keras_tfm.from_pretrained("path/to/a/llama")  # a CausalLM
    """
    from keras_tfm.checkpoints import hugging_face

    return hugging_face.read_any(source, **options)


def from_keras_hub(model: Any, **options: Any) -> Any:
    """A KerasHub (keras-nlp) backbone or task as ours: see `keras_tfm.checkpoints.keras_hub.from_keras_hub`."""
    from keras_tfm.checkpoints import keras_hub

    return keras_hub.from_keras_hub(model, **options)


Pretrained.read_checkpoint = staticmethod(_read)
Pretrained.write_checkpoint = staticmethod(_write)
