"""Published checkpoints, read and written. Importing this gives models their `from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from keras_tfm.models.pretrained import Pretrained


def _read(cls: type, source: str | Path, **options: Any) -> Any:
    from keras_tfm.checkpoints import hugging_face

    return hugging_face.read(cls, source, **options)


def _write(model: Any, directory: str | Path) -> None:
    from keras_tfm.checkpoints import hugging_face

    hugging_face.write(model, directory)


Pretrained.read_checkpoint = staticmethod(_read)
Pretrained.write_checkpoint = staticmethod(_write)
