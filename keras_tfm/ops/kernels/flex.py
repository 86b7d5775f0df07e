"""torch's FlexAttention: structure and soft cap told as functions, compiled into one kernel that never holds all scores.

`torch.nn.attention.flex_attention` (Dong et al. 2024, arXiv:2412.05496) takes a function that changes a score and one that
says who sees whom; Triton programs for CUDA devices, forward and backward, are made of them. Blocks of 128 queries and keys
that nobody sees are left out, those that all see are not masked. Which these are is worked out from the least and the most
position and segment of each block, never from an array of (queries, keys).

On a CPU, by name only, torch computes the same densely and has no backward pass: there it serves comparisons and tests.
Nothing here has been run or measured on a GPU yet.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import operator
import types
from collections.abc import Callable
from typing import Any

from keras_tfm.ops import backend, masks
from keras_tfm.ops.backend import NAME, Tensor
from keras_tfm.ops.kernels.blockwise import blocks
from keras_tfm.ops.kernels.request import Request

SIZE = 128  # queries and keys of a block: FlexAttention's own default, a multiple of what its programs take at a time
# Compiled variants of one program: batches, lengths and dtypes that torch finds no common program for. One more raises,
# where torch would silently compute densely; lengths that change become symbols in the second variant.
VARIANTS = 64
WIDTHS = 16, 256  # of heads: Triton's products take no fewer (an error in torch), torch tunes its blocks to no more
DTYPES = {"float16", "bfloat16", "float32"}


def refuses(request: Request) -> str | None:
    """Why FlexAttention cannot serve this request; None when it can."""
    if NAME != "torch":
        return "FlexAttention is torch's"
    if request.return_scores:
        return "FlexAttention does not give scores"
    if request.dropout > 0.0:
        return "FlexAttention has no dropout"
    if backend.is_recording():
        return "FlexAttention is compiled as a whole, where operations are recorded one by one"
    dtypes = {str(x.dtype).removeprefix("torch.") for x in (request.query, request.key, request.value)}
    if len(dtypes) > 1:
        return f"FlexAttention wants one dtype throughout; got {', '.join(sorted(dtypes))}"
    if 0 in (*request.query.shape, *request.key.shape, *request.value.shape):
        return "FlexAttention wants at least one of everything"
    return _refused_by_torch() or (_refused_by_cpu(request) if _on_cpu(request) else _refused_by_gpu(request, dtypes))


def _on_cpu(request: Request) -> bool:
    return backend.device(request.query) == "cpu"


def _refused_by_torch() -> str | None:
    import torch
    from torch.nn.attention import flex_attention

    return None if hasattr(flex_attention, "AuxRequest") else f"torch {torch.__version__} has no AuxRequest"


def _refused_by_cpu(request: Request) -> str | None:
    import torch

    if any(x.requires_grad for x in (request.query, request.key, request.value)) or (
        torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in (request.bias, request.sinks))
    ):
        return "FlexAttention has no backward pass on a CPU"
    if request.sinks is not None and torch.compiler.is_compiling():
        return "FlexAttention compiled for a CPU gives no logsumexp, which sinks need"
    return None


def _refused_by_gpu(request: Request, dtypes: set[str]) -> str | None:
    """The conditions of torch's Triton programs (torch 2.13, torch/_inductor/kernel/flex)."""
    if not dtypes <= DTYPES:
        return f"FlexAttention wants float16, bfloat16 or float32; got {', '.join(dtypes)}"
    widths = request.query.shape[-1], request.value.shape[-1]
    if min(widths) < WIDTHS[0] or max(widths) > WIDTHS[1]:
        return (
            f"FlexAttention wants heads of {WIDTHS[0]} to {WIDTHS[1]}; got head_dim {widths[0]}, value_dim {widths[1]}"
        )
    import torch

    if torch.compiler.is_compiling():  # by Triton, then
        return None
    if torch._dynamo.config.disable:
        return "FlexAttention without torch.compile, which is turned off, holds all scores"
    return _refused_by_triton()


@functools.cache
def _refused_by_triton() -> str | None:
    import torch

    if importlib.util.find_spec("triton") is None:
        return "FlexAttention is compiled by Triton, which is not installed"
    capability = torch.cuda.get_device_capability()
    return None if capability >= (7, 0) else f"Triton wants compute capability 7.0 or more; got {capability}"


