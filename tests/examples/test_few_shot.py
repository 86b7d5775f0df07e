"""The few-shot example: whose rows are examples, and a short run of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_tfm as tfm

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import few_shot  # noqa: E402


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / "few_shot.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_model_and_a_file_of_ones_own(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "Text", "Label", ":", "good", "bad", "food", "day", "yes", "no"]
    base = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[PAD]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone = tfm.models.gpt(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=10, max_sequence_length=64)
    tfm.CausalLM(backbone, tokenizer=tfm.data.Tokenizer(base, 64)).save_pretrained(tmp_path / "gpt")
    rows = ["text,label", "good food,yes", "bad food,no", "good day,yes", "bad day,no"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    options = ("--data", tmp_path / "rows.csv", "--shots", 0, 2, "--output", tmp_path / "run")
    finished = run(tmp_path / "gpt", *options)
    assert finished.returncode == 0, finished.stderr
    assert "oneDNN" not in finished.stderr
    assert "2 examples" in finished.stdout
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["right"]) == {"0", "2"}
    assert metrics["commonest"] == 0.5
    assert (tmp_path / "run" / "examples.png").read_bytes().startswith(b"\x89PNG")
    missing = run(tmp_path / "gpt", "--data", tmp_path / "nothing.csv")
    assert missing.returncode == 2
    assert "few_shot.py: error: " in missing.stderr
    assert "Traceback" not in missing.stderr
    assert run(tmp_path / "no-gpt").returncode == 2


def test_examples_are_of_each_class_in_turn_and_never_the_row_itself():
    labels = ["a", "b", "a", "b", "a"]
    for row in range(5):
        chosen = list(few_shot.balanced(labels, row, 3, np.random.default_rng(row)))
        assert row not in chosen
        assert len(set(chosen)) == 3
        assert {labels[i] for i in chosen} == {"a", "b"}
