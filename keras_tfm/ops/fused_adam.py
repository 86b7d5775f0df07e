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
    if not hasattr(_TorchStep.__call__, "_torchdynamo_disable"):
        # The kernel takes none of the stand-ins that `torch.compile` traces with: a compiled step leaves off before it.
        _TorchStep.__call__ = torch.compiler.disable(_TorchStep.__call__)  # type: ignore[method-assign]
    optimizer._parallel_update_step = _TorchStep(optimizer)
    return True


class _Step:
    """A rule in place of the optimizer's; copied and pickled along with it."""

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer


class _TensorFlowStep(_Step):
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


class _TorchStep(_Step):
    def __call__(self, gradients, variables, learning_rate):
        import torch

        adam = self.optimizer
        step = int(adam.iterations) + 1
        indices = [adam._get_variable_index(variable) for variable in variables]
        weights = [variable.value for variable in variables]
        momentums, velocities = ([state[i].value for i in indices] for state in (adam._momentums, adam._velocities))
        steps = [torch.tensor(float(step), device=weight.device) for weight in weights]
        torch._fused_adam_(
            weights,
            [gradient.to(weight.dtype).contiguous() for gradient, weight in zip(gradients, weights, strict=True)],
            momentums,
            velocities,
            [],
            steps,
            amsgrad=False,
            lr=float(learning_rate),
            beta1=adam.beta_1,
            beta2=adam.beta_2,
            weight_decay=0.0,  # Keras has applied it already
            # torch divides the velocity's root by its bias correction before epsilon is added, Keras after.
            eps=adam.epsilon / (1.0 - adam.beta_2**step) ** 0.5,
            maximize=False,
        )
