"""KerasHub's samplers, wherever ours are told how to choose."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_tfm.generation.decoder import Decoder
from keras_tfm.generation.samplers import options_of

from .models import PROMPTS, VOCABULARY, model_of

hub = pytest.importorskip("keras_hub")


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("greedy", {}),
        ("top_k", {"temperature": 1.0, "top_k": 5}),
        (lambda: hub.samplers.GreedySampler(), {}),
        (lambda: hub.samplers.RandomSampler(temperature=0.7, seed=3), {"temperature": 0.7, "seed": 3}),
        (lambda: hub.samplers.TopKSampler(k=4), {"temperature": 1.0, "top_k": 4}),
        (lambda: hub.samplers.TopPSampler(p=0.8), {"temperature": 1.0, "top_p": 0.8}),
        (lambda: hub.samplers.TopPSampler(p=0.8, k=9), {"temperature": 1.0, "top_p": 0.8, "top_k": 9}),
        (lambda: hub.samplers.BeamSampler(num_beams=3), {"num_beams": 3, "length_penalty": 0.0}),
        (lambda: hub.samplers.ContrastiveSampler(k=3, alpha=0.4), {"top_k": 3, "penalty_alpha": 0.4}),
    ],
    ids=["name", "name with options", "greedy", "random", "top k", "top p", "top p and k", "beam", "contrastive"],
)
def test_samplers_are_options(sampler, options):
    sampler = sampler if isinstance(sampler, str) else sampler()
    assert options_of(sampler) == options
    model = model_of("rotary, grouped")
    seed = {"seed": 7} if "temperature" in options and "seed" not in options else {}
    expected = model.generate(PROMPTS[0], 6, **options, **seed)
    assert model.generate(PROMPTS[0], 6, sampler=sampler, **seed).tolist() == expected.tolist()


class Odd(hub.samplers.Sampler):
    """Draws among odd tokens."""

    def __init__(self, seed: int, **options):
        super().__init__(**options)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def get_next_token(self, probabilities):
        odd = ops.cast(ops.arange(VOCABULARY) % 2 == 1, "float32")
        logits = ops.log(ops.maximum(probabilities * odd, 1e-30))
        return keras.random.categorical(logits, 1, seed=self.seed_generator)[:, 0]


def test_an_interrupted_call_leaves_a_sampler_usable(monkeypatch):
    def interrupted(self, *arguments, plain=Decoder.repeat):
        plain(self, *arguments)
        raise KeyboardInterrupt

    model, sampler = model_of("learned"), Odd(3)
    expected = [row.tolist() for row in model.generate(PROMPTS, 4, sampler=Odd(3))]
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "repeat", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(PROMPTS, 12, sampler=sampler)
    assert numpy(sampler.seed_generator.state).shape == (2,)
    assert [row.tolist() for row in model.generate(PROMPTS, 4, sampler=sampler)] != expected  # it has drawn since


def test_samplers_of_ones_own():
    model = model_of("rotary, grouped")
    sampler = Odd(3, temperature=1.5)
    first = [row.tolist() for row in model.generate(PROMPTS, 12, sampler=sampler)]
    assert all(token % 2 for row in first for token in row)
    assert len({token for row in first for token in row}) > 6  # the random state goes on from step to step
    second = [row.tolist() for row in model.generate(PROMPTS, 12, sampler=sampler)]
    assert second != first  # and from call to call
    again = [row.tolist() for row in model.generate(PROMPTS, 12, sampler=Odd(3, temperature=1.5))]
    assert again == first
    state = numpy(sampler.seed_generator.state)
    assert np.any(state != numpy(keras.random.SeedGenerator(3).state))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "nucleus"}, "must be one of"),
        ({"sampler": 3}, "get_next_token"),
        ({"sampler": "top_k", "top_k": 3}, r"\['top_k'\] cannot be given beside it"),
        ({"sampler": "greedy", "temperature": 1.0}, r"\['temperature'\] cannot be given beside it"),
        ({"sampler": Odd(1), "top_p": 0.5, "seed": 3}, r"\['seed', 'top_p'\] cannot be given beside it"),
        ({"sampler": Odd(1), "penalty_alpha": 0.5}, r"\['penalty_alpha'\] cannot be given beside it"),
        ({"sampler": hub.samplers.BeamSampler(temperature=0.5)}, "temperature=0.5 has no equal"),
    ],
    ids=[
        "unknown name",
        "no sampler",
        "said twice",
        "greedy and drawn",
        "own and drawn",
        "own and searched",
        "no equal",
    ],
)
def test_bad_calls(options, words):
    with pytest.raises(ValueError, match=words):
        model_of("rotary, grouped").generate([1, 2], 5, **options)
