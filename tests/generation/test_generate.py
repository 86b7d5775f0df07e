"""Cached, batched, compiled generation against the model run anew for every token."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND, fill_weights, numpy
from keras import ops

import keras_tfm as tfm
from keras_tfm.generation import program
from keras_tfm.generation.batch import Batch
from keras_tfm.generation.decoder import decoder_of, while_going
from keras_tfm.generation.program import to_tensors
from keras_tfm.generation.request import Request
from keras_tfm.ops import kv_cache, tiles
from keras_tfm.ops.backend import device

from .models import MODELS, PROMPTS, SIZES, VOCABULARY, like, logits_of, model_of, naive


@pytest.mark.parametrize("name", MODELS)
def test_a_ragged_batch_is_written_as_the_model_would_without_a_cache(name):
    model = model_of(name)
    results = model.generate(PROMPTS, 12, return_details=True)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.token_ids.tolist() == naive(model, prompt, 12)
        assert result.reason == "length"
        ids = prompt + result.token_ids.tolist()
        for place in (0, 5, 11):  # and not by luck: the numbers are the model's
            logits = logits_of(model, ids[: len(prompt) + place]).astype(np.float64)
            log_prob = logits[result.token_ids[place]] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            assert abs(log_prob - result.log_probs[place]) < 1e-4


def test_sixty_four_prompts_are_written_as_each_alone():
    model = model_of("windows in turn")
    prompts = [np.random.default_rng(n).integers(1, VOCABULARY, 1 + n % 40).tolist() for n in range(64)]
    together = model.generate(prompts, 6, return_details=True)
    for prompt, result in zip(prompts, together, strict=True):
        alone = model.generate(prompt, 6, return_details=True)
        assert result.token_ids.tolist() == alone.token_ids.tolist()
        np.testing.assert_allclose(result.log_probs, alone.log_probs, atol=1e-4)


def test_caches_grow_without_a_seam():
    """Past several capacities, a window's ring included."""
    model = model_of("windows in turn")
    long = model.generate(PROMPTS[0], 270)
    assert long.tolist()[:12] == naive(model, PROMPTS[0], 12)
    for cut in (124, 190, 260):
        assert int(logits_of(model, PROMPTS[0] + long.tolist()[:cut]).argmax()) == long[cut]


@pytest.mark.parametrize("name", ["rotary, grouped", "relative, sinks", "windows in turn"])
def test_rows_in_tiles_are_written_as_without(name, monkeypatch):
    """Past the slots that tiles are for, too, where they are laid out as the others are again."""
    monkeypatch.setattr(tiles, "LEAST", 1)
    monkeypatch.setattr(tiles, "MOST", 128)
    model = like(model_of(name), 0.0)  # whose programs are made here
    batch = Request(model, PROMPTS, 115).batch()
    in_tiles = [kv_cache.is_tiled(part["attention"]) for part in batch.state["cache"]]
    windows = [block.attention.window for block in model.backbone.blocks]
    assert in_tiles == [BACKEND != "torch" and device() == "cpu" and window is None for window in windows]
    found = model.generate(PROMPTS, 115, return_details=True)
    monkeypatch.setattr(tiles, "MOST", 0)
    for result, expected in zip(found, model_of(name).generate(PROMPTS, 115, return_details=True), strict=True):
        assert result.token_ids.tolist() == expected.token_ids.tolist()
        np.testing.assert_allclose(result.log_probs, expected.log_probs, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3, "num_return_sequences": 2}, {"penalty_alpha": 0.6, "top_k": 3}], ids=str
)
def test_searches_in_tiles_find_the_same(options, monkeypatch):
    monkeypatch.setattr(tiles, "LEAST", 1)
    found = like(model_of("rotary, grouped"), 0.0).generate(PROMPTS, 8, **options)
    monkeypatch.setattr(tiles, "MOST", 0)
    expected = model_of("rotary, grouped").generate(PROMPTS, 8, **options)
    assert [np.asarray(x).tolist() for x in keras.tree.flatten(found)] == [
        np.asarray(x).tolist() for x in keras.tree.flatten(expected)
    ]


