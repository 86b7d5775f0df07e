"""torch's FlexAttention: what `test_attention` asks of every kernel, lengths beyond a block, its lists of blocks, its choice.

Without a GPU: values and gradients are those of torch's dense computation on a CPU, which reads the same functions; the
lists of blocks are compared with torch's own, and read by the programs that torch's compiler makes for a CPU.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import keras
import numpy as np
import pytest
from helpers import BACKEND, FLOATS, assert_close, gradients, normal, numpy
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_tfm.ops import attention, backend, explain_kernel
from keras_tfm.ops.kernels import FLEX, LONG, Request, flex

torch_only = pytest.mark.skipif(BACKEND != "torch", reason="FlexAttention is torch's")
BATCH, LENGTH, HEADS, DIM = 2, 150, 4, 16  # two blocks, the second with a rest
LEFT = np.arange(LENGTH) >= np.array([[0], [LENGTH - 20]])  # a whole block of padding before the first token
SEGMENTS = np.minimum(np.arange(LENGTH) // np.array([[40], [140]]), 2).astype("int32")
RANDOM = np.random.default_rng(4)
MASK = RANDOM.random((BATCH, 1, LENGTH, LENGTH)) < 0.4
MASK[1, :, 7] = False
POSITIONS = np.arange(LENGTH)[None] + np.array([[50], [0]])
SLOTS = np.where(np.arange(LENGTH) < 140, np.roll(np.arange(LENGTH) + 40, 30), -1)[None]
SINKS = np.array([-1.0, 0.0, 0.5, 2.0], "float32")
CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "left padding": {"padding_mask": LEFT, "causal": True},
    "window, sinks": {"window": 17, "sinks": SINKS, "padding_mask": LEFT},
    "global": {"window": 5, "global_tokens": 3, "padding_mask": LEFT},
    "causal, window, segments": {"causal": True, "window": 30, "segment_ids": SEGMENTS, "scale": 0.7},
    "mask, cap": {"attention_mask": MASK, "softcap": 0.8},
    "a cache": {"query_positions": POSITIONS, "key_positions": SLOTS, "causal": True, "window": 60},
    "everything": {
        "causal": True,
        "window": 40,
        "global_tokens": 2,
        "padding_mask": LEFT,
        "segment_ids": SEGMENTS,
        "attention_mask": MASK,
        "scale": 0.3,
        "softcap": 1.5,
        "sinks": SINKS,
    },
}


def qkv(kv_heads: int = 2, length: int = LENGTH, dim: int = DIM) -> tuple[np.ndarray, ...]:
    return tuple(normal(BATCH, length, heads, dim, seed=seed) for seed, heads in enumerate((HEADS, kv_heads, kv_heads)))


def tensors(options: dict[str, Any]) -> dict[str, Any]:
    return {name: ops.convert_to_tensor(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}


def call(kernel: str, options: dict[str, Any], *extra: str):
    """Attention by query, key, value and the options that `extra` names."""
    given = tensors(options)
    return lambda query, key, value, *more: attention(
        query, key, value, kernel=kernel, **{**given, **dict(zip(extra, more, strict=True))}
    )


# Values and gradients ------------------------------------------------------------------------------------------------


@torch_only
@pytest.mark.usefixtures("flex_with_gradients")
@pytest.mark.parametrize("case", CASES)
def test_more_than_a_block(case):
    options = dict(CASES[case])
    arrays, extra = list(qkv(1 if case == "mask, cap" else 2)), []
    if "sinks" in options:
        extra.append("sinks")
        arrays.append(options.pop("sinks"))
    expected, wanted = gradients(call("reference", options, *extra), *arrays)
    output, found = gradients(call("flex", options, *extra), *arrays)
    assert_close(output, expected, 3e-6)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, 3e-5)
    if "padding_mask" in options and options.get("causal"):
        assert np.all(output[1, : LENGTH - 20] == 0)
        assert np.all(found[0][1, : LENGTH - 20] == 0)


@torch_only
@pytest.mark.usefixtures("flex_with_gradients")
@pytest.mark.parametrize(
    "shape", [(HEADS, LENGTH, LENGTH), (1, HEADS, 1, LENGTH), (BATCH, 1, LENGTH, 1), (1,)], ids=str
)
def test_a_bias_has_its_gradient(shape):
    options = {"causal": True, "padding_mask": LEFT, "softcap": 2.0}
    arrays = *qkv(), normal(*shape, seed=9)
    expected, wanted = gradients(call("reference", options, "bias"), *arrays)
    output, found = gradients(call("flex", options, "bias"), *arrays)
    assert_close(output, expected, 3e-6)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, 5e-5)


@torch_only
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype):
    arrays = [ops.cast(x, dtype) for x in qkv()]
    for options in (CASES["everything"], {**CASES["left padding"], "bias": normal(HEADS, 1, LENGTH)}):
        output = call("flex", options)(*arrays)
        assert keras.backend.standardize_dtype(output.dtype) == dtype
        assert_close(output, call("reference", options)(*arrays), FLOATS[dtype])


@torch_only
def test_shapes_alone():
    import torch

    query, key, value = (torch.empty(x.shape, device="meta") for x in qkv())
    assert call("flex", {"causal": True})(query, key, value[..., :7]).shape == (*query.shape[:3], 7)


# Programs ------------------------------------------------------------------------------------------------------------


@torch_only
def test_one_program_for_the_same_words():
    """Called again it is not compiled again, for lengths that change once; other numbers are other programs."""
    from torch._dynamo.utils import counters

    def compiled(**options) -> int:
        length = options.pop("length", 40)
        before = counters["stats"]["unique_graphs"]
        inputs = [ops.convert_to_tensor(x) for x in qkv(length=length)]
        padding = ops.convert_to_tensor(np.arange(length) < np.array([[length], [9]]))
        options = {"causal": True, "padding_mask": padding, **options}
        assert_close(
            attention(*inputs, kernel="flex", **options), attention(*inputs, kernel="reference", **options), 3e-6
        )
        return counters["stats"]["unique_graphs"] - before

    assert [compiled(window=n, scale=0.31) for n in (3, 5, 7, 3, 5)] == [1, 1, 1, 0, 0]
    assert [compiled(softcap=n, scale=0.31) for n in (3.0, 5.5, 7.5, 5.5)] == [1, 1, 1, 0]
    assert [compiled(scale=n) for n in (0.32, 0.33, 0.34)] == [1, 1, 1]
    assert sum(compiled(scale=0.35, length=n) for n in (200, 300, 171, 450)) == 2


@torch_only
def test_one_variant_too_many_is_an_error(monkeypatch):
    """torch would go on without compiling: all scores at once."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    monkeypatch.setattr(flex, "VARIANTS", 2)
    single, other, third = (
        [ops.cast(x, dtype) for x in qkv(length=20)] for dtype in ("float32", "bfloat16", "float16")
    )
    for arrays in (single, other):
        call("flex", {"scale": 0.41})(*arrays)
    with pytest.raises(FailOnRecompileLimitHit):
        call("flex", {"scale": 0.41})(*third)


