"""The page of what works where says what was tried, and a cheap part of it is tried again."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import BACKEND

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "features.md"
RECORD = ROOT / "benchmarks" / "results" / "features.json"
CHEAP = ["loss over masked tokens", "recomputed blocks", "last batch uneven", "`steps_per_execution=2`"]

pytestmark = pytest.mark.skipif(not RECORD.is_file(), reason="no record of features beside this installation")


@pytest.fixture
def features(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    sys.modules.pop("benchmarks", None)
    from benchmarks import features

    return features


def record() -> dict:
    return json.loads(RECORD.read_text("utf-8"))["results"]


@pytest.mark.once
def test_every_cell_of_the_page_is_the_records(features):
    lines = PAGE.read_text("utf-8").splitlines()
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]] for line in lines if len(cells := line.split("|")) > 5
    }
    notes = dict(line.split(". ", 1) for line in lines if line.split(". ")[0].isdigit())
    shown = [
        (b, kind) for b in features.BACKENDS for kind in ("one", "many") if kind == "one" or features.COLUMNS[b][1]
    ]
    for feature in features.FEATURES:
        assert len(rows[feature]) == len(shown)
        for (backend, kind), text in zip(shown, rows[feature], strict=True):
            cell = record()[backend][feature][kind]
            if "reason" in cell:
                said, number = text.removesuffix(")").split(" (")
                assert said == cell["kind"]
                assert notes[number] == f"{cell['kind']}: {cell['reason']}"
            else:
                assert text == features.said(cell), (feature, backend, kind)


@pytest.mark.parametrize("feature", CHEAP)
def test_one_device_does_again_what_the_page_says(features, feature):
    if feature == "`steps_per_execution=2`" and BACKEND == "torch":
        pytest.skip("Keras has it not on torch")
    expected = record()[BACKEND][feature]["one"]
    found = features.cells(BACKEND, [feature], ("one",))[feature]["one"]
    assert found["kind"] == expected["kind"], found


@pytest.mark.once
def test_a_cell_that_differs_or_fails_says_so(features):
    assert features.compared(1e-3)["kind"] == "differs"
    assert features.compared(float("inf"))["kind"] == "differs"
    assert features.said({"kind": "same", "difference": 3e-7}) == "same, 3e-07"
    assert features.said({"kind": "same", "difference": 0.0}) == "same"
    trial = type("Trial", (), {"weights": lambda *_, **__: 1 / 0})()
    assert features.tried(trial, "FSDP", "one") == {"kind": "-"}
    assert features.tried(trial, "LoRA", "one") == {"kind": "fails", "reason": "ZeroDivisionError: division by zero"}
