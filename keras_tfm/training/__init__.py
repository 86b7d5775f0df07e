"""Training beyond `fit`: schedules, freezing, rates by layer, low-rank adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_tfm.training import saved as _saved  # noqa: F401 - lets models keep all this in files
from keras_tfm.training.distillation import Distiller
from keras_tfm.training.freezing import freeze, unfreeze
from keras_tfm.training.gradual import GradualUnfreezing
from keras_tfm.training.lora import add_lora, merge_lora, set_adapter
from keras_tfm.training.metrics import F1, ExactMatch, Perplexity
from keras_tfm.training.published import AnswerScores, EntityScores, TranslationScores
from keras_tfm.training.rates import layer_rates
from keras_tfm.training.resuming.callback import Resume
from keras_tfm.training.schedules import WarmupSchedule, noam
from keras_tfm.training.seeing.diagnosis import diagnose
from keras_tfm.training.seeing.tensorboard import TensorBoard

if TYPE_CHECKING:
    from keras_tfm.training.adapters import load_adapter, save_adapter

__all__ = [
    "F1",
    "AnswerScores",
    "Distiller",
    "EntityScores",
    "ExactMatch",
    "GradualUnfreezing",
    "Perplexity",
    "Resume",
    "TensorBoard",
    "TranslationScores",
    "WarmupSchedule",
    "add_lora",
    "diagnose",
    "freeze",
    "layer_rates",
    "load_adapter",
    "merge_lora",
    "noam",
    "save_adapter",
    "set_adapter",
    "unfreeze",
]


def __getattr__(name: str) -> Any:
    # They need every family's tables, which take as long to import as all the rest.
    if name in ("load_adapter", "save_adapter"):
        from keras_tfm.training import adapters

        return getattr(adapters, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
