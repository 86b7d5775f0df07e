"""Learning rates that warm up and decay."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import check_choice, check_positive, register

DECAYS = ("linear", "cosine", "inverse_sqrt", "wsd", "constant")
COOLDOWNS = ("linear", "cosine", "sqrt")


@register
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly from 0 to `peak`, then decays. All arithmetic is float32.

    Args:
        peak: The highest rate.
        warmup_steps: Updates until it is reached; 0 starts there.
        total_steps: Updates until the decay ends, the warmup included. For "linear", "cosine" and "wsd".
        decay: What follows the warmup. "linear"; "cosine", half a period (Loshchilov and Hutter 2017, equation 5);
            "inverse_sqrt", peak * sqrt(warmup_steps / step) (Vaswani et al. 2017, equation 3); "wsd", warmup, stable,
            decay: at `peak` until `decay_steps` before the end (Hu et al. 2024, MiniCPM, section 4.2); "constant".
        end: Rate at `total_steps` and from then on. For "linear", "cosine" and "wsd".
        decay_steps: Length of the decay of "wsd".
        cooldown: Shape of the decay of "wsd": "linear" (the default), "cosine", or "sqrt", which is
            1 - sqrt(progress) (Hägele et al. 2024, equation 1).
        first_step: What the optimizer's first update counts as. With 0, as in `transformers`, it has a rate of 0 if
            there is a warmup; the papers count from 1.

    Raises:
        ValueError: for steps that do not add up, and for an argument that the decay has no use for.

    Example:
        >>> schedule = keras_tfm.training.WarmupSchedule(2e-5, warmup_steps=100, total_steps=1000)
        >>> classifier.compile(keras.optimizers.AdamW(schedule))
    """

    def __init__(
        self,
        peak: float,
        warmup_steps: int,
        total_steps: int | None = None,
        decay: str = "linear",
        *,
        end: float = 0.0,
        decay_steps: int | None = None,
        cooldown: str | None = None,
        first_step: int = 0,
    ):
        check_choice("decay", decay, DECAYS)
        check_positive(total_steps=total_steps, decay_steps=decay_steps)
        for argument, value in (("warmup_steps", warmup_steps), ("first_step", first_step)):
            if isinstance(value, bool) or int(value) != value or value < 0:
                raise ValueError(f"{argument} must be an integer from 0 on; got {value!r}.")
        if not (math.isfinite(peak) and peak > 0):
            raise ValueError(f"peak must be a positive learning rate; got {peak!r}.")
        if not 0 <= end <= peak:
            raise ValueError(f"end must be from 0 to peak={peak!r}; got {end!r}.")
        ends = decay in ("linear", "cosine", "wsd")
        if ends and total_steps is None:
            raise ValueError(f"decay={decay!r} needs total_steps.")
        for argument, given in (("total_steps", total_steps is not None), ("end", end != 0)):
            if given and not ends:
                raise ValueError(f"{argument} has no effect with decay={decay!r}, which does not end.")
        for argument, given in (("decay_steps", decay_steps is not None), ("cooldown", cooldown is not None)):
            if given and decay != "wsd":
                raise ValueError(f"{argument} has no effect with decay={decay!r}; it belongs to 'wsd'.")
        if decay == "wsd" and decay_steps is None:
            raise ValueError("decay='wsd' needs decay_steps, the length of the decay at the end.")
        if decay == "inverse_sqrt" and warmup_steps == 0:
            raise ValueError("decay='inverse_sqrt' needs warmup_steps of at least 1, which is its time scale.")
        if cooldown is not None:
            check_choice("cooldown", cooldown, COOLDOWNS)
        if total_steps is not None and warmup_steps + (decay_steps or 1) > total_steps:
            raise ValueError(
                f"total_steps must leave room for warmup_steps={warmup_steps} and a decay of "
                f"{decay_steps or 'at least 1'}; got {total_steps}."
            )
        self.peak = peak
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.decay = decay
        self.end = end
        self.decay_steps = decay_steps
        self.cooldown = cooldown
        self.first_step = first_step

    def __call__(self, step: Any) -> Any:
        """The rate at an update, () float32."""
        step = ops.cast(step, "float32") + float(self.first_step)
        rising = self.peak * step / max(self.warmup_steps, 1)
        return ops.where(step < self.warmup_steps, rising, self._decayed(step))

    def _decayed(self, step: Any) -> Any:
        """The rate behind the warmup."""
        if self.decay == "constant":
            return ops.convert_to_tensor(self.peak, dtype="float32")
        if self.decay == "inverse_sqrt":
            return self.peak * ops.sqrt(self.warmup_steps / ops.maximum(step, 1.0))
        assert self.total_steps is not None, "checked above"
        steps = self.decay_steps or self.total_steps - self.warmup_steps
        progress = ops.clip((step - (self.total_steps - steps)) / steps, 0.0, 1.0)
        shape = self.decay if self.decay != "wsd" else self.cooldown or "linear"
        if shape == "cosine":
            share = 0.5 * (1.0 + ops.cos(math.pi * progress))
        elif shape == "sqrt":
            share = 1.0 - ops.sqrt(progress)
        else:
            share = 1.0 - progress
        return self.end + (self.peak - self.end) * share

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "warmup_steps": self.warmup_steps,
            "total_steps": self.total_steps,
            "decay": self.decay,
            "end": self.end,
            "decay_steps": self.decay_steps,
            "cooldown": self.cooldown,
            "first_step": self.first_step,
        }


def noam(hidden_dim: int, warmup_steps: int = 4000, factor: float = 1.0) -> WarmupSchedule:
    """The schedule of Vaswani et al. 2017, equation 3, which takes no peak: it follows from the model's width.

    factor * hidden_dim ** -0.5 * min(step ** -0.5, step * warmup_steps ** -1.5), with steps from 1 on.

    Args:
        hidden_dim: Width of the model.
        warmup_steps: Updates until the highest rate.
        factor: Of all rates.

    Returns:
        A `WarmupSchedule`.
    """
    check_positive(hidden_dim=hidden_dim, warmup_steps=warmup_steps)
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor must be positive; got {factor!r}.")
    peak = factor * (hidden_dim * warmup_steps) ** -0.5
    return WarmupSchedule(peak, warmup_steps, decay="inverse_sqrt", first_step=1)
