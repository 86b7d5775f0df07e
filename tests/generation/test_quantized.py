"""Weights and caches of fewer bits: what is written, what it costs in accuracy and bytes, and that files keep it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import fill_weights, numpy

import keras_tfm as tfm

from .models import PROMPTS, SIZES, model_of, naive

TEXT = np.random.default_rng(5).integers(1, 61, 60).tolist()
WIDTHS = {"hidden_dim": 64, "intermediate_dim": 128, "position": "rotary", "num_key_value_heads": 2}


def fresh() -> tfm.CausalLM:
    return fill_weights(tfm.CausalLM(tfm.models.gpt(**{**SIZES, **WIDTHS})), 0.15)


@pytest.mark.parametrize(("mode", "difference"), [("int8", 0.05), ("int4", 0.6)])
def test_quantized_models_write_reload_and_are_near(mode, difference, tmp_path):
    model = fresh()
    before = model.score([TEXT])[0].log_probs
    plain = model.generate(PROMPTS, 8)
    size = sum(np.asarray(numpy(variable)).nbytes for variable in model.variables)
    model.quantize(mode)
    assert sum(np.asarray(numpy(variable)).nbytes for variable in model.variables) < size / 2
    after = model.score([TEXT])[0].log_probs
    assert 0 < np.abs(after - before).mean() < difference
    texts = [row.tolist() for row in model.generate(PROMPTS, 8)]
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert text == naive(model, prompt, 8), "cached and batched is uncached, in few bits, too"
    assert all(len(row) == 8 for row in plain)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [row.tolist() for row in again.generate(PROMPTS, 8)] == texts


@pytest.mark.parametrize("name", ["rotary, grouped", "windows in turn"])
def test_an_int8_cache_is_near(name):
    model = model_of(name)
    plain = model.generate(PROMPTS, 30, return_details=True)
    forced = [result.token_ids.tolist() for result in plain]
    for prompt, ids, result in zip(PROMPTS, forced, plain, strict=True):
        found = model.generate(prompt, 30, cache_dtype="int8", forced_tokens=ids, return_details=True)
        assert 0 < np.abs(found.log_probs - result.log_probs).max() < 0.5
        assert np.abs(found.log_probs - result.log_probs).mean() < 0.05
    prefix = model.prefix(PROMPTS[1][:9], cache_dtype="int8")
    one = model.generate(PROMPTS[1][9:], 8, prefix=prefix).tolist()
    assert one == model.generate(PROMPTS[1], 8, cache_dtype="int8").tolist()
    speculated = model.generate(PROMPTS[1], 8, cache_dtype="int8", draft_model=model).tolist()
    assert speculated == one


def test_bytes_of_an_int8_cache_are_what_the_formula_says():
    cache = model_of("rotary, grouped").backbone.make_cache(2, 64, "int8")
    names = ("key", "value", "key_scale", "value_scale")
    found = sum(numpy(part["attention"][name]).nbytes for part in cache for name in names)
    layers, kv_heads, head_dim = 2, 2, 8
    assert found == 2 * 64 * 2 * layers * kv_heads * (head_dim + 4)


def test_bad_dtypes():
    model = model_of("rotary, grouped")
    with pytest.raises(ValueError, match="cache_dtype must be one of"):
        model.generate([1], 2, cache_dtype="int4")
    with pytest.raises(ValueError, match=r"give cache_dtype to model\.prefix"):
        model.generate([1], 2, cache_dtype="int8", prefix=model.prefix([1, 2]))
