"""Speculative decoding: greedy text is the model's own, and draws are distributed as the model's own."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import BACKEND, fill_weights, numpy
from keras import ops

import keras_tfm as tfm
from keras_tfm.generation.decoder import decoder_of
from keras_tfm.generation.speculative import Lookup

from .models import MODELS, PROMPTS, SIZES, like, model_of
from .test_choosing import defined

DRAFTS = ["draft", "prompt_lookup"]


def draft_of(model, kind: str, noise: float = 0.02):
    return kind if kind == "prompt_lookup" else like(model, noise)


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("name", MODELS if BACKEND == "torch" else ["windows in turn"])
def test_greedy_text_is_the_models_own(name, kind):
    model = model_of(name)
    plain = model.generate(PROMPTS, 40, return_details=True)
    found = model.generate(PROMPTS, 40, draft_model=draft_of(model, kind), return_details=True)
    for one, other in zip(plain, found, strict=True):
        assert other.token_ids.tolist() == one.token_ids.tolist()
        np.testing.assert_allclose(other.log_probs, one.log_probs, atol=1e-4)
        assert other.reason == "length"
        assert one.rounds is None
        assert other.rounds < 40 if kind == "draft" else other.rounds <= 40


def test_a_draft_that_is_the_model_is_always_right():
    model = model_of("windows in turn")
    result = model.generate(PROMPTS[1], 41, draft_model=model, num_speculative_tokens=4, return_details=True)
    assert result.rounds == 8  # one token behind the prompt, then five a round


def test_penalties_bans_and_ends_hold_within_a_round():
    model = model_of("windows in turn")
    draft = like(model, 0.02)
    for options in (
        {
            "repetition_penalty": 1.6,
            "frequency_penalty": 0.4,
            "presence_penalty": 0.2,
            "forced_tokens": [7, None, 9, 11],
        },
        {"no_repeat_ngram": 2, "forbidden_tokens": [3, 4, 5]},
    ):
        plain = model.generate(PROMPTS[1], 30, **options).tolist()
        assert model.generate(PROMPTS[1], 30, draft_model=draft, **options).tolist() == plain
    plain = model.generate(PROMPTS[1], 30).tolist()
    stop = plain[11]
    for lengths, options in (
        (30, {"stop": stop}),
        (30, {"stop": stop, "min_new_tokens": 17}),
        (5, {}),
        (1, {}),
        (0, {}),
    ):
        expected = model.generate(PROMPTS[1], lengths, **options).tolist()
        assert model.generate(PROMPTS[1], lengths, draft_model=draft, **options).tolist() == expected


def test_up_to_the_last_position():
    """Proposals must not run past what learned positions there are, in the middle of a growing cache."""
    model = model_of("learned")
    prompt, count = PROMPTS[1], 400 - len(PROMPTS[1])
    plain = model.generate(prompt, count).tolist()
    found = model.generate(prompt, count, draft_model=like(model, 0.005), num_speculative_tokens=6)
    assert found.tolist() == plain


def test_a_prefix_and_a_stream_of_chunks():
    model = model_of("windows in turn")
    prefix = model.prefix(PROMPTS[1][:12])
    plain = model.generate(PROMPTS[1], 20).tolist()
    assert model.generate(PROMPTS[1][12:], 20, prefix=prefix, draft_model=like(model, 0.02)).tolist() == plain


@pytest.mark.parametrize("kind", DRAFTS)
def test_encoder_decoders(kind):
    sizes = {**SIZES, "num_layers": 1, "metadata": {"decoder_start_token_id": 2}}
    model = fill_weights(tfm.Seq2SeqLM(tfm.models.transformer(**sizes)), 0.4)
    draft = draft_of(model, kind, 0.05)
    plain = [row.tolist() for row in model.generate(PROMPTS, 14)]
    assert [row.tolist() for row in model.generate(PROMPTS, 14, draft_model=draft)] == plain


# Distribution -----------------------------------------------------------------------------------------------------------


def chain(seed: int) -> tfm.CausalLM:
    """A model whose every token depends on the one before alone: attention sees that one, at distance 0."""
    sizes = {**SIZES, "vocabulary_size": 7, "max_sequence_length": None, "num_layers": 1}
    model = tfm.CausalLM(tfm.models.gpt(**sizes, position="rotary", window=1))
    generator = np.random.default_rng(seed)
    model.set_weights([0.25 * generator.normal(size=w.shape).astype(w.dtype) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 1.3, "top_k": 5, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("kind", DRAFTS)
def test_draws_are_distributed_as_the_models(kind, settings):
    """One long text of a Markov chain: the transitions of every token against its probabilities, by chi-square."""
    stats = pytest.importorskip("scipy.stats")
    model = chain(0)
    draft = chain(1) if kind == "draft" else kind
    text = model.generate(
        [1], 2000, draft_model=draft, num_speculative_tokens=3, seed=5, **settings, return_details=True
    )
    assert 500 <= text.rounds < 1970  # some proposals were taken, and some were not
    ids = np.concatenate([[1], text.token_ids])
    logits = numpy(model(np.arange(7)[:, None]))[:, 0]
    law = defined(logits, settings)
    if kind == "draft":
        other = defined(numpy(draft(np.arange(7)[:, None]))[:, 0], settings)
        assert np.abs(law - other).max() > 0.1, "the draft must differ, or this shows nothing"
    statistic = freedom = 0.0
    for token in range(7):
        found = np.bincount(ids[1:][ids[:-1] == token], minlength=7)
        assert not found[law[token] == 0].any(), "a token that the settings rule out was drawn"
        possible = law[token] > 0
        expected = found.sum() * law[token][possible]
        statistic += ((found[possible] - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
        freedom += possible.sum() - 1
    assert stats.chi2.sf(statistic, freedom) > 1e-3
    again = model.generate([1], 50, draft_model=draft, num_speculative_tokens=3, seed=5, **settings)
    assert again.tolist() == text.token_ids[:50].tolist()


# Prompt look-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 3, [4, 5, 1]),
        ([9, 2, 3, 7, 7, 1, 2, 3, 8, 8, 6, 2, 3], 2, [8, 8]),  # the latest of two that match two tokens
        ([1, 2, 3, 8, 8, 9, 2, 3, 7, 7, 1, 2, 3], 2, [8, 8]),  # three that match are better than two
        ([5, 5, 5, 5, 5, 5], 2, [5, 5]),  # one that enough follows
        ([1, 2, 3, 4], 3, [-1, -1, -1]),  # nothing matches
        ([4, 1, 4], 3, [1, 4, -1]),  # and nothing is made up
    ],
    ids=str,
)
def test_what_is_looked_up(text, count, expected):
    sequence = np.full((1, 20), -1, "int32")
    sequence[0, 3 : 3 + len(text)] = text
    state = {"sequence": ops.convert_to_tensor(sequence), "filled": ops.convert_to_tensor(np.int32(3 + len(text)))}
    tokens, law, _ = Lookup().propose(state, {}, count, (), 10)
    assert numpy(tokens)[0].tolist() == expected
    np.testing.assert_array_equal(numpy(law), [np.eye(10)[t] if t >= 0 else np.zeros(10) for t in expected])


def test_text_that_repeats_is_looked_up():
    model = model_of("windows in turn")
    text = [7, 8, 9, 10] * 5
    result = model.generate(text, 30, draft_model="prompt_lookup", forced_tokens=[7, 8, 9, 10] * 7, return_details=True)
    assert result.token_ids.tolist()[:28] == [7, 8, 9, 10] * 7
    assert result.rounds <= 8


# Errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"draft_model": "lookup"}, "a model or 'prompt_lookup'"),
        ({"draft_model": 3}, "must be a CausalLM too; got int"),
        ({"num_speculative_tokens": 3}, "is of a draft_model"),
        ({"draft_model": "prompt_lookup", "num_speculative_tokens": 0}, "at least 1"),
        ({"draft_model": "prompt_lookup", "num_beams": 2}, "search of its own"),
        ({"draft_model": "prompt_lookup", "penalty_alpha": 0.5}, "no draft_model"),
        ({"draft_model": "prompt_lookup", "sampler": 3.5}, "get_next_token"),
    ],
    ids=str,
)
def test_bad_calls(options, words):
    with pytest.raises(ValueError, match=words):
        model_of("windows in turn").generate([1, 2], 5, **options)


def test_drafts_that_do_not_fit():
    model = model_of("windows in turn")
    sizes = {**SIZES, "vocabulary_size": 60}
    with pytest.raises(ValueError, match="share the vocabulary: its vocabulary_size is 60, the model's 61"):
        model.generate([1], 5, draft_model=tfm.CausalLM(tfm.models.gpt(**sizes)))
    short = tfm.CausalLM(tfm.models.gpt(**{**SIZES, "max_sequence_length": 10}))
    with pytest.raises(ValueError, match="at most max_sequence_length=10 tokens; 11 may be needed"):
        model.generate([1], 10, draft_model=short)
    sizes = {**SIZES, "num_layers": 1, "metadata": {"decoder_start_token_id": 2}}
    model, short = (
        tfm.Seq2SeqLM(tfm.models.transformer(**{**sizes, "max_sequence_length": length})) for length in (400, 10)
    )
    with pytest.raises(ValueError, match="at most max_sequence_length=10 tokens; 17 may be needed"):
        model.generate(PROMPTS[1], 5, draft_model=short)


def test_rounds_are_compiled_once():
    model, draft = model_of("windows in turn"), like(model_of("windows in turn"), 0.02)
    model.generate(PROMPTS[0], 12, draft_model=draft)
    traces = decoder_of(model).traces
    model.generate(PROMPTS[0][::-1], 11, draft_model=draft)
    assert decoder_of(model).traces == traces