def test_a_length_in_a_known_bucket_compiles_nothing():
    model = model_of("rotary, grouped")
    model.generate([1, 2, 3], 12)
    traces = decoder_of(model).traces
    for length in (1, 7, 16):
        model.generate(list(range(1, length + 1)), 9)
    assert decoder_of(model).traces == traces
    model.generate(list(range(1, 20)), 9)
    assert decoder_of(model).traces == traces + (BACKEND != "torch")  # prompts are not compiled there


def test_every_form_of_prompt():
    model = model_of("rotary, grouped")
    expected = model.generate(PROMPTS[0], 5).tolist()
    padded = np.zeros((2, 6), "int32")
    padded[0, :3] = padded[1, 3:] = PROMPTS[0]
    mask = padded > 0
    assert [row.tolist() for row in model.generate({"token_ids": padded, "padding_mask": mask}, 5)] == [expected] * 2
    assert [row.tolist() for row in model.generate(np.array([PROMPTS[0]]), 5)] == [expected]
    assert model.generate(np.array(PROMPTS[0]), 5).tolist() == expected
    assert [row.tolist() for row in model.generate(ops.convert_to_tensor([PROMPTS[0]]), 5)] == [expected]


@pytest.mark.parametrize("options", [{}, {"draft_model": "prompt_lookup", "num_speculative_tokens": 2}])
def test_log_probabilities_are_kept_only_for_details(monkeypatch, options):
    model, states, advance = model_of("learned"), [], Batch.advance
    monkeypatch.setattr(Batch, "advance", lambda self, steps: states.append(set(self.state)) or advance(self, steps))
    plain = model.generate(PROMPTS, 7, **options)
    assert states
    assert not any("log_probs" in state for state in states)
    states.clear()
    details = model.generate(PROMPTS, 7, return_details=True, **options)
    assert all("log_probs" in state for state in states)
    for ids, result in zip(plain, details, strict=True):
        np.testing.assert_array_equal(ids, result.token_ids)
        assert result.log_probs.shape == ids.shape


def test_lengths_and_ends_of_their_own():
    model = model_of("rotary, grouped")
    plain = [row.tolist() for row in model.generate(PROMPTS, 10)]
    results = model.generate(PROMPTS, [2, 10, 0], return_details=True)
    assert [len(result.token_ids) for result in results] == [2, 10, 0]
    stop = plain[1][4]
    ended = model.generate(PROMPTS, 10, stop=stop, return_details=True)
    for row, result in zip(plain, ended, strict=True):
        cut = row.index(stop) + 1 if stop in row else 10
        assert result.token_ids.tolist() == row[:cut]
        assert result.reason == ("end" if stop in row else "length")
    late = model.generate(PROMPTS[1], 10, stop=stop, min_new_tokens=7)
    assert stop not in late[:7].tolist()


def test_draws_are_reproduced_and_do_not_depend_on_the_batch():
    model = model_of("rotary, grouped")
    options = dict(temperature=1.5, top_k=20, top_p=0.95, seed=3)
    first = [row.tolist() for row in model.generate(PROMPTS, 10, **options)]
    assert [row.tolist() for row in model.generate(PROMPTS, 10, **options)] == first
    assert model.generate(PROMPTS[0], 10, **options).tolist() == first[0]
    assert [row.tolist() for row in model.generate(PROMPTS, 10, **{**options, "seed": 4})] != first
    several = model.generate(PROMPTS[0], 10, num_return_sequences=3, **options)
    assert len({tuple(row.tolist()) for row in several}) == 3


def test_forced_and_forbidden_tokens_and_processors():
    model = model_of("rotary, grouped")
    plain = model.generate(PROMPTS[0], 6).tolist()
    forced = model.generate(PROMPTS[0], 6, forced_tokens=[9, None, 8]).tolist()
    assert (forced[0], forced[2]) == (9, 8)
    assert plain[0] not in model.generate(PROMPTS[0], 6, forbidden_tokens=[plain[0]]).tolist()

    def only_even(token_ids, logits):
        return ops.where(ops.arange(VOCABULARY) % 2 == 0, logits, -1e9)

    assert not any(token % 2 for token in model.generate(PROMPTS[0], 6, processors=[only_even]).tolist())