@torch_only
def test_blocks_told_by_words_alone_are_kept():
    import torch

    inputs = [ops.convert_to_tensor(x) for x in qkv()]

    def lists(**options):
        request = Request(*inputs, **options)
        return flex._block_mask(request)

    assert lists() is None
    assert lists(causal=True) is lists(causal=True)
    assert lists(causal=True) is not lists(causal=True, window=9)
    assert lists(query_positions=ops.convert_to_tensor(POSITIONS)) is None
    padding = ops.convert_to_tensor(LEFT)
    assert lists(padding_mask=padding) is not lists(padding_mask=padding)
    with torch.inference_mode():
        kept = lists(causal=True, window=11)
    assert not kept.kv_indices.is_inference()


@torch_only
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "g++")), reason="torch compiles for CPUs by a C++ compiler")
def test_compiled_for_a_cpu(monkeypatch):
    """The one place where a program reads the lists of blocks: by itself, and as a part of something compiled."""
    import torch

    real = flex._program
    monkeypatch.setattr(flex, "_program", lambda words, dense: real(words, False))
    inputs = [ops.convert_to_tensor(x) for x in qkv()]
    options = {"causal": True, "window": 30, "softcap": 1.5, "padding_mask": LEFT, "segment_ids": SEGMENTS}
    with torch.no_grad():
        assert_close(call("flex", options)(*inputs), call("reference", options)(*inputs), 3e-6)
        options = {"window": 100, "causal": True, "scale": 0.3}
        whole = torch.compile(lambda *arrays: call("flex", options)(*arrays) * 2.0, fullgraph=True)
        assert_close(whole(*inputs) / 2.0, call("reference", options)(*inputs), 3e-6)


# Lists of blocks -----------------------------------------------------------------------------------------------------

