"""The block against an independent one in NumPy, and against torch's own with the same weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, normal, numpy

from keras_tfm.layers import TransformerDecoderBlock, TransformerEncoderBlock

X, CONTEXT = normal(2, 6, 8, seed=1), normal(2, 5, 12, seed=2)
PADDING = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]], bool)
CONTEXT_PADDING = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)

Weights = dict[str, np.ndarray]


# A transformer block, as one would write it down from the paper ------------------------------------------------------


def attend(w: Weights, x: np.ndarray, context: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """`allowed`: (batch, queries, keys)."""
    output = np.zeros((*x.shape[:2], *w["output/kernel"].shape[:2]))  # (batch, queries, heads, head_dim)
    groups = w["query/kernel"].shape[1] // w["key/kernel"].shape[1]
    for row in range(len(x)):
        for head in range(output.shape[2]):
            shared = head // groups
            query = x[row] @ w["query/kernel"][:, head] + w["query/bias"][head]
            key = context[row] @ w["key/kernel"][:, shared] + w["key/bias"][shared]
            value = context[row] @ w["value/kernel"][:, shared] + w["value/bias"][shared]
            scores = np.where(allowed[row], query @ key.T / math.sqrt(query.shape[-1]), -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            output[row, :, head] = weights / weights.sum(-1, keepdims=True) @ value
    return np.einsum("btnh,nhd->btd", output, w["output/kernel"]) + w["output/bias"]


def feed(w: Weights, x: np.ndarray, gated: bool) -> np.ndarray:
    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    up = x @ w["up/kernel"] + w["up/bias"]
    hidden = gelu(x @ w["gate/kernel"] + w["gate/bias"]) * up if gated else gelu(up)
    return hidden @ w["down/kernel"] + w["down/bias"]


def norm(w: Weights, x: np.ndarray) -> np.ndarray:
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * w["gamma"] + w["beta"]


def under(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix + "/"): value for name, value in weights.items() if name.startswith(prefix + "/")}


def by_hand(block, x, allowed, context=None, context_allowed=None) -> np.ndarray:
    """Pre-norm: x + f(norm(x)); post-norm: norm(x + f(x)); parallel: x + f(norm(x)) + g(norm'(x))."""
    w = {variable.path.split("/", 1)[1]: numpy(variable).astype(np.float64) for variable in block.weights}
    x = x.astype(np.float64)

    def residual(x, name, f):
        norms, placement = under(w, f"{name}_residual"), block.norm_placement
        placement = placement.get(name, "pre") if isinstance(placement, dict) else placement
        if placement == "none":
            return x + f(x)
        if placement == "post":
            return norm(under(norms, "output_norm"), x + f(x))
        return x + f(norm(under(norms, "input_norm"), x))

    def attention(x):
        return attend(under(w, "attention"), x, x, allowed)

    def feed_forward(x):
        return feed(under(w, "feed_forward"), x, block.gated)

    if block.parallel == "shared_norm":
        entered = norm(under(w, "attention_residual/input_norm"), x)
        return x + attention(entered) + feed_forward(entered)
    if block.parallel:
        return residual(x, "attention", attention) + residual(x, "feed_forward", feed_forward) - x
    x = residual(x, "attention", attention)
    if context is not None:
        x = residual(x, "cross_attention", lambda x: attend(under(w, "cross_attention"), x, context, context_allowed))
    return residual(x, "feed_forward", feed_forward)


def filled(block, *inputs: np.ndarray) -> Any:
    block(*inputs)
    return fill_weights(block)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_placement": "pre"},
        {"norm_placement": "post"},
        {"norm_placement": {"attention": "none"}},
        {"parallel": True},
        {"parallel": "shared_norm", "gated": True},
        {"num_key_value_heads": 1, "gated": True, "head_dim": 5},
    ],
    ids=str,
)
def test_encoder_block_is_the_paper(options):
    block = filled(TransformerEncoderBlock(2, 16, **options), X)
    allowed = np.broadcast_to(PADDING[:, None], (2, 6, 6))
    assert_close(block(X), by_hand(block, X, np.ones_like(allowed)), 2e-5)
    assert_close(numpy(block(X, padding_mask=PADDING))[PADDING], by_hand(block, X, allowed)[PADDING], 2e-5)