def test_training_between_calls_is_seen():
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**SIZES, position="rotary")), 0.3)
    before = model.generate(PROMPTS[0], 8).tolist()
    traces = decoder_of(model).traces
    model.compile(keras.optimizers.SGD(3.0))
    model.fit(np.random.default_rng(0).integers(1, 60, (4, 12)).astype("int32"), verbose=0)
    after = model.generate(PROMPTS[0], 8).tolist()
    assert after == naive(model, PROMPTS[0], 8)
    assert after != before
    assert decoder_of(model).traces == traces


def test_a_prefix_is_read_once():
    model = model_of("rotary, grouped")
    prefix = model.prefix(PROMPTS[1][:10])
    rest = [PROMPTS[1][10:], [5], [1, 2, 3, 4]]
    results = model.generate(rest, 8, prefix=prefix)
    for ids, row in zip(rest, results, strict=True):
        assert row.tolist() == naive(model, PROMPTS[1][:10] + ids, 8)
    assert model.generate([5], 8, prefix=prefix).tolist() == results[1].tolist()  # unchanged by its use
    assert model.generate([7], 4, prefix=model.prefix([6])).tolist() == naive(model, [6, 7], 4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="where large tensors of a loop are variables")
def test_a_loop_goes_on_in_the_memory_of_the_last_call(monkeypatch):
    monkeypatch.setattr(program, "HELD", 1)
    model = like(model_of("rotary, grouped"), 0.0)  # whose programs are made here
    prefix = model.prefix(PROMPTS[1][:10])
    batches = [Request(model, prompt, 40, prefix=prefix).batch() for prompt in ([5], [7])]

    def memory():
        arrays = keras.tree.flatten([batch.state["cache"] for batch in batches])
        return [array.read_value()._numpy().__array_interface__["data"][0] for array in arrays]

    for batch in batches:
        batch.advance(3)
        batch.advance(3)
    before = memory()
    for batch in batches:
        batch.advance(3)
    assert memory() == before
    for first, batch in zip((5, 7), batches, strict=True):
        batch.advance(3)
        assert batch.tokens()[0].tolist() == naive(model, [*PROMPTS[1][:10], first], 12)
    assert len(model.generate([5], 4, prefix=prefix)) == 4  # the prefix is nobody's loop's


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_models_of_narrow_dtypes_write(policy):
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**SIZES, position="rotary", dtype=policy)), 0.3)
    result = model.generate(PROMPTS[1], 6, return_details=True)
    expected = model.score(PROMPTS[1] + result.token_ids.tolist()).log_probs[-6:]
    np.testing.assert_allclose(result.log_probs, expected, atol=0.3)
    assert (result.log_probs > -3).all()  # the likeliest of 61, whatever the rounding


def test_large_weights_are_multiplied_in_parts(monkeypatch):
    """On XLA and a CPU, by which the text is the same; values in tiles, too, for which smaller heads are too narrow."""
    monkeypatch.setattr(tiles, "LEAST", 1)
    sizes = {**SIZES, "hidden_dim": 256, "intermediate_dim": 1024, "num_layers": 1}
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(**sizes)), 0.3)
    assert model.generate(PROMPTS[2], 6).tolist() == naive(model, PROMPTS[2], 6)
    together = model.generate([PROMPTS[2], PROMPTS[0]], 6)  # whose weights are left factors
    assert together[0].tolist() == naive(model, PROMPTS[2], 6)
    assert together[1].tolist() == naive(model, PROMPTS[0], 6)


