"""Beam search against `transformers`' on models that both have."""

from __future__ import annotations

import numpy as np
import pytest

import keras_tfm as tfm

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SETTINGS = [
    {},
    {"length_penalty": 2.0},
    {"length_penalty": 0.0, "early_stopping": "never"},
    {"length_penalty": -1.0},
    {"early_stopping": True},
    {"early_stopping": "never", "length_penalty": 1.5},
    {"no_repeat_ngram": 2, "repetition_penalty": 1.3, "min_new_tokens": 4},
]
THEIRS = {"no_repeat_ngram": "no_repeat_ngram_size"}
END = 7


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A small GPT-2 with margins that rounding does not cross, theirs and ours."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=19, n_embd=16, n_layer=2, n_head=2, n_positions=64, pad_token_id=0)
    config.eos_token_id = config.bos_token_id = END
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.4)
    theirs.save_pretrained(folder)
    return theirs, tfm.CausalLM.from_pretrained(folder)


def generated(theirs, prompts, mask=None, **options):
    """Rows of theirs, without prompt and padding."""
    options = {THEIRS.get(name, name): value for name, value in options.items()}
    mask = torch.ones_like(prompts) if mask is None else mask
    ids = theirs.generate(
        prompts, attention_mask=mask, return_dict_in_generate=True, output_scores=True, pad_token_id=0, **options
    )
    rows = ids.sequences[:, prompts.shape[1] :].tolist()
    rows = [row[: row.index(END) + 1] if END in row else row for row in rows]
    return rows, getattr(ids, "sequences_scores", None)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_hypotheses_and_scores(both, settings):
    theirs, ours = both
    prompts = np.random.default_rng(3).integers(1, 19, (3, 5))
    rows, scores = generated(
        theirs, torch.from_numpy(prompts), max_new_tokens=14, num_beams=3, num_return_sequences=2, **settings
    )
    results = ours.generate(prompts, 14, num_beams=3, num_return_sequences=2, return_details=True, **settings)
    flat = [result for row in results for result in row]
    assert [result.token_ids.tolist() for result in flat] == rows
    np.testing.assert_allclose([result.score for result in flat], scores.numpy(), rtol=2e-5)
    for result in flat:
        if not {"no_repeat_ngram", "repetition_penalty"} & set(settings):
            length = len(result.token_ids) ** settings.get("length_penalty", 1.0)
            assert result.score == pytest.approx(result.log_prob / length, rel=1e-5)


def test_greedy_is_theirs_and_one_beam(both):
    theirs, ours = both
    prompts = np.random.default_rng(4).integers(1, 19, (3, 5))
    rows, _ = generated(theirs, torch.from_numpy(prompts), max_new_tokens=14, do_sample=False)
    assert [row.tolist() for row in ours.generate(prompts, 14)] == rows
    assert [row.tolist() for row in ours.generate(prompts, 14, num_beams=1)] == rows


def test_ragged_prompts_are_searched_as_alone(both):
    _, ours = both
    prompts = [[1, 2, 3], [4, 5, 6, 8, 9, 10, 11], [12]]
    together = ours.generate(prompts, 10, num_beams=3)
    for prompt, row in zip(prompts, together, strict=True):
        assert ours.generate(prompt, 10, num_beams=3).tolist() == row.tolist()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences must be from 1 to num_beams=2"),
        ({"num_beams": 2, "temperature": 1.0}, "draw"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping"),
        ({"num_beams": 2, "max_new_tokens": 0}, "at least 1"),
        ({"length_penalty": 2.0}, "length_penalty"),
    ],
    ids=str,
)
def test_bad_calls(both, options, words):
    with pytest.raises(ValueError, match=words):
        both[1].generate([1, 2], **options)


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_encoder_decoders_write_what_theirs_do(name, tmp_path):
    torch.manual_seed(1)
    common = dict(vocab_size=23, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, d_model=16)
    if name == "T5":
        config = transformers.T5Config(**common, num_layers=2, num_heads=2, d_kv=8, d_ff=24)
    else:
        layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2)
        config = transformers.BartConfig(
            **common, **layers, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40, bos_token_id=2
        )
        config.forced_eos_token_id = 1
    theirs = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.5)
    theirs.save_pretrained(tmp_path)
    ours = tfm.Seq2SeqLM.from_pretrained(tmp_path)
    sources = np.random.default_rng(0).integers(3, 23, (3, 9))
    mask = np.arange(9)[None] < np.array([[9], [5], [7]])
    for settings in ({}, {"num_beams": 3}):
        expected = theirs.generate(
            torch.from_numpy(np.where(mask, sources, 0)),
            attention_mask=torch.from_numpy(mask.astype("int64")),
            max_new_tokens=12,
            do_sample=False,
            **settings,
        )[:, 1:].tolist()
        expected = [row[: row.index(1) + 1] if 1 in row else row for row in expected]
        rows = ours.generate({"token_ids": sources, "padding_mask": mask}, 12, **settings)
        assert [row.tolist() for row in rows] == expected