SMALL = 22  # tokens, in blocks of 4
CHOICES = {
    "window": st.integers(1, 12),
    "padding_mask": st.sampled_from([np.arange(SMALL) < np.array([[SMALL], [9]]), RANDOM.random((BATCH, SMALL)) < 0.2]),
    "segment_ids": st.sampled_from(
        [np.arange(SMALL)[None] // np.array([[8], [5]]), RANDOM.integers(0, 2, (BATCH, SMALL))]
    ),
    "attention_mask": st.sampled_from(
        [np.kron(RANDOM.random((n, 6, 6)) < 0.5, np.ones((4, 4)))[:, :SMALL, :SMALL] > 0 for n in (1, BATCH)]
        + [RANDOM.random((BATCH, HEADS, SMALL, SMALL)) < 0.1]
    ),
    "query_positions": st.just(np.arange(SMALL)[None] + np.array([[9], [0]])),
    "key_positions": st.just(np.roll(np.arange(SMALL), 5)[None] - np.array([[0], [3]])),
}


def listed(block_mask: Any, name: str) -> np.ndarray:
    """A list of blocks as (batch or 1, heads or 1, rows, columns), boolean."""
    many, where = (numpy(getattr(block_mask, f"{name}_{part}")) for part in ("num_blocks", "indices"))
    found = np.zeros(where.shape, bool)
    for place in np.ndindex(many.shape):
        assert len(set(where[place])) == where.shape[-1]
        found[(*place, where[place][: many[place]])] = True
    return found


def both_lists(options: dict[str, Any]) -> tuple[Any, Any]:
    """Ours, and those that torch counts from all pairs of queries and keys."""
    from torch.nn.attention.flex_attention import create_block_mask

    options = tensors(options)
    segment_ids = options.pop("segment_ids", None)
    request = Request(
        *(ops.convert_to_tensor(x) for x in qkv(length=SMALL)),
        query_segment_ids=segment_ids,
        key_segment_ids=segment_ids,
        **options,
    )
    mask_mod = flex._mask_mod(request)
    theirs = create_block_mask(mask_mod, BATCH, HEADS, SMALL, SMALL, device="cpu", BLOCK_SIZE=4)
    return flex._blocks(request, mask_mod), theirs


def compared(options: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """Blocks that are visited and those that are not masked, ours and torch's."""
    ours, theirs = both_lists(options)
    for name in ("kv", "full_kv", "q", "full_q"):
        for part in ("num_blocks", "indices"):
            made, wanted = (getattr(x, f"{name}_{part}") for x in (ours, theirs))
            assert made.is_contiguous()
            assert made.dtype == wanted.dtype
            assert made.shape[2:] == wanted.shape[2:]
    for name in ("", "full_"):
        np.testing.assert_array_equal(np.swapaxes(listed(ours, f"{name}kv"), -1, -2), listed(ours, f"{name}q"))
    assert not np.any(listed(ours, "kv") & listed(ours, "full_kv"))
    return tuple(
        np.broadcast_to(x, (BATCH, HEADS, 6, 6))
        for each in (ours, theirs)
        for x in (listed(each, "kv") | listed(each, "full_kv"), listed(each, "full_kv"))
    )


def check_lists(options: dict[str, Any]) -> None:
    """No block is left out, and none left unmasked, that must not be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "SIZE", 4)
        visited, whole, needed, could_be_whole = compared(options)
    assert not np.any(needed & ~visited)
    assert not np.any(whole & ~could_be_whole)


@torch_only
@given(data=st.data())
def test_lists_of_any_combination(data):
    options = {name: data.draw(kind) for name, kind in CHOICES.items() if data.draw(st.booleans())}
    options["causal"] = data.draw(st.booleans()) or not options
    if "window" in options:
        options["global_tokens"] = data.draw(st.integers(0, 5))
    check_lists(options)


@torch_only
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("global_tokens", range(6))
def test_lists_of_windows(causal, global_tokens):
    for window in range(1, 14):
        check_lists({"causal": causal, "window": window, "global_tokens": global_tokens})


@torch_only
@pytest.mark.parametrize("length", [1, 3, 4, 5, 11])
def test_lists_of_segments(length):
    check_lists({"segment_ids": np.arange(SMALL)[None] // np.array([[length], [4]])})
    check_lists({"segment_ids": np.arange(SMALL)[None] // np.array([[4], [length]]), "causal": True})


@torch_only
@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"causal": True, "window": 5},
        {"window": 9},
        {"window": 9, "global_tokens": 4},
        {"causal": True, "padding_mask": np.arange(SMALL) < np.array([[SMALL], [9]])},
        {"segment_ids": np.arange(SMALL)[None] // np.array([[8], [4]])},
        {"attention_mask": np.kron(np.eye(6), np.ones((4, 4)))[None, :SMALL, :SMALL] > 0},
    ],
    ids=lambda options: "+".join(options),
)
def test_in_plain_cases_the_lists_are_torchs(options, monkeypatch):
    monkeypatch.setattr(flex, "SIZE", 4)
    visited, whole, needed, could_be_whole = compared(options)
    np.testing.assert_array_equal(visited, needed)
    np.testing.assert_array_equal(whole, could_be_whole)
    assert whole.any() or options.get("window") == 5
    assert not visited.all()


# Who serves ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU; what is computed is computed here."""
    monkeypatch.setattr(backend, "device", lambda x=None: "gpu")
    monkeypatch.setattr(flex, "_refused_by_triton", lambda: None)


def said(length: int, *, queries: int | None = None, dim: int = DIM, dtype: str = "float32", **options: Any) -> dict:
    query, key = (ops.zeros((2, n, 2, dim), dtype) for n in (queries or length, length))
    return explain_kernel(query, key, key, **tensors(options))


def serving(length: int, **options: Any) -> str:
    return next(name for name, text in said(length, **options).items() if text == "serves")


N = 512
TOKENS, ONES = np.ones((2, N), bool), np.ones((2, N), "int32")
SERVED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("fused", {}),
    "causal": ("fused", {"causal": True}),
    "padding": ("fused", {"padding_mask": TOKENS}),
    "bias": ("fused", {"bias": np.zeros((2, N, N), "float32")}),
    "causal, padding": ("flex", {"causal": True, "padding_mask": TOKENS}),
    "window": ("flex", {"window": 100}),
    "causal window": ("flex", {"window": 100, "causal": True}),
    "global": ("flex", {"window": 100, "global_tokens": 1}),
    "segments": ("flex", {"segment_ids": ONES}),
    "mask": ("flex", {"attention_mask": np.ones((2, N, N), bool)}),
    "causal bias": ("flex", {"bias": np.zeros((2, N, N), "float32"), "causal": True}),
    "cap": ("flex", {"softcap": 2.0, "causal": True}),
    "cap, bias": ("flex", {"softcap": 2.0, "bias": np.zeros((2, N, N), "float32")}),
    "sinks": ("flex", {"sinks": SINKS[:2], "causal": True}),
    "positions": ("flex", {"query_positions": np.arange(N)[None], "causal": True}),
    "bfloat16": ("flex", {"window": 100, "dtype": "bfloat16"}),
    "scores": ("dense", {"causal": True, "return_scores": True}),
    "dropout": ("dense", {"causal": True, "dropout": 0.1, "seed": 0}),
    "float64, window": ("fused", {"window": 100, "dtype": "float64"}),
    "narrow heads, window": ("fused", {"window": 100, "dim": 8}),
    "wide heads, window": ("fused", {"window": 100, "dim": 264}),
    "narrow heads, cap": ("dense", {"softcap": 2.0, "dim": 8}),
}


@torch_only
@pytest.mark.parametrize("case", SERVED)
def test_on_a_gpu(case, gpu):
    """torch's own primitive where it needs no large mask, then FlexAttention; dense where both refuse."""
    expected, options = SERVED[case]
    reasons = said(N, **options)
    assert reasons[expected] == "serves", reasons
    if expected == "dense":
        assert not {reasons["fused"], reasons["flex"]} & {"available", "serves"}


@torch_only
def test_few_tokens_and_few_queries_are_not_compiled_for(gpu):
    least = FLEX["torch", "gpu"]
    assert serving(least, causal=True, softcap=2.0) == "flex"
    assert serving(least - 1, causal=True, softcap=2.0) == "dense"
    assert serving(least - 1, causal=True, padding_mask=TOKENS[:, 1:]) == "fused"
    positions = np.full((1, 1), 4000)
    for queries in (1, least - 1):
        at = np.repeat(positions, queries, axis=1)
        assert serving(4096, queries=queries, query_positions=at, causal=True) == "fused"
        assert serving(4096, queries=queries, query_positions=at, causal=True, softcap=1.0) == "dense"


@torch_only
def test_long_sequences_without_triton_come_in_blocks(gpu, monkeypatch):
    long = LONG["torch", "gpu"]
    options = {"causal": True, "padding_mask": np.ones((2, long), bool)}
    assert serving(long, **options) == "flex"
    monkeypatch.setattr(flex, "_refused_by_triton", lambda: "no Triton")
    assert serving(long, **options) == "blockwise"
    assert serving(N, causal=True, padding_mask=TOKENS) == "fused"
    assert "no Triton" in said(N, causal=True)["flex"]


@torch_only
def test_without_a_compiler_it_would_hold_all_scores(gpu):
    import torch

    with torch._dynamo.config.patch(disable=True):
        assert "torch.compile, which is turned off" in said(N, causal=True)["flex"]
        assert serving(N, causal=True, padding_mask=TOKENS) == "fused"


@torch_only
def test_sinks_within_what_is_compiled_for_a_cpu(monkeypatch):
    import torch

    inputs = [ops.convert_to_tensor(x) for x in qkv(length=20)]
    sinks = ops.convert_to_tensor(SINKS)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert "gives no logsumexp" in explain_kernel(*inputs, sinks=sinks)["flex"]
    assert explain_kernel(*inputs)["flex"] == "available"


@torch_only
@pytest.mark.parametrize("option", ["padding_mask", "softcap", "sinks"])
def test_what_it_serves_by_itself_is_the_reference(option, gpu, monkeypatch):
    monkeypatch.setattr(flex, "_on_cpu", lambda request: True)
    options = {"causal": True, option: {"padding_mask": TOKENS, "softcap": 1.0, "sinks": SINKS}[option]}
    inputs = [ops.convert_to_tensor(x) for x in qkv(length=N)]
    assert explain_kernel(*inputs, **tensors(options))["flex"] == "serves"
    assert_close(call("auto", options)(*inputs), call("reference", options)(*inputs), 3e-6)


@torch_only
def test_it_becomes_a_part_of_what_is_compiled(gpu, monkeypatch):
    """As in a model with jit_compile=True: chosen and traced without a break."""
    import torch

    def no_program(*arguments):
        raise AssertionError("a program within a program")

    monkeypatch.setattr(flex, "_program", no_program)
    options = {"causal": True, "padding_mask": TOKENS, "sinks": SINKS}
    inputs = [ops.convert_to_tensor(x) for x in qkv(length=N)]
    by_itself = call("auto", options)
    whole = torch.compile(lambda *arrays: by_itself(*arrays) * 2.0, fullgraph=True, backend="eager")
    assert_close(whole(*inputs) / 2.0, call("reference", options)(*inputs), 3e-6)
    with pytest.raises(AssertionError, match="a program within"):
        by_itself(*inputs)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scores": ({"return_scores": True}, "does not give scores"),
    "dropout": ({"dropout": 0.1, "seed": 0}, "no dropout"),
    "float64": ({"dtype": "float64"}, "float16, bfloat16 or float32; got float64"),
    "narrow": ({"dim": 8}, "heads of 16 to 256; got head_dim 8, value_dim 8"),
    "wide": ({"dim": 300}, "heads of 16 to 256; got head_dim 300, value_dim 300"),
}


