"""The example that pretrains a BERT: a short run on files, and bad input."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore:.*pooler.*")]

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import _tagged_text  # noqa: E402
import pretrain_bert  # noqa: E402

TINY = ["--layers", "1", "--width", "32", "--length", "16", "--vocabulary-size", "80", "--epochs", "2"]
TINY += ["--batch-size", "4", "--fine-tune-steps", "4"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    names = ["path", "file", "name", "mode"]
    texts = [f"opens the {names[n % 4]} and reads {names[n % 3]} of it\n" for n in range(60)]
    (folder / "text.txt").write_text("".join(texts))
    rows = "".join(f"opens O\nthe O\n{names[n % 4]} B-PARAMETER\n\n" for n in range(24))
    (folder / "tags.txt").write_text(rows)
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pretrain_bert.py", *map(str, arguments)])
    pretrain_bert.main()


def test_a_run_and_going_on_with_it(files, tmp_path, monkeypatch, capsys):
    output = tmp_path / "run"
    given = ["--text", files / "text.txt", "--tags", files / "tags.txt", "--labels", 4, 12, *TINY, "--output", output]
    run(monkeypatch, *given, "--resume")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["example"] == "pretrain_bert"
    assert metrics["history"]["val_loss"][-1] < 6
    for count in (4, 12):
        for name in ("new weights", "pretrained", "lookup table"):
            assert 0 <= metrics["results"][f"F1 with {count} tagged rows, {name}"] <= 1
    for name in ("curves.png", "labels.png"):
        assert (output / name).stat().st_size > 10_000
    assert (output / "tokenizer" / "tokenizer.json").exists()  # word pieces are others each time they are trained
    model = keras.models.load_model(output / "pretrained.keras")
    weights = [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]
    assert keras.models.load_model(output / "tagger.keras").labels == ["O", "B-PARAMETER", "I-PARAMETER"]
    assert "opens" not in capsys.readouterr().err
    run(monkeypatch, *given, "--resume")
    assert "This run is finished" in capsys.readouterr().out
    for ours, theirs in zip(weights, keras.models.load_model(output / "pretrained.keras").weights, strict=True):
        np.testing.assert_array_equal(ours, keras.ops.convert_to_numpy(theirs))


def test_the_librarys_untagged_texts_are_of_other_packages(monkeypatch):
    rows = [
        _tagged_text.entity_rows.__globals__["Row"](
            words=["reads", f"a{n}"], tags=["O", "B-PARAMETER"], module=f"package{n % 8}.part", part=f"part{n % 2}"
        )
        for n in range(64)
    ]
    monkeypatch.setattr(_tagged_text, "entity_rows", lambda: rows)
    data = _tagged_text.stdlib()
    held_out = {word for words in data.test[0] for word in words if word != "reads"}
    assert held_out
    assert not any(word in held_out for text in data.untagged for word in text.split())
    assert len(data.untagged) == len(data.train[0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tags", "tags.txt"], "--tags goes with --text"),
        (["--text", "text.txt"], "--text goes with --tags"),
        (["--validation-file", "tags.txt"], "--validation-file goes with --tags"),
        (["--width", "33"], "--width must be a multiple of 32; got 33"),
        (["--text", "none.txt", "--tags", "tags.txt"], "there is no file 'none.txt'"),
        (["--text", "bytes.txt", "--tags", "tags.txt"], "bytes.txt is not UTF-8 text"),
        (["--text", "one.txt", "--tags", "tags.txt"], "1 texts are too few to learn from"),
        (["--text", "text.txt", "--tags", "text.txt"], "a word and its tag"),
        (["--text", "text.txt", "--tags", "tags.txt", "--vocabulary-size", "5"], "vocabulary_size"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, files, tmp_path, monkeypatch, capsys):
    (files / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    (files / "one.txt").write_text("one text\n")
    monkeypatch.chdir(files)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments, "--output", tmp_path / "run")
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
