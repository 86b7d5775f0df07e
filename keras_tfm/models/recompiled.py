"""Models that are compiled again as they were, when they are loaded."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.ops import weight_decay

KEY = "no_weight_decay"


class Recompiled:
    """For a `keras.Model` with a `compile` of its own: its config goes through files, and what Keras forgets of it too.

    A mixin that is no model, for Keras changes the bases of those that are.
    """

    def get_compile_config(self: Any) -> dict[str, Any]:
        config = keras.Model.get_compile_config(self)
        said = weight_decay.excluded(self.optimizer, self.trainable_variables) if config else None
        return config if said is None else {**config, KEY: said}

    def compile_from_config(self: Any, config: dict[str, Any]) -> None:
        said = config.get(KEY)
        options = {name: value for name, value in config.items() if name != KEY}
        self.compile(**keras.saving.deserialize_keras_object(options))
        weight_decay.exclude(self.optimizer, self.trainable_variables, said)
        self.optimizer.build(self.trainable_variables)
