"""Gradients accumulated over several batches as those of one large batch, whatever their numbers of tokens.

Keras averages the gradients of the batches. Each is that of a mean over its own tokens, so that a token of a short batch
counts for more than one of a long batch, and a training with accumulation differs from one without. Weighed by its tokens,
each batch counts as it would within the large one.
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
from keras import ops

from keras_tfm.ops import replicas


def weigh_by_tokens(optimizer: Any) -> bool:
    """Let this `keras.optimizers.Optimizer` weigh the batches that it accumulates by what `of` says of each.

    Its updates, then, are those of the mean over all tokens of `gradient_accumulation_steps` batches; clipping and decay
    follow that. One more variable counts the tokens.

    Returns:
        Whether it does now: it does not if it does not accumulate, or is a wrapper such as Keras's
        `LossScaleOptimizer`.
    """
    steps = getattr(optimizer, "gradient_accumulation_steps", None)
    if not steps or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return False
    if getattr(optimizer, "token_weights", None) is None:
        optimizer.token_weights = _TokenWeights(optimizer)
    return True


@contextlib.contextmanager
def of(optimizer: Any, tokens: Any):
    """Within: a step on a batch that counts for so many tokens, a scalar, and those of the processes that share it."""
    weights = optimizer.token_weights
    weights.now = replicas.summed(ops.cast(tokens, "float32"))
    try:
        yield
    finally:
        weights.now = None


class _TokenWeights:
    """The optimizer's methods with weights. Its copies, which Keras makes by its config, are without."""

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.now: Any = None  # tokens of the batch of this step
        self.build, self.apply_, self.clip = optimizer.build, optimizer.apply, optimizer._clip_gradients
        optimizer.build, optimizer.apply = self.build_with_count, self.apply
        optimizer.scale_loss, optimizer._clip_gradients = self.scale_loss, self.clip_gradients
        if optimizer.built:
            self._add_count()

    def _add_count(self) -> None:
        optimizer = self.optimizer
        count = keras.Variable(0.0, dtype="float32", trainable=False, name="accumulated_tokens")
        optimizer._track_variable(count)
        self.count = count

    def build_with_count(self, variables: Any) -> None:
        first = not self.optimizer.built
        self.build(variables)
        if first:
            self._add_count()

    def scale_loss(self, loss: Any) -> Any:
        """The sum over tokens rather than their mean."""
        return loss if self.now is None else loss * ops.cast(self.now, loss.dtype)

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        optimizer = self.optimizer
        if trainable_variables is not None and not optimizer.built:
            optimizer.build(list(trainable_variables))
        if self.now is not None:
            begins = ops.equal(optimizer._iterations % optimizer.gradient_accumulation_steps, 0)
            self.count.assign(ops.where(begins, 0.0, ops.convert_to_tensor(self.count)) + self.now)
        self.apply_(grads, trainable_variables)

    def clip_gradients(self, grads: list) -> list:
        """The accumulated sums over tokens, which come divided by the number of batches, as means over tokens."""
        if self.now is not None:
            count = ops.convert_to_tensor(self.count)
            tokens = ops.where(count == 0, 1.0, count)
            factor = self.optimizer.gradient_accumulation_steps / tokens
            grads = [grad * ops.cast(factor, grad.dtype) for grad in grads]
        return self.clip(grads)
