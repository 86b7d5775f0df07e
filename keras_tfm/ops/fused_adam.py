"""One Adam step in one pass over memory, by the backend's own fused kernel.

Keras writes Adam as some ten element-wise operations. XLA fuses them; TensorFlow without XLA and torch run them one after
another, each over all weights, which costs a tenth of a small model's step on a CPU. `accelerate` gives a Keras optimizer
the backend's kernel for the same update: same state, same numbers to rounding, same config and files.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.ops.backend import NAME


def accelerate(optimizer: Any) -> bool:
    """Let this `keras.optimizers.Adam` or `AdamW` update weights by the backend's fused kernel, where that is the same.

    Other optimizers, subclasses, `amsgrad`, JAX, and `tf.distribute` strategies are left as they are.

    Returns:
        Whether the optimizer was changed.
    """
    if NAME == "jax" or not isinstance(optimizer, keras.optimizers.Adam) or optimizer.amsgrad:
        return False
    if type(optimizer).update_step is not keras.optimizers.Adam.update_step:  # somebody's own rule
        return False
    if NAME == "tensorflow":
        import tensorflow as tf

        if tf.distribute.has_strategy():
            return False
        optimizer.update_step = _TensorFlowStep(optimizer)
        return True
    import torch

    plain = type(optimizer).__module__.startswith("keras.")
    if not plain or not hasattr(torch, "_fused_adam_"):
        return False
    from keras_tfm.ops.fused_adam_torch import TorchStep

    optimizer._parallel_update_step = TorchStep(optimizer)
    return True


class _TensorFlowStep:
    """A rule in place of the optimizer's; copied and pickled along with it."""

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer

    def __call__(self, gradient, variable, learning_rate):
        import tensorflow as tf

        adam = self.optimizer
        index = adam._get_variable_index(variable)
        dtype = variable.dtype
        step = keras.ops.cast(adam.iterations + 1, dtype)  # counts updates where gradients are accumulated
        momentum, velocity = adam._momentums[index].value, adam._velocities[index].value
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=momentum.handle,
            v=velocity.handle,
            beta1_power=tf.pow(tf.cast(adam.beta_1, dtype), step),
            beta2_power=tf.pow(tf.cast(adam.beta_2, dtype), step),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(adam.beta_1, dtype),
            beta2=tf.cast(adam.beta_2, dtype),
            epsilon=tf.cast(adam.epsilon, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )
