"""Attention block by block, with a softmax that is corrected as it goes: memory linear in length, on every backend.

The scores of a block of queries and a block of keys are computed, used and forgotten; the running maximum and sum of each
query make the softmax of all keys out of the blocks' (Milakov and Gimelshein 2018; Rabe and Staats 2021; Dao et al. 2022,
algorithms 1 and 4). The gradient computes each block of scores again. Pairs of blocks that causality, window, segments,
padding or an explicit mask rule out for every row of the batch are not visited: a window's cost is linear in length.
"""

from __future__ import annotations

import math

from keras import ops

from keras_tfm.ops import random
from keras_tfm.ops.backend import NAME, Tensor, device
from keras_tfm.ops.kernels.blockwise.blocks import Settings, arrange
from keras_tfm.ops.kernels.blockwise.passes import attended
from keras_tfm.ops.kernels.request import Request

# Queries and keys of a block at most. torch's CPU computes with what its cache holds: so many scores of all rows and heads,
# of no fewer than LEAST queries and keys (4 heads and 4096 keys: 0.57 s for blocks of 256 x 512, 0.70 for 512 x 512; 96
# heads and 1024 keys: 1.05 s for 128 x 128, 3.7 for 512 x 512). XLA is at its best with 512 x 512 (4 heads and 8192 keys:
# 2.3 s, 2.8 for twice the queries), TensorFlow with TALLER times the queries where no window makes them see much in vain
# (1.5 instead of 1.66 s).
QUERIES = 512
KEYS = 512
TALLER = 2
CACHED = 1 << 19
LEAST = 128


def refuses(request: Request) -> str | None:
    """Why blocks cannot serve this request; None when they can."""
    if request.return_scores:
        return "scores are never there as a whole"
    if request.bias is not None:
        return "a bias is as large as the scores that are to be avoided"
    return None


def attend(request: Request) -> tuple[Tensor, None]:
    """Output as `reference.attend`; no weights."""
    if NAME == "torch" and request.query.is_meta:  # shapes alone: nothing to count blocks by
        return request.query.new_empty((*request.query.shape[:3], request.value.shape[3])), None
    settings = _settings(request)
    words = arrange(settings, request)
    sinks = ops.zeros((0,), "float32") if request.sinks is None else ops.convert_to_tensor(request.sinks)
    state = random.state_of(request.seed) if request.dropout > 0.0 else None
    query = request.query * ops.cast(request.scale, request.query.dtype)
    return attended(settings, query, request.key, request.value, sinks, words, state), None


def _settings(request: Request) -> Settings:
    queries, keys = QUERIES, KEYS
    if NAME == "tensorflow" and request.window is None:
        queries *= TALLER
    if NAME == "torch" and device(request.query) == "cpu":
        room = CACHED // (request.query.shape[0] * request.num_heads or 1)
        queries = min(queries, max(LEAST, 1 << int(math.log2(max(room, 1)) / 2)))
        keys = min(keys, max(LEAST, room // queries // 64 * 64))
    return Settings(
        queries=_size(request.query, queries),
        keys=_size(request.key, keys),
        kv_heads=request.num_key_value_heads,
        groups=request.groups,
        softcap=request.softcap,
        dropout=request.dropout,
        causal=request.causal,
        window=request.window,
        global_tokens=request.global_tokens,
    )


def _size(x: Tensor, most: int) -> int:
    """Tokens of a block: no more than there are, where that is known."""
    length = x.shape[1]
    return most if length is None else max(1, math.ceil(length / math.ceil(length / most)))