def attend(request: Request) -> tuple[Tensor, None]:
    """Output as `reference.attend`; no weights.

    Sinks enter as sigmoid(logsumexp - sink), the share of a softmax that its keys keep beside one key more; torch gives
    the logsumexp with its gradient. Rows without keys have a logsumexp of minus infinity, output and gradient zero.
    """
    import torch

    query, key, value = (x.transpose(1, 2) for x in (request.query, request.key, request.value))
    if query.is_meta:  # shapes alone
        return request.query.new_empty((*request.query.shape[:3], request.value.shape[3])), None
    given = query, key, value, _score_mod(request), _block_mask(request)
    options = {"scale": request.scale, "enable_gqa": request.groups > 1, "with_lse": request.sinks is not None}
    if torch.compiler.is_compiling():  # the model is compiled as a whole: this becomes a part of it
        output, lse = _flex(*given, **options)
    else:
        with torch._dynamo.config.patch(recompile_limit=VARIANTS):
            output, lse = _program(_words(request), _on_cpu(request))(*given, **options)
    if request.sinks is not None:
        kept = torch.sigmoid(lse - request.sinks.to(lse.dtype)[:, None])  # (batch, heads, queries)
        output = (output * kept[..., None]).to(output.dtype)
    return output.transpose(1, 2), None


