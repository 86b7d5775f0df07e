"""The example that kills its own training: a short run, and bad input."""

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import survive_kills  # noqa: E402


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["survive_kills.py", *map(str, arguments)])
    survive_kills.main()


@pytest.mark.slow
def test_a_run(tmp_path, monkeypatch, capfd):
    output = tmp_path / "run"
    run(monkeypatch, "--kills", 1, "--steps", 30, "--save-every", 4, "--output", output)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["results"] == {"largest difference of the losses": 0.0, "weights that are equal": 1.0}
    assert metrics["rows"] == {"batches": 30, "kills": 1}
    assert (output / "curves.png").stat().st_size > 10_000
    assert "weights that are equal, bit for bit: 100%" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, "--output", output)
    assert "is there already" in capfd.readouterr().err


def test_bad_input(monkeypatch, capsys):
    for arguments, message in (
        (["--steps", "10"], "--steps must be a multiple of 3"),
        (["--steps", "30", "--kills", "20"], "--kills must be fewer"),
        (["--kills", "0"], "--kills"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        assert message in capsys.readouterr().err


def test_lines_that_a_kill_cut_off_are_left_out(tmp_path):
    (tmp_path / "losses.jsonl").write_text("[2, 0.5]\n[1, 0.75]\n[2, 0.25]\n[3, 0.")
    assert survive_kills.read(tmp_path) == {1: 0.75, 2: 0.25}
    assert survive_kills.read(tmp_path / "none") == {}
