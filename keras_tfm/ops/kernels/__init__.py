"""The implementations of attention, and the one table that says which of them serves a request.

A kernel is a module with `refuses(request) -> reason or None` and `attend(request) -> (output, weights or None)`.
"""

from __future__ import annotations

from types import ModuleType

from keras_tfm.ops import backend
from keras_tfm.ops.kernels import blockwise, dense, flex, fused, reference, splash
from keras_tfm.ops.kernels.request import Request

KERNELS: dict[str, ModuleType] = {
    "reference": reference,
    "dense": dense,
    "fused": fused,
    "blockwise": blockwise,
    "splash": splash,
    "flex": flex,
}

# Preference by (backend, device), best first; the first that does not refuse serves. On the CPU, XLA compiles the dense
# arrangement into the better program (measured: docs/performance.md); torch's SDPA wins wherever it may be used. On
# GPUs and TPUs nothing has been measured yet.
PREFERENCE: dict[tuple[str, str], tuple[str, ...]] = {
    ("tensorflow", "cpu"): ("dense",),
    ("tensorflow", "gpu"): ("dense",),
    ("tensorflow", "tpu"): ("dense",),
    ("jax", "cpu"): ("dense",),
    ("jax", "gpu"): ("fused", "dense"),
    ("jax", "tpu"): ("splash", "dense"),  # made for it; not measured on one
    ("torch", "cpu"): ("fused", "dense"),
    ("torch", "gpu"): ("fused", "dense"),
}

# Keys from which scores come in blocks: on the CPU where that is the faster (docs/performance.md, "What was tried"),
# elsewhere, not measured yet, where a head's scores in float32 take 256 MiB.
LONG: dict[tuple[str, str], int] = {where: 2048 if where[1] == "cpu" else 8192 for where in PREFERENCE}
# A window is worth blocks when it is so many times shorter than the keys, and these are a few blocks.
NARROW, FEW = 4, 1024
# Where torch's FlexAttention stands in for its SDPA, and for how many queries and keys: compiling it takes seconds, and the
# masks that it saves are small below. Not measured on a GPU either.
FLEX: dict[tuple[str, str], int] = {("torch", "gpu"): 512}


def _by_length(request: Request, where: tuple[str, str]) -> tuple[str, ...]:
    """Kernels for this many keys, best first. Of a number that is not known when the program is made: as for few."""
    names = PREFERENCE[where]
    keys, queries = backend.static_shape(request.key)[1], backend.static_shape(request.query)[1]
    if not isinstance(keys, int) or not isinstance(queries, int):
        return names
    if queries < keys // NARROW:  # a step of decoding has few scores, and no block of queries
        return tuple(name for name in names if name != "splash")
    narrow = request.window is not None and keys >= max(FEW, NARROW * request.window)
    blocked: tuple[str, ...] = ("blockwise",) if keys >= LONG[where] or narrow else ()
    if where in FLEX and min(queries, keys) >= FLEX[where]:
        blocked = ("flex", *blocked)
    if not blocked:
        return names
    linear = (name for name in names if name == "splash" or (name == "fused" and fused.is_linear(request)))
    return (*linear, *blocked, *names)


def choose(request: Request, kernel: str = "auto") -> str:
    """The name of the kernel that serves `request`; "auto" consults the table.

    Raises:
        ValueError: for an unknown name, or a kernel asked for by name that refuses (the reason is in the message).
    """
    if kernel != "auto":
        if kernel not in KERNELS:
            raise ValueError(f"Unknown kernel={kernel!r}; one of {['auto', *KERNELS]} is expected.")
        reason = KERNELS[kernel].refuses(request)
        if reason is not None:
            raise ValueError(f"kernel={kernel!r} cannot serve this call: {reason}. kernel='auto' picks one that can.")
        return kernel
    names = _by_length(request, (backend.NAME, backend.device(request.query)))
    return next(name for name in names if KERNELS[name].refuses(request) is None)


__all__ = ["KERNELS", "PREFERENCE", "Request", "choose"]
