"""What is to be run: everything about a step but the model and the devices."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

LOSSES = ("dense", "chunked")
KERNELS = ("dense", "fused")


@dataclass(frozen=True)
class Job:
    """A training step, and how much is generated.

    Attributes:
        batch_size: Rows a step, of all devices together, as `fit` takes it.
        sequence_length: Tokens a row (of an encoder-decoder: of either side).
        policy: Keras's dtype policy.
        optimizer: A name that `keras.optimizers.get` knows, or an optimizer.
        jit_compile: XLA compiles the whole step, as on JAX, and on TensorFlow with Keras's `jit_compile`. False:
            activations are those that differentiation keeps.
        remat: Blocks keep their inputs alone (`recompute_blocks`).
        loss: "dense" holds all logits; "chunked" is `loss="linear_crossentropy"`.
        kernel: "dense" attention keeps its probabilities; "fused" stands for kernels that do not, "blockwise" too.
        accumulation: The optimizer's gradient_accumulation_steps.
        cache_tokens: Tokens that each row's cache has room for while generating; None: nothing is generated.
        cache_dtype: Of keys and values; None: the policy's.
        overlap: Sums of gradients, and gathered weights, move while the devices compute.
        utilization: Share of the devices' best rate at which products run.
        latency: Seconds that starting a collective takes.
    """

    batch_size: int
    sequence_length: int
    policy: str = "mixed_bfloat16"
    optimizer: Any = "adamw"
    jit_compile: bool = True
    remat: bool = False
    loss: str = "dense"
    kernel: str = "dense"
    accumulation: int = 1
    cache_tokens: int | None = None
    cache_dtype: str | None = None
    overlap: bool = False
    utilization: float = 0.4
    latency: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("batch_size", "sequence_length", "accumulation", "cache_tokens"):
            value = getattr(self, name)
            if value is None and name == "cache_tokens":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}.")
        for name, known in (("loss", LOSSES), ("kernel", KERNELS)):
            value = getattr(self, name)
            if value not in known:
                near = difflib.get_close_matches(str(value), known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name} must be one of {list(known)}; got {value!r}.{hint}")
        if self.cache_dtype not in (None, "float32", "bfloat16", "float16", "int8"):
            raise ValueError(
                f"cache_dtype must be 'float32', 'bfloat16', 'float16' or 'int8'; got {self.cache_dtype!r}."
            )
        if self.cache_dtype is not None and self.cache_tokens is None:
            raise ValueError(f"cache_dtype={self.cache_dtype!r} is a cache's; give cache_tokens too.")
        if not 0 < self.utilization <= 1:
            raise ValueError(f"utilization must be above 0 and at most 1; got {self.utilization!r}.")
        if not self.latency >= 0:
            raise ValueError(f"latency must be seconds, at least 0; got {self.latency!r}.")
