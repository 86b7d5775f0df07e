"""A real trained Llama: greedy decoding gives the reference's tokens."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import numpy

import keras_tfm as tfm

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not os.environ.get("KERAS_TFM_DATA"), reason="needs KERAS_TFM_DATA"),
]


def test_greedy_tokens_are_the_golden_ones():
    directory = Path(os.environ["KERAS_TFM_DATA"]) / "stories260k-hf"
    golden = json.loads((directory / "golden.json").read_text())
    model = tfm.from_pretrained(directory)
    assert isinstance(model, tfm.CausalLM)
    assert model.count_params() == 260_032
    ids = list(golden["prompt_ids"])
    cache = model.backbone.make_cache(1, len(ids) + golden["greedy_new_tokens"])
    chunk = ids
    for _ in range(golden["greedy_new_tokens"]):
        hidden, cache = model.backbone.cached_call({"token_ids": np.array([chunk], "int32")}, cache)
        logits = numpy(model.backbone.token_embedding(hidden[:, -1:], reverse=True))
        chunk = [int(logits[0, -1].argmax())]
        ids += chunk
    assert ids == golden["ids"][: len(ids)]
    assert len(ids) == len(golden["ids"])

    whole = numpy(model(np.array([ids], "int32")))[0]  # and without a cache
    assert whole.argmax(-1)[len(golden["prompt_ids"]) - 1 : -1].tolist() == ids[len(golden["prompt_ids"]) :]
