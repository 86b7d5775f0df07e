"""Attention is one function. Which program runs it is the kernel table's business."""

from __future__ import annotations

from keras_tfm.ops import kernels, tiles
from keras_tfm.ops.backend import Tensor, static_shape
from keras_tfm.ops.kernels import Request


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
    global_tokens: int = 0,
    padding_mask: Tensor | None = None,
    segment_ids: Tensor | tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    seed: object = None,
    query_positions: Tensor | None = None,
    key_positions: Tensor | None = None,
    sees_itself: bool = False,
    return_scores: bool = False,
    kernel: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1): softmax(scale * Q K^T + bias) V.

    The softmax is float32 under any dtype. A query that may attend to no key gives zeros, with a zero gradient.

    Args:
        query: (batch, queries, heads, head_dim), a float dtype.
        key: (batch, keys, kv_heads, head_dim); kv_heads divides heads (grouped-query attention, Ainslie et al. 2023). Keys
            and values may be `tiles.Tiles` of a cache.
        value: (batch, keys, kv_heads, value_dim).
        causal: query i sees keys up to i.
        window: causal: a query sees `window` keys up to and including itself; otherwise `window` on either side.
        global_tokens: Beside a window: so many first positions see, and are seen by, all (Beltagy et al. 2020); under
            causality only by what comes after.
        padding_mask: (batch, keys), true = a token.
        segment_ids: (batch, length) integers, attention stays within equal ids; or a pair for queries and keys.
        attention_mask: (batch, queries, keys) or (batch, heads, queries, keys), boolean or 0/1, true = may attend.
        bias: Added to the scaled scores; broadcastable to (batch, heads, queries, keys), a float dtype.
        scale: Default head_dim ** -0.5.
        softcap: Scores become softcap * tanh(scores / softcap), before bias and mask (Gemma 2).
        sinks: (heads,) logits of one extra key per head that has no value (gpt-oss; zeros: softmax off by one).
        dropout: Rate at which attention weights are dropped; needs `seed`.
        seed: A `keras.random.SeedGenerator`.
        query_positions: (batch or 1, queries) int; where query and key i are not the same token (a cache).
        key_positions: (batch or 1, keys) int; a negative one marks an empty slot.
        sees_itself: The caller vouches that every query may attend to some key, whatever masks and positions say: saves
            looking for those that may not.
        return_scores: also return the attention weights, (batch, heads, queries, keys) float32.
        kernel: "auto", or a name in `ops.kernels.KERNELS`.

    Returns:
        (batch, queries, heads, value_dim) in the dtype of `query`; with `return_scores`, a pair.

    Raises:
        ValueError: for shapes, options or a kernel that do not fit each other.
    """
    if isinstance(segment_ids, (tuple, list)):
        query_segment_ids, key_segment_ids = segment_ids
    else:
        query_segment_ids = key_segment_ids = segment_ids
    request = Request(
        query=query,
        key=key,
        value=value,
        causal=causal,
        window=window,
        global_tokens=global_tokens,
        padding_mask=padding_mask,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        attention_mask=attention_mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout=dropout,
        seed=seed,
        query_positions=query_positions,
        key_positions=key_positions,
        sees_itself=sees_itself,
        return_scores=return_scores,
    )
    _check(request)
    name = kernels.choose(request, kernel)
    if name != "dense":
        request.key, request.value = tiles.whole(request.key), tiles.whole(request.value)
    output, weights = kernels.KERNELS[name].attend(request)
    return (output, weights) if return_scores else output


def explain_kernel(*args: Tensor, kernel: str = "auto", **options) -> dict[str, str]:
    """Which kernel serves a call of `attention` with these arguments, and why the others do not.

    Returns a dict of kernel name to "serves", "available", or the reason it refuses.
    """
    segment_ids = options.pop("segment_ids", None)
    pair = segment_ids if isinstance(segment_ids, (tuple, list)) else (segment_ids, segment_ids)
    request = Request(*args, query_segment_ids=pair[0], key_segment_ids=pair[1], **options)
    _check(request)
    chosen = kernels.choose(request, kernel)
    reasons = {name: module.refuses(request) or "available" for name, module in kernels.KERNELS.items()}
    return {**reasons, chosen: "serves"}


def _check(request: Request) -> None:
    """Reject what cannot be meant, before anything is computed."""
    query, key, value = (static_shape(x) for x in (request.query, request.key, request.value))
    for name, shape in (("query", query), ("key", key), ("value", value)):
        if len(shape) != 4:
            raise ValueError(f"{name} must be (batch, length, heads, head_dim); got shape {shape}.")
    batches = {shape[0] for shape in (query, key, value)} - {None}
    if len(batches) > 1:
        raise ValueError(f"query, key and value must share their batch; got shapes {query}, {key} and {value}.")
    if query[3] != key[3]:
        raise ValueError(f"query and key must share head_dim; got {query[3]} and {key[3]}.")
    if key[1:3] != value[1:3]:
        raise ValueError(f"key and value must agree in length and heads; got shapes {key} and {value}.")
    if request.num_heads % request.num_key_value_heads:
        raise ValueError(
            f"key/value heads must divide query heads; got {key[2]} key/value heads for {query[2]} query heads."
        )
    if request.window is not None and request.window < 1:
        raise ValueError(f"window must be at least 1; got {request.window}.")
    if request.global_tokens < 0 or (request.global_tokens and request.window is None):
        raise ValueError(f"global_tokens are a number of tokens, beside a window; got {request.global_tokens}.")
    if request.softcap is not None and request.softcap <= 0:
        raise ValueError(f"softcap must be positive; got {request.softcap}.")
    if not 0.0 <= request.dropout <= 1.0:
        raise ValueError(f"dropout must be between 0 and 1; got {request.dropout}.")
    if request.dropout > 0.0 and request.seed is None:
        raise ValueError("dropout > 0 needs seed, a keras.random.SeedGenerator.")
    lengths_differ = None not in (query[1], key[1]) and query[1] != key[1]
    if lengths_differ and request.aligned and (request.causal or request.window is not None):
        raise ValueError(
            f"causal and window need to know where queries stand among the keys: {query[1]} queries, {key[1]} keys. "
            "Pass query_positions and key_positions."
        )
    check_mask("padding_mask", request.padding_mask, [(query[0], key[1])])
    check_mask("segment_ids of queries", request.query_segment_ids, [(query[0], query[1])], boolean=False)
    check_mask("segment_ids of keys", request.key_segment_ids, [(query[0], key[1])], boolean=False)
    dense = [(query[0], query[1], key[1]), (query[0], query[2], query[1], key[1])]
    check_mask("attention_mask", request.attention_mask, dense)
    if request.bias is not None:
        _check_bias(static_shape(request.bias), dense[1])
    if request.sinks is not None and static_shape(request.sinks) != (query[2],):
        raise ValueError(f"sinks must have shape {(query[2],)}, one a head; got {static_shape(request.sinks)}.")


def _check_bias(shape: tuple[int | None, ...], scores: tuple[int | None, ...]) -> None:
    fits = all(have in (want, 1) or None in (have, want) for have, want in zip(shape[::-1], scores[::-1], strict=False))
    if len(shape) > 4 or not fits:
        raise ValueError(f"bias must broadcast to (batch, heads, queries, keys) {scores}; got shape {shape}.")


def check_mask(name: str, mask: Tensor | None, expected: list[tuple[int | None, ...]], boolean: bool = True) -> None:
    """Raise ValueError unless a mask is None, or has an expected shape (1 and None fit any) and no float dtype."""
    if mask is None:
        return
    if not boolean and "float" in str(mask.dtype):
        raise ValueError(f"{name} must be integers; got dtype {mask.dtype}.")
    if boolean and "float" in str(mask.dtype):
        raise ValueError(
            f"{name} must be boolean or 0/1 integers, true = may be attended; got dtype {mask.dtype}. "
            "Scores to add go in bias."
        )
    shape = static_shape(mask)
    for wanted in expected:
        if len(shape) == len(wanted) and all(s in (w, 1) or None in (s, w) for s, w in zip(shape, wanted, strict=True)):
            return
    raise ValueError(f"{name} must have shape {' or '.join(map(str, expected))}; got {shape}.")
