"""The tagging example: its data, its bad-input messages, and short runs with a tiny model."""

import json
import sys
from pathlib import Path

import keras
import pytest
from data.word_piece import train_word_piece

import keras_tfm as tfm

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import _stdlib_entities  # noqa: E402
import _tagged_text  # noqa: E402
import tag_entities  # noqa: E402

CONLL = """-DOCSTART- -X- -X- O

Jana NNP B-NP I-PER
Holt NNP I-NP I-PER
moved VBD B-VP O
to TO B-PP O
Oslo NNP B-NP I-LOC
. . O O

Oslo NNP B-NP I-LOC
thanked VBD B-VP O
Jana NNP B-NP I-PER
"""


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """A BERT directory of one narrow layer, untrained."""
    tokenizer = train_word_piece(["Return the value of the name, a path or a file in Oslo."] * 5, vocabulary_size=200)
    backbone = tfm.models.bert(
        num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=tokenizer.vocabulary_size, max_sequence_length=64
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tfm.MaskedLM(backbone, tokenizer=tokenizer).save_pretrained(directory)
    return directory


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["tag_entities.py", *map(str, arguments)])
    tag_entities.main()


def conll(tmp_path, content=CONLL, name="train.txt"):
    (tmp_path / name).write_text(content)
    return tmp_path / name


# The data ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library_rows():
    return _stdlib_entities.entity_rows()


@pytest.fixture(scope="module")
def names():
    return _stdlib_entities.Names(_stdlib_entities.sources(), frozenset({"file", "path", "string", "message"}))


def tagged(names, text, module, *parameters):
    words, tags = names.tagged(_stdlib_entities.mentions(text), frozenset(parameters), module)
    return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


@pytest.mark.parametrize(
    "text, module, parameters, expected",
    [
        ("The file of file", "shutil", ["file"], "The file of file/B-PARAMETER"),
        ("The `file` is", "shutil", ["file"], "The file/B-PARAMETER is"),
        ("Copy file", "shutil", [], "Copy file"),
        ("Calls copytree() or copytree", "shutil", [], "Calls copytree/B-FUNCTION or copytree"),
        (
            "as os.path.join does",
            "shutil",
            [],
            "as os/B-FUNCTION ./I-FUNCTION path/I-FUNCTION ./I-FUNCTION join/I-FUNCTION does",
        ),
        ("in os.path e.g. so", "shutil", [], "in os/B-MODULE ./I-MODULE path/I-MODULE e . g . so"),
        ("the string module, a string", "shutil", [], "the string/B-MODULE module , a string"),
        ("raise ValueError or *Error*", "shutil", [], "raise ValueError/B-EXCEPTION or Error/B-EXCEPTION"),
        ("Message of a Message", "email.message", [], "Message of a Message/B-CLASS"),
        ("of a Message", "shutil", [], "of a Message"),
        ("self.assertEqual of :class:`TestCase`", "unittest.case", [], "assertEqual/B-FUNCTION of TestCase/B-CLASS"),
    ],
)
def test_the_code_says_what_words_name(names, text, module, parameters, expected):
    assert tagged(names, text, module, *parameters) == expected


def test_the_librarys_rows_are_split_by_package(library_rows, monkeypatch):
    monkeypatch.setattr(_tagged_text, "entity_rows", lambda: library_rows)  # read once
    data = _tagged_text.stdlib()
    assert len(data.train[0]) + len(data.test[0]) == _tagged_text.MOST_ROWS
    assert 0.15 < len(data.test[0]) / _tagged_text.MOST_ROWS < 0.3
    package = {" ".join(row.words): row.module.partition(".")[0] for row in library_rows}
    sides = [{package[" ".join(words)] for words in side} for side, _ in (data.train, data.test)]
    assert not sides[0] & sides[1]
    assert {label[2:] for label in data.labels[1:]} == set(_stdlib_entities.TYPES)
    assert not any("`" in word for side, _ in (data.train, data.test) for words in side for word in words)
    assert len(_tagged_text.new_names(data)) > 100
    assert _tagged_text.stdlib().test == data.test


