"""Every family's logits against files that `transformers` wrote (`make_golden.py`): needs neither it nor torch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numpy

import keras_tfm as tfm
from checkpoints.families import FAMILIES, GOLDEN


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_golden_ones(family):
    with np.load(GOLDEN / family / "golden.npz") as golden:
        expected, task = golden["logits"], str(golden["task"])
        inputs = {name: golden[name] for name in golden.files if name not in ("logits", "task")}
    model = tfm.from_pretrained(GOLDEN / family)
    assert type(model).__name__ == task
    logits = numpy(model(inputs))
    mask = inputs.get("padding_mask", np.ones((), bool))  # images have none
    if logits.shape[:2] == mask.shape:
        logits, expected = logits[mask], expected[mask]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
