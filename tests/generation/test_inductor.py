"""On torch, steps compiled by Inductor write what recorded steps write."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, fill_weights

import keras_tfm as tfm
from keras_tfm.generation import inductor
from keras_tfm.generation.decoder import decoder_of

from .models import MODELS, PROMPTS, SIZES, model_of

on_torch = pytest.mark.skipif(BACKEND != "torch", reason="elsewhere XLA compiles")


def same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@on_torch
def test_compiled_steps_write_the_same():
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**SIZES, **MODELS["windows in turn"])), 0.3)
    settings = dict(temperature=[0.0, 0.7, 1.0], top_k=9, seed=3, repetition_penalty=1.2)
    same(model.generate(PROMPTS, 20, jit_compile=True, **settings), model.generate(PROMPTS, 20, **settings))
    traces = decoder_of(model, True).traces
    for variable in model.weights:  # the compiled step holds no weight of its own
        variable.assign(-variable)
    after = model.generate(PROMPTS, 20, jit_compile=True, **settings)
    same(after, model.generate(PROMPTS, 20, **settings))
    assert decoder_of(model, True).traces == traces


@on_torch
def test_every_processor_writes_the_same(monkeypatch):
    found = []
    for slow in (False, True):  # products by MKL, and by what serves an AMD processor
        monkeypatch.setattr("keras_tfm.generation.products.is_slow_library", lambda slow=slow: slow)
        model = fill_weights(tfm.CausalLM(tfm.models.gpt(**{**SIZES, "num_layers": 1})), 0.3)
        found += [model.generate(2 * PROMPTS, 8, jit_compile=compiled) for compiled in (False, True)]
    for each in found[1:]:
        same(each, found[0])


@on_torch
@pytest.mark.parametrize(
    "way",
    [
        {"num_beams": 3, "length_penalty": 0.7},
        {"penalty_alpha": 0.5, "top_k": 3},
        {"draft_model": "prompt_lookup", "num_speculative_tokens": 2},
    ],
    ids=["beams", "contrastive", "speculative"],
)
def test_every_way_of_choosing_is_compiled(way, monkeypatch):
    made = []
    monkeypatch.setattr(
        "keras_tfm.generation.inductor.compiled",
        lambda module, examples, plain=inductor.compiled: made.append(plain(module, examples)) or made[-1],
    )
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**{**SIZES, "num_layers": 1})), 0.3)
    prompt = [PROMPTS[1]]
    same(model.generate(prompt, 8, jit_compile=True, **way), model.generate(prompt, 8, **way))
    assert made
    for each in made:  # nothing is around the compiled code
        assert each._run is each._code.current_callable


@on_torch
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("inside_first", [False, True])
def test_modes_of_torch_around_it_change_nothing(compiled, inside_first):
    import torch

    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**{**SIZES, "num_layers": 1})), 0.3)
    found = []
    for inside in (inside_first, not inside_first, inside_first):
        with torch.autocast("cpu", enabled=inside), torch.inference_mode(inside):
            found.append(model.generate(PROMPTS, 8, jit_compile=compiled, return_details=True))
    for row, plain in zip((*found[0], *found[2]), (*found[1], *found[1]), strict=True):
        np.testing.assert_array_equal(row.token_ids, plain.token_ids)
        np.testing.assert_array_equal(row.log_probs, plain.log_probs)


@on_torch
def test_a_sampler_is_not_compiled():
    class First:
        """A sampler of the user's own."""

        temperature, variables = 1.0, ()

        def get_next_token(self, probabilities):
            return keras.ops.argmax(probabilities, axis=-1)

    with pytest.raises(ValueError, match="no step of a sampler"):
        model_of("learned").generate(PROMPTS[0], 5, jit_compile=True, sampler=First())


@on_torch
def test_the_way_out_where_there_is_no_compiler(monkeypatch):
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda *arguments: 1 / 0)
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**SIZES)), 0.3)
    with pytest.raises(RuntimeError, match=r"C\+\+ compiler.*jit_compile=False"):
        model.generate(PROMPTS[0], 5, jit_compile=True)
    assert len(model.generate(PROMPTS[0], 5, jit_compile=False)) == 5


def test_what_jit_compile_may_be():
    with pytest.raises(ValueError, match="jit_compile must be"):
        model_of("learned").generate(PROMPTS[0], 5, jit_compile="yes")
    if BACKEND != "torch":
        with pytest.raises(ValueError, match="always compiled"):
            model_of("learned").generate(PROMPTS[0], 5, jit_compile=False)