def test_conll_is_read_as_sentences(tmp_path):
    words, tags = _tagged_text.read_conll(conll(tmp_path))
    assert words == [["Jana", "Holt", "moved", "to", "Oslo", "."], ["Oslo", "thanked", "Jana"]]
    assert tags == [["I-PER", "I-PER", "O", "O", "I-LOC", "O"], ["I-LOC", "O", "I-PER"]]


def test_baselines_by_hand():
    train = ([["Jana", "saw", "Oslo"], ["Oslo", "Oslo"]], [["B-PER", "O", "O"], ["B-LOC", "B-LOC"]])
    test = ([["Jana", "and", "Oslo", "Holt"]], [["B-PER", "O", "B-LOC", "I-LOC"]])
    data = _tagged_text.check(_tagged_text.TaggedText("rows", train, test))
    assert data.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert _tagged_text.lookup_table(data) == [["B-PER", "O", "B-LOC", "O"]]
    assert _tagged_text.majority(data) in ([["O"] * 4], [["B-LOC"] * 4])
    assert _tagged_text.new_names(data) == {("LOC", 0, 2, 3)}


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, options, message",
    [
        (None, [], "there is no file"),
        ("", [], "has no words"),
        ("alone\n", [], "line 1: a word and its tag"),
        ("Oslo NNP LOC\n", [], "'Oslo NNP LOC'"),
        ("Oslo O\n\nis O\n\nup O\n\nnow O\n", [], "has a tag other than O"),
        (CONLL, ["--limit", "0"], "must be above 0"),
        (CONLL, ["--model", "nowhere"], "--model nowhere: there is no such directory"),
        (CONLL, ["--max-length", "65"], "65 is past the model's 64 positions"),
        (CONLL, ["--output", "train.txt"], "train.txt is a file"),
        (CONLL, ["--validation-file", "other.txt"], "['B-ORG'] are held out"),
    ],
)
def test_bad_input_is_one_line_and_status_2(content, options, message, model_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    conll(tmp_path, "Acme B-ORG\n", "other.txt")
    path = "nowhere.txt" if content is None else conll(tmp_path, content)
    held_out = [] if "--validation-file" in options else ["--validation-file", path]
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, "--data", path, "--model", model_directory, *held_out, *options)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


def test_a_file_to_hold_out_needs_one_to_train_on(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--validation-file", "some.txt")
    assert "--validation-file goes with --data" in capsys.readouterr().err


# Runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_on_the_librarys_docstrings(library_rows, model_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_tagged_text, "entity_rows", lambda: library_rows)
    monkeypatch.setattr(_tagged_text, "MOST_ROWS", 400)
    options = [
        "--model",
        model_directory,
        "--limit",
        96,
        "--epochs",
        2,
        "--max-length",
        48,
        "--output",
        tmp_path / "run",
    ]
    run(monkeypatch, *options)
    names = {"model.keras", "curves.png", "types.png", "metrics.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    for name in ("curves.png", "types.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) == {"example", "backend", "settings", "rows", "results", "history", "seconds"}
    assert metrics["example"] == "tag_entities"
    assert metrics["rows"]["train"] == metrics["settings"]["limit"] == 96
    results = metrics["results"]
    assert results["F1 of entities, majority tag"] == 0
    assert 0 < results["F1 of entities, lookup table"] < 0.6
    assert results["F1 of entities, fine-tuned BERT"] == pytest.approx(metrics["history"]["val_f1"][-1], abs=1e-6)
    assert 0.8 < results["right words, majority tag"] < 1
    assert len(metrics["history"]["loss"]) == 2
    assert "Some held-out rows" in capsys.readouterr().out


def test_a_file_of_conlls_format(model_directory, tmp_path, monkeypatch):
    path = conll(tmp_path)
    options = ["--model", model_directory, "--epochs", 30, "--learning-rate", 0.03, "--output", tmp_path / "run"]
    run(monkeypatch, "--data", path, "--validation-file", path, "--max-length", 32, *options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 2, "held out": 2}
    assert metrics["results"]["F1 of entities, lookup table"] == 1
    assert metrics["results"]["F1 of entities, fine-tuned BERT"] == 1  # they are its training rows
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    assert model.labels == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    words, tags = _tagged_text.read_conll(path)
    assert tfm.training.EntityScores(words, tags).predictions(model) == tags
