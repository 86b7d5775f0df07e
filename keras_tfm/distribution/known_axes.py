"""What the dimensions of weights mean in layers that are not ours: Keras's attention, KerasHub's encoders and decoders."""

from __future__ import annotations

import re

# The end of a variable's path, and what its dimensions are, for each number of them.
_KNOWN: tuple[tuple[str, dict[int, tuple[str | None, ...]]], ...] = (
    (r"(^|.*/)query/kernel", {3: ("embed", "heads", "head_dim")}),
    (r"(^|.*/)query/bias", {2: ("heads", "head_dim")}),
    (r"(^|.*/)(key|value)/kernel", {3: ("embed", "kv_heads", "head_dim")}),
    (r"(^|.*/)(key|value)/bias", {2: ("kv_heads", "head_dim")}),
    (r"(^|.*/)attention_output/kernel", {3: ("heads", "head_dim", "embed")}),
    (r"(^|.*/)attention_output/bias", {1: ("embed",)}),
    (r"(^|.*/)feedforward_(intermediate|gate)_dense/kernel", {2: ("embed", "mlp")}),
    (r"(^|.*/)feedforward_(intermediate|gate)_dense/bias", {1: ("mlp",)}),
    (r"(^|.*/)feedforward_output_dense/kernel", {2: ("mlp", "embed")}),
    (r"(^|.*/)feedforward_output_dense/bias", {1: ("embed",)}),
    (r"(^|.*/)token_embedding/embeddings", {2: ("vocab", "embed")}),
)
_PATTERNS = tuple((re.compile(pattern), axes) for pattern, axes in _KNOWN)


def known_axes(path: str, rank: int) -> tuple[str | None, ...] | None:
    """The logical axes of a variable of this path, (rank,), or None where it is not known."""
    for pattern, axes in _PATTERNS:
        if pattern.fullmatch(path) and rank in axes:
            return axes[rank]
    return None
