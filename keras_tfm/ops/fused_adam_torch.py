"""torch's fused Adam in place of Keras's; imported where torch is the backend."""

from __future__ import annotations

from typing import Any

import torch


class TorchStep:
    """A rule in place of the optimizer's, for all its variables at once; copied and pickled along with it."""

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer

    # The kernel takes none of the stand-ins that `torch.compile` traces with: a compiled step leaves off before it.
    @torch.compiler.disable
    def __call__(self, gradients, variables, learning_rate):
        """As `keras.optimizers.Optimizer._backend_update_step`, within torch."""
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
