"""Contrastive search against its definition, computed from the uncached model, and against KerasHub's."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import fill_weights, numpy

import keras_tfm as tfm

from .models import PROMPTS, SIZES, model_of


def defined(model, prompt: list[int], count: int, candidates: int, alpha: float) -> list[int]:
    """Su et al. 2022, equation 5, with every hidden state from all tokens anew."""
    ids = list(prompt)

    def hidden_of(tokens):
        width = -(-len(tokens) // 32) * 32
        padded = np.zeros((1, width), "int32")
        padded[0, : len(tokens)] = tokens
        given = {"token_ids": padded, "padding_mask": np.arange(width)[None] < len(tokens)}
        return numpy(model.backbone(given))[0, : len(tokens)].astype(np.float64), numpy(model(given))[
            0, len(tokens) - 1
        ]

    for _ in range(count):
        hidden, logits = hidden_of(ids)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        best = []
        for token in np.argsort(-p)[:candidates]:
            new = hidden_of([*ids, int(token)])[0][-1]
            similar = hidden @ new / np.linalg.norm(hidden, axis=1) / np.linalg.norm(new)
            best.append(((1 - alpha) * p[token] - alpha * similar.max(), int(token)))
        ids.append(max(best)[1])
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", ["rotary, grouped", "windows in turn"])
def test_texts_are_as_defined(name):
    model = model_of(name)
    found = model.generate(PROMPTS, 8, penalty_alpha=0.6, top_k=4)
    for prompt, row in zip(PROMPTS, found, strict=True):
        assert row.tolist() == defined(model, prompt, 8, 4, 0.6)
    assert found[0].tolist() != model.generate(PROMPTS[0], 8).tolist()


def test_no_penalty_is_greedy_past_a_growing_cache():
    model = model_of("windows in turn")
    plain = model.generate(PROMPTS[0], 140).tolist()
    assert model.generate(PROMPTS[0], 140, penalty_alpha=0.0, top_k=3).tolist() == plain


def test_the_same_as_keras_hubs():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.GPT2Backbone(
        vocabulary_size=50,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=64,
        dropout=0.0,
    )
    theirs = hub.models.GPT2CausalLM(fill_weights(backbone, 0.4), preprocessor=None)
    theirs.compile(sampler=hub.samplers.ContrastiveSampler(k=4, alpha=0.5))
    prompt, length = PROMPTS[2], 24
    prompt = [token % 49 + 1 for token in prompt]
    ids = np.zeros((1, length), "int32")
    ids[0, : len(prompt)] = prompt
    given = {"token_ids": ids, "padding_mask": np.arange(length)[None] < len(prompt)}
    expected = numpy(theirs.generate(given, stop_token_ids=None)["token_ids"])[0, len(prompt) :]
    ours = tfm.from_keras_hub(theirs)
    found = ours.generate(prompt, length - len(prompt), sampler=hub.samplers.ContrastiveSampler(k=4, alpha=0.5))
    assert found.tolist() == expected.tolist()


def test_encoder_decoders_and_forbidden_tokens():
    sizes = {**SIZES, "num_layers": 1, "metadata": {"decoder_start_token_id": 2}}
    model = fill_weights(tfm.Seq2SeqLM(tfm.models.transformer(**sizes)), 0.4)
    plain = [row.tolist() for row in model.generate(PROMPTS, 9)]
    found = model.generate(PROMPTS, 9, penalty_alpha=0.0)
    assert [row.tolist() for row in found] == plain
    forbidden = sorted({token for row in plain for token in row})
    found = model.generate(PROMPTS, 9, penalty_alpha=0.7, forbidden_tokens=forbidden)
    assert not {token for row in found for token in row.tolist()} & set(forbidden)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"penalty_alpha": 1.2}, "from 0 to 1"),
        ({"penalty_alpha": 0.5, "top_k": 1}, "at least 2"),
        ({"penalty_alpha": 0.5, "temperature": 0.7}, "no draws"),
        ({"penalty_alpha": 0.5, "num_beams": 2}, "search of its own"),
    ],
    ids=str,
)
def test_bad_calls(options, words):
    with pytest.raises(ValueError, match=words):
        model_of("windows in turn").generate([1, 2], 5, **options)
