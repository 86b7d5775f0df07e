"""The GPT examples: short runs of both, one after the other, and bad input."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_tfm as tfm

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import _source_text  # noqa: E402
import adapt_gpt  # noqa: E402
import pretrain_gpt  # noqa: E402

TINY = ["--steps", "5", "--batch-size", "4", "--layers", "1", "--width", "32", "--context", "16"]
TINY += ["--vocabulary-size", "300", "--sample-tokens", "0"]
TEXT = "".join(f"the {n} cats sat on {n + 1} mats, and {n * n} dogs ran\n" for n in range(200))


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "cats.txt").write_text(TEXT)
    (folder / "CATS.TXT").write_text(TEXT.upper())
    return folder


@pytest.fixture(scope="module")
def base(texts):
    with pytest.MonkeyPatch.context() as patch:
        run(patch, pretrain_gpt, "--data", texts / "cats.txt", *TINY, "--output", texts / "base")
    return texts / "base"


def test_pretraining_writes_what_it_says(base, monkeypatch, capsys):
    metrics = json.loads((base / "metrics.json").read_text())
    assert metrics["example"] == "pretrain_gpt"
    alone, behind = (metrics["results"][f"bits a byte, xz {how}"] for how in ("by itself", "behind all that was read"))
    assert 0.01 < behind < alone < 8
    history = metrics["history"]
    assert history["val_loss"][-1] < history["val_loss"][0] < 6
    model = keras.models.load_model(base / "model.keras")
    other = tfm.CausalLM.from_pretrained(base / "hugging_face")
    ids = np.array([model.tokenizer.encode(["the 3 cats"])[0].ids])
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(model(ids)), keras.ops.convert_to_numpy(other(ids)), atol=1e-5
    )
    assert (base / "curves.png").stat().st_size > 10_000
    run(monkeypatch, pretrain_gpt, "--output", base, "--write", "the 7")
    assert capsys.readouterr().out.startswith("the 7")


def test_bits_a_byte_are_those_of_the_text(base):
    """A model that finds all ids alike likely needs log2 of their number for each token."""
    tokens = 100
    assert _source_text.bits_a_byte(np.log(300), tokens, 50) == pytest.approx(np.log2(300) * 2)


def test_adapting(base, texts, tmp_path, monkeypatch, capsys):
    options = ["--model", base / "hugging_face", "--data", texts / "CATS.TXT", "--old-data", texts / "cats.txt"]
    options += ["--steps", "4", "--batch-size", "4", "--context", "16", "--rank", "2"]
    run(monkeypatch, adapt_gpt, *options, "--output", tmp_path / "run")
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["results"]
    for text in ("new text", "old text"):
        assert results[f"bits a byte of {text}, LoRA, taken off"] == results[f"bits a byte of {text}, base"]
        assert results[f"bits a byte of {text}, LoRA"] != results[f"bits a byte of {text}, base"]
    assert results["bits a byte of new text, all weights"] < results["bits a byte of new text, base"]
    assert 0 < results["share of weights that LoRA trains"] < 0.2
    assert (tmp_path / "run" / "forgetting.png").stat().st_size > 10_000
    adapted = tfm.CausalLM.from_pretrained(base / "hugging_face")
    tfm.training.load_adapter(adapted, tmp_path / "run" / "adapter")
    merged = keras.models.load_model(tmp_path / "run" / "merged.keras")
    ids = np.array([[5, 6, 7, 8]])
    found = [keras.ops.convert_to_numpy(model(ids)) for model in (adapted, merged)]
    np.testing.assert_allclose(*found, atol=1e-4)
    assert "adapter has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        (pretrain_gpt, ["--data", "nothing.txt"], "there is no file 'nothing.txt'"),
        (pretrain_gpt, ["--width", "33"], "multiple of 32"),
        (pretrain_gpt, ["--steps", "2"], "at least 5"),
        (pretrain_gpt, ["--data", "empty.txt"], "too short"),
        (pretrain_gpt, ["--data", "bytes.txt"], "not UTF-8"),
        (pretrain_gpt, ["--write", "x", "--output", "none"], "Train first"),
        (adapt_gpt, ["--data", "docstrings", "--model", "nowhere"], "no directory nowhere"),
        (adapt_gpt, ["--rank", "0"], "must be above 0"),
    ],
)
def test_bad_input_ends_it_with_a_line(module, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa" * 9)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, module, *arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_pattern_that_matches_nothing(base, texts, tmp_path, monkeypatch, capsys):
    options = ["--model", base / "hugging_face", "--data", texts / "CATS.TXT", "--old-data", texts / "cats.txt"]
    with pytest.raises(SystemExit):
        run(monkeypatch, adapt_gpt, *options, "--context", "16", "--targets", "qeury", "--output", tmp_path)
    assert "qeury" in capsys.readouterr().err
