"""What a newcomer stumbles into: said, not done silently."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numpy
from tokenizers import processors

import keras_tfm as tfm
from keras_tfm.data import Tokenizer

from .models import PROMPTS, model_of
from .test_text import byte_tokenizer


def copy_of(model):
    made = type(model).from_config(model.get_config())
    made.set_weights(model.get_weights())
    return made


def test_a_prefix_of_other_weights_is_refused():
    model = copy_of(model_of("learned"))
    prefix = model.prefix(PROMPTS[1])
    model.generate([5], 2, prefix=prefix)
    variable = model.backbone.blocks[0].feed_forward.up.kernel
    before = numpy(variable)
    variable.assign(before * 1.05)
    with pytest.raises(ValueError, match=r"read with other weights.*model\.prefix\(text\)"):
        model.generate([5], 2, prefix=prefix)
    variable.assign(before)
    model.generate([5], 2, prefix=prefix)
    with pytest.raises(ValueError, match="read with other weights"):
        model_of("rotary, grouped").generate([5], 2, prefix=prefix)
    model.quantize("int8")
    with pytest.raises(ValueError, match="read with other weights"):
        model.generate([5], 2, prefix=prefix)
    with pytest.raises(ValueError, match=r"prefix must come from model\.prefix\(text\); got str"):
        model.generate([5], 2, prefix="Once upon a time")


def test_nothing_is_put_between_a_prefix_and_a_text():
    base = Tokenizer(byte_tokenizer().tokenizer, settings={"bos_token": "!"})
    start = base.tokenizer.token_to_id("!")
    base.tokenizer.post_processor = processors.TemplateProcessing("! $A", None, [("!", start)])
    sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=256, max_sequence_length=64)
    model = tfm.CausalLM(tfm.models.gpt(**sizes), tokenizer=base)
    ids = base.encode(["one two"])[0].ids
    assert ids[0] == start
    whole = model.generate("one two", 6, return_details=True)
    for text in ("two", ""):
        prefix = model.prefix("one two"[: 7 - len(text)])
        parted = model.generate([text], 6, prefix=prefix, return_details=True)[0]
        assert parted.token_ids.tolist() == whole.token_ids.tolist()
        np.testing.assert_allclose(parted.log_probs, whole.log_probs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.generate([5], 2, processors=[lambda ids, logits: logits[:, :5]]),
            r"shape \(1, 61\).*gave \(1, 5\)",
        ),
        (lambda m: m.generate([5], 2, processors=[lambda ids, logits: None]), "must return logits.*gave NoneType"),
        (lambda m: m.generate([5], 2, length_penalty=0.5), "length_penalty belong to beam search: give num_beams"),
        (lambda m: m.stream([5], 2, num_beams=2), "takes no num_beams; generate does"),
        (lambda m: m.stream([5], 2, return_details=True), "takes no return_details; generate does"),
        (lambda m: m.generate(5), "Prompts must be strings or token ids; got 5"),
        (lambda m: m.generate(None), "got None"),
        (lambda m: m.generate([5], 2, stop=[9999]), r"stop has ids outside of the vocabulary of 61: \[9999\]"),
        (lambda m: m.generate([5], 2, temperature=1.0, seed=-1), "seed must be an int of at least 0; got -1"),
        (lambda m: m.generate([5], 2, temperature=1.0, seed="x"), "seed must be an int"),
        (lambda m: tfm.generation.FewShot(m, [("a", "b"), ("c", "d")]), "with a tokenizer"),
    ],
)
def test_what_cannot_be_meant(call, message):
    with pytest.raises(ValueError, match=message):
        call(model_of("learned"))


def test_one_processor_without_a_list():
    model = model_of("learned")
    plain = model.generate([5], 4).tolist()
    assert model.generate([5], 4, processors=lambda ids, logits: logits).tolist() == plain
