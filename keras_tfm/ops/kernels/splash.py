"""JAX's Splash attention for TPUs: a Pallas kernel that keeps no scores and visits no block that is ruled out.

Blocks that causality, a window or the end of the keys rule out are found before the program is made, from masks that are
computed a block at a time; inside the kernel the same words are computed again from the indices. The running softmax and
its gradient are those of Dao et al. 2022 (algorithms 1 and 4). It is `jax.experimental.pallas.ops.tpu.splash_attention`;
on a CPU the kernel is interpreted, which is slow and for tests. It has not been run on a TPU.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import dataclass
from typing import Any

from keras_tfm.ops import backend, shards
from keras_tfm.ops.backend import NAME, Tensor
from keras_tfm.ops.kernels.request import Request

LANES = 128  # of a TPU's vector registers: blocks are multiples of it
WIDTH = 64  # heads are filled up with zeros to a multiple of it
BLOCK = 512  # queries, and keys, of a block at most; the least of them for heads wider than WIDE
WIDE = 256
NOWHERE = -1e30  # the logit of a sink that takes no weight, but where there is no key


def refuses(request: Request) -> str | None:
    """Why Splash attention cannot serve this request; None when it can."""
    if NAME != "jax":
        return f"Splash attention is JAX's, for TPUs; the backend is {NAME}"
    if backend.device(request.query) not in ("cpu", "tpu"):
        return "Splash attention runs on TPUs (and, interpreted, on CPUs)"
    if _missing() is not None:
        return _missing()
    for given, reason in (
        (request.return_scores, "scores are never there as a whole"),
        (request.dropout > 0.0, "Splash attention has no dropout"),
        (request.bias is not None, "Splash attention takes no bias"),
        (request.attention_mask is not None, "Splash attention takes no mask that is an array"),
        (not request.aligned, "Splash attention takes no positions: query and key i are the same token"),
    ):
        if given:
            return reason
    arrays = request.query, request.key, request.value
    dtypes = sorted({str(x.dtype) for x in arrays})
    if dtypes not in (["bfloat16"], ["float32"]):
        return f"Splash attention wants bfloat16 or float32 throughout; got {', '.join(dtypes)}"
    dimensions = [d for x in arrays for d in x.shape]
    if not all(isinstance(d, int) for d in dimensions):
        return "Splash attention wants shapes that are known when the program is made"
    if 0 in dimensions:
        return "Splash attention wants at least one row, token and head"
    return None


@functools.cache
def _missing() -> str | None:
    """What the installed JAX lacks; None if nothing."""
    try:
        from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
    except ImportError as error:
        return f"the installed JAX has no Splash attention: {error}"
    if "sinks" not in inspect.signature(splash_attention_kernel.attention_reference).parameters:
        return "the installed JAX's Splash attention has no sinks, by which rows without keys become zeros"
    return None


def attend(request: Request) -> tuple[Tensor, None]:
    """Output as `reference.attend`; no weights.

    On a mesh each device calls the kernel with its rows and heads: XLA cannot divide a Pallas call.
    """
    import jax.numpy as jnp

    query, key, value = (jnp.asarray(x) for x in (request.query, request.key, request.value))
    # The kernel has no scale. Multiplied in float32, a query is rounded once to its own dtype.
    query = (query.astype("float32") * jnp.asarray(request.scale, "float32")).astype(query.dtype)
    # A row without keys gives its sink all the weight, which has no value: zeros, with a zero gradient.
    sinks = jnp.full((request.num_heads,), NOWHERE, "float32") if request.sinks is None else request.sinks
    arrays = [query, key, value, jnp.asarray(sinks, "float32")]
    axes: list[tuple[str | None, ...]] = [("rows", None, "heads", None)] * 3 + [("heads",)]
    segments = _segments(request)
    if segments is not None:
        arrays += segments
        axes += [("rows", None)] * 2
    words = Words(
        queries=query.shape[1],
        keys=key.shape[1],
        causal=bool(request.causal),
        window=request.window,
        global_tokens=request.global_tokens,
    )
    softcap = None if request.softcap is None else float(request.softcap)
    interpret = backend.device(request.query) != "tpu"
    function = functools.partial(_attended, words, softcap, interpret)
    return shards.by_part(function, arrays, axes, axes[0]), None


def _segments(request: Request) -> list[Tensor] | None:
    """Segments of queries and keys, (batch, length) int32 each: padding is one that no query is of. None where all is one.

    The number below the least of a row's queries is that of its padding. It is free unless a row has both the least and
    the greatest int32.
    """
    import jax.numpy as jnp

    if request.padding_mask is None and request.query_segment_ids is None:
        return None
    batch, queries, keys = request.query.shape[0], request.query.shape[1], request.key.shape[1]
    zero = jnp.zeros((1, 1), "int32")
    of_queries = zero if request.query_segment_ids is None else request.query_segment_ids
    of_keys = zero if request.key_segment_ids is None else request.key_segment_ids
    if request.padding_mask is not None:
        none = of_queries.min(axis=1, keepdims=True) - 1
        of_keys = jnp.where(jnp.asarray(request.padding_mask).astype(bool), of_keys, none)
    return [jnp.broadcast_to(of_queries, (batch, queries)), jnp.broadcast_to(of_keys, (batch, keys))]


def _attended(
    words: Words,
    softcap: float | None,
    interpret: bool,
    query: Any,
    key: Any,
    value: Any,
    sinks: Any,
    *segments: Any,
) -> Any:
    """As `attend`, of one device's rows and heads; the query has been scaled."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    head_dim, value_dim = query.shape[3], value.shape[3]
    most = BLOCK if max(head_dim, value_dim) <= WIDE else LANES
    blocks = _block(words.queries, most), _block(words.keys, most)
    lengths = [_up(length, block) for length, block in zip((words.queries, words.keys), blocks, strict=True)]
    kernel = _kernel(words, lengths[0], lengths[1], blocks, query.shape[2], softcap, interpret)

    def arranged(x: Any, length: int) -> Any:  # (batch, heads, length, width), zeros beyond what there is
        x = jnp.transpose(x, (0, 2, 1, 3))
        return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, _up(x.shape[3], WIDTH) - x.shape[3])))

    ids = None
    if segments:
        ids = SegmentIds(
            *(jnp.pad(x, ((0, 0), (0, length - x.shape[1]))) for x, length in zip(segments, lengths, strict=True))
        )
    rows = jax.vmap(kernel, in_axes=(0, 0, 0, None if ids is None else 0, None))
    output = rows(arranged(query, lengths[0]), arranged(key, lengths[1]), arranged(value, lengths[1]), ids, sinks)
    return jnp.transpose(output[:, :, : words.queries, :value_dim], (0, 2, 1, 3))


