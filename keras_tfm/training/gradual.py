"""Gradual unfreezing."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.layers.base import check_positive
from keras_tfm.training.rates import LayerRates


class GradualUnfreezing(keras.callbacks.Callback):
    """Trains the head first, then one layer more at a time, from the last to the embeddings (Howard and Ruder 2018, 3.3).

    The model must be compiled with `layer_rates(model, decay, ...)`, a decay of 1 for equal rates: what is frozen has a
    rate of 0, which leaves its weights and the optimizer's state of them bit for bit as they were. Nothing is compiled
    anew on the way, so a step takes as long as one of the whole model. After `fit`, all layers have their rates again.

    Args:
        epochs: Of each stage. The embeddings join with the last.

    Raises:
        ValueError: when `fit` begins, for a model with another optimizer.

    Example:
        >>> classifier.compile(keras_tfm.training.layer_rates(classifier, 1 / 2.6))
        >>> classifier.fit(texts, labels, epochs=14, callbacks=[keras_tfm.training.GradualUnfreezing()])
    """

    def __init__(self, epochs: int = 1):
        super().__init__()
        check_positive(epochs=epochs)
        self.epochs = epochs

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the optimizer."""
        optimizer = self._optimizer()
        if not isinstance(optimizer, LayerRates):
            raise ValueError(
                "GradualUnfreezing needs a model compiled with keras_tfm.training.layer_rates(model, decay, ...); "
                f"this one has {type(optimizer).__name__}."
            )
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Set this epoch's rates."""
        groups = self._optimizer().rate_groups
        frozen = max(len(groups) - 1 - epoch // self.epochs, 0)
        self._optimizer().set_rate_factors([0.0] * frozen + [factor for factor, _ in groups[frozen:]])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Give all layers their rates."""
        self._optimizer().set_rate_factors([factor for factor, _ in self._optimizer().rate_groups])

    def _optimizer(self) -> Any:
        optimizer = self.model.optimizer
        return getattr(optimizer, "inner_optimizer", optimizer)  # of mixed_float16
