"""`from_pretrained` and `save_pretrained`, whatever the format.

Models know of no file format: `keras_tfm.checkpoints` brings one by filling in the two functions here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar


class Pretrained:
    """Mixin of backbones and tasks that are read from and written to checkpoint directories."""

    read_checkpoint: ClassVar[Callable[..., Any] | None] = None
    write_checkpoint: ClassVar[Callable[..., None] | None] = None

    @classmethod
    def from_pretrained(cls, source: str | Path, **options: Any):
        """Build this model from a Hugging Face directory: config.json, model.safetensors, tokenizer.json.

        Args:
            source: The directory.
            options: `dtype`; `num_classes` or other arguments of the head, which starts untrained where the checkpoint
                has none; and fields of `TransformerConfig` to change, such as dropout=0.0.

        Raises:
            FileNotFoundError: for a missing directory or file.
            ValueError: for a checkpoint that is truncated, lacks tensors, or disagrees with its config; nothing is
                built before that is checked.
        """
        assert Pretrained.read_checkpoint is not None, "keras_tfm.checkpoints has not been imported"
        return Pretrained.read_checkpoint(cls, source, **options)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write this model as a Hugging Face directory, its tokenizer included, which `transformers` loads.

        A model that came from such a directory, or from a builder of the same family, can be written. The directory
        appears whole: a save that is interrupted leaves the old one as it was.

        Raises:
            ValueError: for options that the family's format cannot express.
        """
        assert Pretrained.write_checkpoint is not None, "keras_tfm.checkpoints has not been imported"
        Pretrained.write_checkpoint(self, directory)
