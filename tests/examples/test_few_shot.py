"""The few-shot example: what its episodes hold, and short runs of it."""

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


def test_no_word_has_two_meanings():
    assert len(set(few_shot.WORDS)) == len(few_shot.WORDS)


def test_what_is_asked_was_never_trained_on():
    generator = np.random.default_rng(0)
    trained = {text for _ in range(400) for text, _ in few_shot.episode(generator, 9, held_out=False)[0]}
    for shots in (0, 1, 2, 8):
        for _ in range(50):
            rows, labels = few_shot.episode(generator, shots + 1, held_out=True)
            assert len(rows) == shots + 1
            assert rows[-1][0] not in trained
            assert {text for text, _ in rows[:-1]} <= {text for text, _ in rows} & trained | {rows[0][0]}
            assert {label for _, label in rows} <= set(labels)
            if shots >= 2:
                assert {label for _, label in rows[:2]} == set(labels)


def test_a_short_run(tmp_path):
    finished = run("--steps", 20, "--trials", 5, "--shots", 0, 2, "--output", tmp_path / "run")
    assert finished.returncode == 0, finished.stderr
    assert "oneDNN" not in finished.stderr
    assert "2 examples" in finished.stdout
    accuracy = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(accuracy) == {"0", "2"}
    assert all(0 <= value <= 1 for value in accuracy.values())
    assert (tmp_path / "run" / "examples.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_and_a_file_of_ones_own(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "Text", "Label", ":", "good", "bad", "food", "day", "yes", "no"]
    base = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[PAD]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    backbone = tfm.models.gpt(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=10, max_sequence_length=64)
    tfm.CausalLM(backbone, tokenizer=tfm.data.Tokenizer(base, 64)).save_pretrained(tmp_path / "gpt")
    rows = ["text,label", "good food,yes", "bad food,no", "good day,yes", "bad day,no"]
    (tmp_path / "rows.csv").write_text("\n".join(rows))
    options = (
        "--model",
        tmp_path / "gpt",
        "--data",
        tmp_path / "rows.csv",
        "--shots",
        0,
        2,
        "--output",
        tmp_path / "run",
    )
    finished = run(*options)
    assert finished.returncode == 0, finished.stderr
    assert set(json.loads((tmp_path / "run" / "metrics.json").read_text())) == {"0", "2"}
    missing = run("--model", tmp_path / "gpt", "--data", tmp_path / "nothing.csv")
    assert missing.returncode == 2
    assert "few_shot.py: error: " in missing.stderr
    assert "Traceback" not in missing.stderr
    assert run("--model", tmp_path / "gpt").returncode == 2


def test_examples_are_of_each_class_in_turn_and_never_the_row_itself():
    labels = ["a", "b", "a", "b", "a"]
    for row in range(5):
        chosen = list(few_shot.balanced(labels, row, 3, np.random.default_rng(row)))
        assert row not in chosen
        assert len(set(chosen)) == 3
        assert {labels[i] for i in chosen} == {"a", "b"}