def test_scores_are_the_uncached_models():
    model = model_of("rotary, grouped")
    for prompt, result in zip(PROMPTS, model.score(PROMPTS), strict=True):
        logits = numpy(model(np.array([prompt])))[0, :-1].astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = log_probs[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(result.log_probs, expected, atol=2e-5)
        assert result.perplexity == pytest.approx(np.exp(-expected.mean()), rel=1e-4)


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        (list(range(1, 60)) * 7, {}, "413 tokens.*max_sequence_length=400"),
        ([1, 2], {"max_new_tokens": 399}, "max_new_tokens=399 may follow.*at most max_sequence_length=400"),
        ([], {}, "no prompts"),
        ([[]], {}, "empty"),
        ([[1, 99]], {}, "vocabulary of 61"),
        (["a", 3], {}, "strings, or token ids"),
        ("text", {}, "no tokenizer"),
        ([1], {"stop": 2.5}, "stop must be strings or token ids"),
        ([1], {"stop": "x"}, "no tokenizer"),
        ([1], {"max_new_tokens": -1}, "max_new_tokens"),
        ([1], {"max_new_tokens": 2, "min_new_tokens": 3}, "exceeds max_new_tokens=2"),
        ([1], {"num_return_sequences": 2}, "same text each time"),
        ([1], {"top_pp": 0.5}, "top_p"),
    ],
    ids=str,
)
def test_bad_calls(prompts, options, words):
    with pytest.raises(ValueError, match=words):
        model_of("learned").generate(prompts, **options)


@pytest.mark.skipif(BACKEND != "jax", reason="reads what XLA makes of the loop, which JAX shows")
@pytest.mark.parametrize(("rows", "in_tiles"), [(1, False), (2, False), (2, True)])
def test_the_loop_overwrites_its_caches_in_place(rows, in_tiles, monkeypatch):
    """A copy of a layer's cache in every step costs as much as reading its weights."""
    import re

    import jax

    model = model_of("rotary, grouped")
    if in_tiles:
        monkeypatch.setattr(tiles, "LEAST", 1)
        model = fill_weights(tfm.CausalLM(tfm.models.gpt(**{**SIZES, "hidden_dim": 256}, position="rotary")), 0.3)
    batch = Request(model, PROMPTS[:rows], 20).batch()
    assert [kv_cache.is_tiled(part["attention"]) for part in batch.state["cache"]] == [in_tiles] * 2
    until = np.int32(10)

    def loop(state, arrays, until):
        return while_going(lambda state: batch.once(state, arrays, None), state, until, batch.once.decoders)

    text = jax.jit(loop).lower(batch.state, to_tensors(batch.arrays), until).compile().as_text()
    body = re.search(r" while\(.*body=%?([\w.-]+)", text).group(1)
    body = text[re.search(rf"^%?{re.escape(body)} ", text, re.MULTILINE).start() :]
    body = body[: body.index("\n}")]
    copies = re.findall(r"= f32\[([\d,]+)\]\S* copy\(", body)
    elements = batch.state["cache"][0]["attention"]["key"].size
    large = [shape for shape in copies if np.prod([int(size) for size in shape.split(",")]) >= elements]
    assert " copy(" in body, "XLA writes them another way now; look again"
    assert not large


@pytest.mark.skipif(BACKEND != "jax", reason="JAX alone says where arrays lie")
@pytest.mark.parametrize("name", ["rotary, grouped", "windows in turn"])
def test_a_call_goes_on_in_the_memory_of_the_last_one(name):
    """Copying the caches for every few tokens of a stream would cost as much as attending to them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of memory that could not be taken
        batch = Request(model_of(name), PROMPTS, 40).batch()
        batch.advance(5)
        before = [part["attention"][name] for part in batch.state["cache"] for name in ("key", "value")]
        places = [array.unsafe_buffer_pointer() for array in before]
        batch.advance(10)
    after = [part["attention"][name] for part in batch.state["cache"] for name in ("key", "value")]
    assert [array.unsafe_buffer_pointer() for array in after] == places
    assert all(array.is_deleted() for array in before)


def test_bytes_of_a_cache_are_what_the_formula_says():
    cache = model_of("rotary, grouped").backbone.make_cache(2, 64)
    bytes_of = sum(numpy(part["attention"][name]).nbytes for part in cache for name in ("key", "value"))
    layers, kv_heads, head_dim = 2, 2, 8
    assert bytes_of == 2 * 64 * 2 * layers * kv_heads * head_dim * 4