def _up(number: int, step: int) -> int:
    return math.ceil(number / step) * step


def _block(length: int, most: int) -> int:
    """Tokens of a block: as few blocks as there may be, with as little to fill up as there may be."""
    return _up(math.ceil(length / math.ceil(length / most)), LANES)


@dataclass(frozen=True)
class Words:
    """Who may attend to whom, computed from the indices of queries and keys.

    Attributes:
        queries, keys: How many there are.
        causal, window, global_tokens: As of `ops.attention`.
    """

    queries: int
    keys: int
    causal: bool
    window: int | None
    global_tokens: int

    def __call__(self, query: Any, key: Any) -> Any:
        """Indices, of shapes that broadcast, to booleans. Under causality no query sees what follows the last key."""
        may = query >= key if self.causal else key < self.keys
        if self.window is None:
            return may
        near = query - key < self.window if self.causal else (query - key <= self.window) & (key - query <= self.window)
        if self.global_tokens:
            near = near | (query < self.global_tokens) | (key < self.global_tokens)
        return may & near


@functools.lru_cache(maxsize=64)
def _kernel(
    words: Words,
    queries: int,
    keys: int,
    blocks: tuple[int, int],
    heads: int,
    softcap: float | None,
    interpret: bool,
) -> Any:
    """JAX's kernel, of (heads, queries, width) and (kv_heads, keys, width), for lengths filled up to whole blocks.

    What it keeps is NumPy's: an array of the program that is being made would not outlive it.
    """
    import jax
    import numpy as np
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    if words.causal or words.window is not None or keys > words.keys:
        mask = _lazy_mask()(words, (queries, keys))
    else:
        mask = splash.FullMask((queries, keys))
    of_queries, of_keys = blocks
    sizes = splash.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
        block_q_dq=of_queries,
        block_kv_dq=of_keys,
    )
    with jax.ensure_compile_time_eval():
        kernel = splash.make_splash_mha_single_device(
            splash.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=softcap,
            interpret=interpret,
        )
        return jax.tree.map(np.asarray, kernel)


@functools.cache
def _lazy_mask() -> type:
    """The class of masks that are computed a block at a time, here and inside the kernel."""
    import numpy as np
    from jax.experimental.pallas.ops.tpu.splash_attention import Mask

    class Told(Mask):
        """Words as JAX's kernel reads them: it takes what has `q_sequence` and `mask_function` to be computable."""

        def __init__(self, words: Words, shape: tuple[int, int]) -> None:
            self.mask_function, self._shape = words, shape
            self.q_sequence = np.arange(shape[0], dtype=np.int32)

        @property
        def shape(self) -> tuple[int, ...]:
            return self._shape

        def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
            rows, columns = (np.arange(n, dtype=np.int32)[part] for n, part in zip(self._shape, index, strict=True))
            return np.broadcast_to(self.mask_function(rows[:, None], columns[None]), (rows.size, columns.size))

        def __eq__(self, other: object) -> bool:
            if not isinstance(other, Told):
                return NotImplemented
            return (self.mask_function, self._shape) == (other.mask_function, other._shape)

        def __hash__(self) -> int:
            return hash((self.mask_function, self._shape))

    return Told