@pytest.mark.parametrize("placement", ["pre", "post", {"cross_attention": "none", "feed_forward": "post"}], ids=str)
def test_decoder_block_is_the_paper(placement):
    block = filled(TransformerDecoderBlock(2, 16, True, norm_placement=placement), X, CONTEXT)
    causal = np.broadcast_to(np.tri(6, dtype=bool), (2, 6, 6))
    context_allowed = np.broadcast_to(CONTEXT_PADDING[:, None], (2, 6, 5))
    expected = by_hand(block, X, causal, CONTEXT, context_allowed)
    assert_close(block(X, CONTEXT, context_padding_mask=CONTEXT_PADDING), expected, 2e-5)


def test_a_decoder_block_without_context_is_causal_self_attention():
    block = filled(TransformerDecoderBlock(2, 16), X)
    assert_close(block(X), by_hand(block, X, np.broadcast_to(np.tri(6, dtype=bool), (2, 6, 6))), 2e-5)


# torch's own ---------------------------------------------------------------------------------------------------------


def copy_into_torch(block, theirs) -> None:
    import torch

    w = {variable.path.split("/", 1)[1]: torch.tensor(numpy(variable)) for variable in block.weights}
    norms = [
        "attention_residual",
        *(["cross_attention_residual"] if hasattr(theirs, "multihead_attn") else []),
        "feed_forward_residual",
    ]
    with torch.no_grad():
        for ours, module in (
            ("attention", theirs.self_attn),
            ("cross_attention", getattr(theirs, "multihead_attn", None)),
        ):
            if module is not None:
                parts = [w[f"{ours}/{part}/kernel"].reshape(8, 8).T for part in ("query", "key", "value")]
                module.in_proj_weight.copy_(torch.cat(parts))
                module.in_proj_bias.copy_(
                    torch.cat([w[f"{ours}/{part}/bias"].reshape(8) for part in ("query", "key", "value")])
                )
                module.out_proj.weight.copy_(w[f"{ours}/output/kernel"].reshape(8, 8).T)
                module.out_proj.bias.copy_(w[f"{ours}/output/bias"])
        for linear, ours in ((theirs.linear1, "up"), (theirs.linear2, "down")):
            linear.weight.copy_(w[f"feed_forward/{ours}/kernel"].T)
            linear.bias.copy_(w[f"feed_forward/{ours}/bias"])
        for number, residual in enumerate(norms, 1):
            place = "output_norm" if block.norm_placement == "post" else "input_norm"
            getattr(theirs, f"norm{number}").weight.copy_(w[f"{residual}/{place}/gamma"])
            getattr(theirs, f"norm{number}").bias.copy_(w[f"{residual}/{place}/beta"])


@pytest.mark.skipif(BACKEND != "torch", reason="importing torch beside another backend takes seconds")
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_equals_torch(kind, placement):
    import torch

    cls = torch.nn.TransformerEncoderLayer if kind == "encoder" else torch.nn.TransformerDecoderLayer
    theirs = cls(
        8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=placement == "pre", device="cpu"
    ).train()
    x, context = torch.tensor(X), torch.tensor(CONTEXT[..., :8])
    if kind == "encoder":
        block = filled(TransformerEncoderBlock(2, 16, norm_placement=placement), X)
        copy_into_torch(block, theirs)
        ours = block(X, padding_mask=PADDING)
        expected = theirs(x, src_key_padding_mask=torch.tensor(~PADDING))
    else:
        block = filled(TransformerDecoderBlock(2, 16, True, norm_placement=placement), X, CONTEXT[..., :8])
        copy_into_torch(block, theirs)
        ours = block(X, CONTEXT[..., :8], context_padding_mask=CONTEXT_PADDING)
        later = torch.ones(6, 6, dtype=torch.bool).triu(1)
        expected = theirs(x, context, tgt_mask=later, memory_key_padding_mask=torch.tensor(~CONTEXT_PADDING))
    real = PADDING if kind == "encoder" else np.ones_like(PADDING)
    assert_close(numpy(ours)[real], expected.detach().numpy()[real], 1e-5)
