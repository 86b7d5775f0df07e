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
        """Build this model from a Hugging Face directory: config.json, safetensors (sharded or not), tokenizer.json.

        Args:
            source: The directory, or an id on the Hugging Face hub, with the extra `hub`.
            options: `dtype`, of the weights, which are cast on the way; `revision` of a hub id; `tokenizer`, or None for
                none; `num_classes` or other arguments of the head, which starts untrained where the checkpoint has none;
                and fields of `TransformerConfig` to change, such as dropout=0.0.

        Raises:
            FileNotFoundError: for a missing directory or file, or an id that cannot be had.
            ValueError: for a checkpoint that is truncated, lacks tensors, disagrees with its config, asks for what is
                not implemented, or would not fit in memory; nothing is allocated before that is checked.

        One log line (logger "keras_tfm") tells which weights were new, and one which were not used.
        """
        assert Pretrained.read_checkpoint is not None, "keras_tfm.checkpoints has not been imported"
        return Pretrained.read_checkpoint(cls, source, **options)

    def save_pretrained(self, directory: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write this model as a Hugging Face directory, its tokenizer included, which `transformers` loads.

        A model that came from such a directory, or from a builder of the same family, can be written. The directory
        appears whole: a save that is interrupted leaves the old one as it was. The user's other files in it stay.
        Where hosts on JAX share the model, the first writes; all of them call this if its weights are split over them.

        Args:
            directory: To write; made if need be.
            max_shard_size: In bytes, or such as "500MB": weights above it are written as several files with an index.

        Raises:
            ValueError: for options that the family's format cannot express.
            RuntimeError: in the other hosts, if the first could not write.
        """
        assert Pretrained.write_checkpoint is not None, "keras_tfm.checkpoints has not been imported"
        Pretrained.write_checkpoint(self, directory, max_shard_size=max_shard_size)
