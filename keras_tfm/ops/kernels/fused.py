"""The backend's own fused attention: `jax.nn.dot_product_attention`, torch's `scaled_dot_product_attention`.

Both are told causality in words and given the scale explicitly. JAX's is cuDNN's on GPUs, where its conditions hold; left
to itself it would be XLA's, which keeps all scores, as it does on CPUs. TensorFlow has no such primitive.
"""

from __future__ import annotations

from keras import ops

from keras_tfm.ops import backend
from keras_tfm.ops.backend import NAME, Tensor
from keras_tfm.ops.kernels.request import Request


def refuses(request: Request) -> str | None:
    """Why the fused primitive cannot serve this request; None when it can."""
    if NAME == "tensorflow":
        return "TensorFlow has no fused attention primitive"
    if request.return_scores:
        return "fused kernels do not give scores"
    if request.dropout > 0.0:
        return "fused kernels have no seeded dropout"
    if request.softcap is not None:
        return "the fused primitive has no soft cap"
    if request.sinks is not None:
        return "the fused primitive has no sinks"
    if NAME == "jax" and request.global_tokens and request.aligned:
        return "JAX's fused primitive knows no global tokens beside a window"
    if NAME == "jax" and request.value.shape[-1] != request.key.shape[-1]:
        return "JAX's fused primitive wants values as wide as keys"
    if NAME == "jax" and backend.device(request.query) == "tpu":
        return "JAX's primitive fuses nothing on TPUs"
    if _by_cudnn(request):
        return _refused_by_cudnn(request)
    if NAME == "torch" and request.query.dtype != request.key.dtype:
        return "query and key differ in dtype"
    return None


def _by_cudnn(request: Request) -> bool:
    return NAME == "jax" and backend.device(request.query) == "gpu"


def _refused_by_cudnn(request: Request) -> str | None:
    """What JAX's call of cuDNN would raise for, and then some: its flash attention's conditions (JAX 0.10)."""
    import jax

    dtypes = {str(x.dtype) for x in (request.query, request.key, request.value)}
    if len(dtypes) > 1 or not dtypes <= {"float16", "bfloat16"}:
        return f"cuDNN's attention wants float16 or bfloat16 throughout; got {', '.join(sorted(dtypes))}"
    capability = str(getattr(jax.local_devices()[0], "compute_capability", "0.0"))
    widest = 256 if int(capability.split(".")[0]) >= 9 else 128
    width = request.query.shape[-1]
    if width % 8 or width > widest:
        return f"cuDNN's attention wants a head_dim that is a multiple of 8 and at most {widest} here; got {width}"
    if request.window is not None and request.aligned and not request.causal:
        return "cuDNN's windows look back alone"
    lengths = request.query.shape[1], request.key.shape[1]
    if (request.bias is not None or request.mask(structure=False) is not None) and any(n % 2 for n in lengths):
        return (
            f"cuDNN's attention wants even lengths beside a bias or a mask; got {lengths[0]} queries, {lengths[1]} keys"
        )
    return None


def is_linear(request: Request) -> bool:
    """Whether the primitive's memory is linear in length: torch's and cuDNN's, unless a mask is as large as scores.

    torch's reads a bias as it is, unless something else takes part in the mask.
    """
    if request.attention_mask is not None or request.query_segment_ids is not None:
        return False
    if request.bias is not None:
        plain = not request.causal and request.window is None and request.aligned and request.padding_mask is None
        return NAME == "torch" and plain
    if _by_cudnn(request):
        return request.aligned and request.padding_mask is None
    if NAME != "torch" or request.window is not None:
        return False
    return not request.causal or (request.aligned and request.padding_mask is None)


def _causal_in_words(request: Request, mask: Tensor | None) -> bool:
    """torch takes either `is_causal` or a mask; JAX takes both, and a window too."""
    return (
        request.causal
        and request.aligned
        and (NAME == "jax" or (mask is None and request.window is None and request.bias is None))
    )


def attend(request: Request) -> tuple[Tensor, None]:
    """Output as `reference.attend`; no weights."""
    structured = request.aligned and NAME == "jax"
    mask = request.mask(structure=False)
    in_words = _causal_in_words(request, mask)
    if not in_words and (request.causal or request.window is not None) and not structured:
        mask = request.mask()
    alive = None
    if request.may_have_empty_rows and mask is not None:
        full = request.mask() if (in_words or structured) else mask
        alive = ops.any(full, axis=-1)  # (batch, 1 or heads, 1 or queries)
        # A row without keys would be a softmax over nothing: let it see everything, then zero what it saw.
        mask = ops.logical_or(mask, ops.logical_not(alive)[..., None])
        alive = ops.cast(ops.swapaxes(alive, 1, 2)[..., None], request.query.dtype)  # (batch, queries, heads, 1)
    output = _jax(request, mask) if NAME == "jax" else _torch(request, mask, in_words)
    return (output if alive is None else output * alive), None


def _jax(request: Request, mask: Tensor | None) -> Tensor:
    import jax

    window = None
    if request.window is not None and request.aligned:
        window = (request.window - 1, 0) if request.causal else (request.window, request.window)
    return jax.nn.dot_product_attention(
        request.query,
        request.key,
        request.value,
        bias=request.bias,
        mask=mask,
        scale=request.scale,
        is_causal=request.causal and request.aligned,
        local_window_size=window,
        implementation="cudnn" if _by_cudnn(request) else None,
    )


def _torch(request: Request, mask: Tensor | None, in_words: bool) -> Tensor:
    import torch

    if request.bias is not None:
        bias = request.bias.to(request.query.dtype)
        bias = bias.reshape((1,) * (4 - bias.ndim) + tuple(bias.shape))
        mask = bias if mask is None else torch.where(mask, bias, torch.finfo(bias.dtype).min)
    if mask is not None and mask.shape[-2] == 1:
        mask = mask.expand(*mask.shape[:-2], request.query.shape[1], mask.shape[-1])
    output = torch.nn.functional.scaled_dot_product_attention(
        request.query.transpose(1, 2),  # (batch, heads, queries, head_dim)
        request.key.transpose(1, 2),
        request.value.transpose(1, 2),
        attn_mask=mask,
        is_causal=in_words,
        scale=request.scale,
        enable_gqa=request.groups > 1,
    )
    return output.transpose(1, 2)