@torch_only
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_on_a_gpu(case, gpu):
    options, reason = REFUSED[case]
    assert reason in said(20, **options)["flex"]


@torch_only
def test_refusals_everywhere():
    import torch

    inputs = [ops.convert_to_tensor(x) for x in qkv(length=20)]
    assert explain_kernel(*inputs)["flex"] == "available"
    half = inputs[1].half()
    assert "one dtype throughout; got float16, float32" in explain_kernel(inputs[0], half, half)["flex"]
    with backend.recording():
        assert "recorded one by one" in explain_kernel(*inputs)["flex"]
    assert "at least one of everything" in explain_kernel(*(x[:0] for x in inputs))["flex"]
    learned = ops.convert_to_tensor(SINKS).requires_grad_()
    for arrays, options in (([x.requires_grad_() for x in qkv_of_torch()], {}), (inputs, {"sinks": learned})):
        assert "no backward pass on a CPU" in explain_kernel(*arrays, **options)["flex"]
        with pytest.raises(ValueError, match=r"kernel='flex' cannot serve this call: .* no backward pass on a CPU"):
            attention(*arrays, kernel="flex", **options)
    with torch.no_grad():
        assert explain_kernel(*inputs, sinks=learned)["flex"] == "available"


def qkv_of_torch() -> list[Any]:
    return [ops.convert_to_tensor(x) + 0.0 for x in qkv(length=20)]


@pytest.mark.skipif(BACKEND == "torch", reason="served there")
def test_it_is_torchs():
    inputs = [ops.convert_to_tensor(x) for x in qkv(length=6)]
    assert explain_kernel(*inputs)["flex"] == "FlexAttention is torch's"
    with pytest.raises(ValueError, match="kernel='flex' cannot serve this call: FlexAttention is torch's"):
        attention(*inputs, kernel="flex")