def _flex(query, key, value, score_mod, block_mask, *, scale, enable_gqa, with_lse):
    """Outputs (batch, heads, queries, value_dim) and, if asked for, logsumexps (batch, heads, queries) float32."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    output, more = flex_attention(
        query,
        key,
        value,
        score_mod=score_mod,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=enable_gqa,
        return_aux=AuxRequest(lse=with_lse),
    )
    return output, more.lse


def _words(request: Request) -> tuple:
    """What decides the form of the program beside shapes and dtypes."""
    given = (
        request.padding_mask,
        request.query_segment_ids,
        request.attention_mask,
        request.bias,
        request.sinks,
        request.query_positions,
        request.key_positions,
    )
    numbers = request.causal, request.window, request.global_tokens, request.scale, request.softcap
    return (*numbers, *(x is not None for x in given))


_number = itertools.count()


@functools.cache
def _program(words: tuple, dense: bool) -> Callable[..., Any]:
    """`_flex` compiled for these words, as a function of its own.

    torch counts variants and looks for numbers that change by the code of what is compiled. Were it one function for all,
    a second scale or window would be taken for something that changes from call to call and be made an argument.

    Args:
        words: As of `_words`.
        dense: Without a compiler, as on a CPU.
    """
    import torch

    code = _flex.__code__.replace(co_name=f"_flex_{next(_number)}")
    function = types.FunctionType(code, _flex.__globals__, code.co_name)
    function.__kwdefaults__ = _flex.__kwdefaults__
    # With fullgraph=True what cannot be compiled, or not once more, is an error.
    return torch.compile(function, fullgraph=True, backend="eager" if dense else "inductor")


Read = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _read(x: Tensor | None) -> Read | None:
    """Reads one entry of what broadcasts to (batch, heads, queries, keys)."""
    if x is None:
        return None
    x = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
    kept = [axis for axis in range(4) if x.shape[axis] != 1]
    x = x.squeeze([axis for axis in range(4) if axis not in kept])
    if not kept:
        return lambda b, h, q, k: x[None][b * 0]  # torch has gradients of what is read by index
    return lambda b, h, q, k: x[[(b, h, q, k)[axis] for axis in kept]]


def _score_mod(request: Request) -> Callable[..., Tensor] | None:
    """What becomes of a scaled score: soft cap, then bias; None if nothing does."""
    import torch

    softcap, bias = request.softcap, _read(request.bias)
    if softcap is None and bias is None:
        return None

    def changed(score, b, h, q, k):
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        return score if bias is None else score + bias(b, h, q, k)

    return changed


def _mask_mod(request: Request) -> Read | None:
    """Whether a query may see a key, as `request.allowed` says of all; None if each sees all."""
    causal, window, global_tokens = request.causal, request.window, request.global_tokens
    structured = causal or window is not None
    at = _read(_by_query(request.query_positions)) if structured else None
    to = _read(_by_key(request.key_positions)) if structured else None
    valid = _read(_by_key(request.valid_keys()))
    mine, theirs = _read(_by_query(request.query_segment_ids)), _read(_by_key(request.key_segment_ids))
    given = _read(None if request.attention_mask is None else masks.explicit(request.attention_mask))
    if not structured and valid is None and mine is None and given is None:
        return None

    def may(b, h, q, k):
        query = q if at is None else at(b, h, q, k)
        key = k if to is None else to(b, h, q, k)
        seen = []
        if causal:
            seen.append(key <= query)
        if window is not None:
            near = query - key < window if causal else (query - key <= window) & (key - query <= window)
            seen.append(near | (query < global_tokens) | (key < global_tokens) if global_tokens else near)
        if valid is not None:
            seen.append(valid(b, h, q, k))
        if mine is not None and theirs is not None:
            seen.append(mine(b, h, q, k) == theirs(b, h, q, k))
        if given is not None:
            seen.append(given(b, h, q, k))
        return functools.reduce(operator.and_, seen)

    return may


def _by_query(x: Tensor | None) -> Tensor | None:
    """(batch or 1, queries) to (batch or 1, 1, queries, 1)."""
    return None if x is None else x[:, None, :, None]


def _by_key(x: Tensor | None) -> Tensor | None:
    """(batch or 1, keys) to (batch or 1, 1, 1, keys)."""
    return None if x is None else x[:, None, None, :]


def _block_mask(request: Request) -> Any:
    """torch's BlockMask, or None if each sees all; kept for the next call where no tensor has a part in it."""
    import torch

    mask_mod = _mask_mod(request)
    if mask_mod is None:
        return None
    told = request.padding_mask, request.query_segment_ids, request.attention_mask
    plain = type(request.query) in (torch.Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()
    if not plain or not request.aligned or any(x is not None for x in told):
        return _blocks(request, mask_mod)
    lengths = request.query.shape[1], request.key.shape[1]
    return _blocks_of_words(lengths, request.causal, request.window, request.global_tokens, request.query.device)


@functools.lru_cache(maxsize=64)
def _blocks_of_words(
    lengths: tuple[int, int], causal: bool, window: int | None, global_tokens: int, device: Any
) -> Any:
    import torch

    with torch.inference_mode(False):  # what is kept may take part in training later
        query, key = (torch.empty((1, length, 1, 1), device=device) for length in lengths)
        request = Request(query, key, key, causal=causal, window=window, global_tokens=global_tokens)
        return _blocks(request, _mask_mod(request))


def _blocks(request: Request, mask_mod: Any) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    settings = blocks.Settings(
        queries=SIZE,
        keys=SIZE,
        kv_heads=request.num_key_value_heads,
        groups=request.groups,
        softcap=None,
        dropout=0.0,
        causal=request.causal,
        window=request.window,
        global_tokens=request.global_tokens,
    )
    words = blocks.known(settings, request)
    needed, whole = blocks.some(settings, words), blocks.every(settings, words)  # (query blocks, key blocks, ...)
    if request.query.shape[1] % SIZE:  # torch masks what lies beyond the last query in blocks that it masks anyway
        last = masks.positions(whole.shape[0])[0][:, None, None, None] == whole.shape[0] - 1
        whole = whole & ~last
    whole = whole & needed
    listed = {}
    for name, x in {"kv": needed & ~whole, "full_kv": whole}.items():
        x = x.permute(2, 3, 0, 1).int()  # (batch or 1, heads or 1, query blocks, key blocks)
        for side, rows in {name: x, name.replace("kv", "q"): x.mT}.items():
            rows = rows.contiguous()  # as what is made of them: torch's programs read without regard to strides
            listed[f"{side}_num_blocks"] = rows.sum(-1).int()
            listed[f"{side}_indices"] = rows.argsort(dim=-1, descending=True, stable=True).int()
    return BlockMask(
        seq_lengths=(request.query.shape[1], request.key.shape[1]),
        BLOCK_SIZE=(SIZE, SIZE),
        mask_mod=mask_mod,
        **listed,
    )
