"""What a training does to a model: measured, put into charts, and judged."""

from __future__ import annotations

from keras_tfm.training.seeing.diagnosis import Diagnosis, diagnose
from keras_tfm.training.seeing.probing import Probe
from keras_tfm.training.seeing.symptoms_of_batches import Finding
from keras_tfm.training.seeing.tensorboard import TensorBoard
from keras_tfm.training.seeing.throughput import training_flops

__all__ = ["Diagnosis", "Finding", "Probe", "TensorBoard", "diagnose", "training_flops"]
