"""The question answering example: its data, its bad-input messages, and short runs with a tiny model."""

import ast
import json
import re
import sys
from collections import Counter
from pathlib import Path

import keras
import pytest
from data.word_piece import train_word_piece

import keras_tfm as tfm

pytestmark = pytest.mark.once

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))

import _question_data  # noqa: E402
import _stdlib_questions  # noqa: E402
import answer_questions  # noqa: E402
from _stdlib_code import Source  # noqa: E402

CONTEXT = "Jana was born in Oslo. She studied law in Bergen."


def squad(tmp_path, questions=None, name="train.json", context=CONTEXT):
    if questions is None:
        questions = [
            ("Where was Jana born?", ["Oslo", "in Oslo"]),
            ("Who went to Rome?", None),
            ("She studied?", ["law"]),
        ]
    asked = [
        {
            "question": question,
            "id": str(number),
            "is_impossible": answers is None,
            "answers": [{"text": text, "answer_start": context.find(text)} for text in answers or []],
        }
        for number, (question, answers) in enumerate(questions)
    ]
    content = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": asked}]}]}
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    """A BERT directory of one narrow layer, untrained."""
    tokenizer = train_word_piece([CONTEXT, "What does it return? Where was it, who studied?"] * 5, vocabulary_size=200)
    backbone = tfm.models.bert(
        num_layers=1, hidden_dim=32, num_heads=2, vocabulary_size=tokenizer.vocabulary_size, max_sequence_length=512
    )
    directory = tmp_path_factory.mktemp("models") / "tiny"
    tfm.MaskedLM(backbone, tokenizer=tokenizer).save_pretrained(directory)
    return directory


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["answer_questions.py", *map(str, arguments)])
    answer_questions.main()


# The data ---------------------------------------------------------------------------------------------------------------

CODE = '''
class Box:
    def put(self, item, where=None, *, size: int = 3, label):
        """Put an item.

        where -- the place of the item
        Raises KeyError if there is no room.  Returns the number of items. Then more.
        """

def first(x):
    """Say it."""

def second(y=(1, 2)):
    """RuntimeError is raised when it is late."""

def _private(z):
    """Return nothing of interest."""
'''


def questions_on(name):
    tree = ast.parse(CODE)
    definitions = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    entries = {entry.name: entry for entry in _stdlib_questions._entries(Source("p", "m", tree, definitions))}
    assert set(entries) == {"Box.put", "first", "second"}
    text = entries[name].text
    return {
        question.text: question.answer and text[slice(*question.answer)]
        for find in _stdlib_questions.KINDS.values()
        for question in find(entries[name])
    }


def test_questions_come_from_signatures_and_docstrings():
    asked = questions_on("Box.put")
    assert {text: answer for text, answer in asked.items() if answer} == {
        "What does Box.put return?": "the number of items",
        "When does Box.put raise KeyError?": "if there is no room",
        "What is the default of where in Box.put?": "None",
        "What is the default of size in Box.put?": "3",
        "What is where of Box.put?": "the place of the item",
    }
    assert asked["What is the default of item in Box.put?"] is None
    assert asked["What is the default of label in Box.put?"] is None
    assert "What is item of Box.put?" not in asked  # "Put an item" says something of it
    assert questions_on("first")["What does first return?"] is None
    assert questions_on("second")["What is the default of y in second?"] == "(1, 2)"
    assert questions_on("second")["When does second raise RuntimeError?"] == "when it is late"


def test_the_librarys_questions_are_where_they_are_said_to_be_and_split_by_package(monkeypatch):
    rows = _stdlib_questions.question_rows()
    assert len(rows) > _question_data.MOST_ROWS
    for row in rows:
        assert row.context.count("\n") == _stdlib_questions.FUNCTIONS - 1
        if row.answer is not None:
            (text,), (start,) = row.answer["text"], row.answer["answer_start"]
            assert row.context[start : start + len(text)] == text
    counts = Counter((row.kind, row.answer is None) for row in rows)
    for kind in ("returned", "default"):
        assert 0.2 < counts[kind, True] / (counts[kind, True] + counts[kind, False]) < 0.3
    monkeypatch.setattr(_question_data, "question_rows", lambda seed: rows)  # read once
    data = _question_data.stdlib()
    assert len(data.train) + len(data.test) == _question_data.MOST_ROWS
    package = {(row.question, row.context): row.module.partition(".")[0] for row in rows}
    sides = [{package[pair] for pair in side.pairs} for side in (data.train, data.test)]
    assert not sides[0] & sides[1]


def test_squad_of_both_kinds_is_read(tmp_path):
    found = _question_data.read_squad(squad(tmp_path))
    assert found.pairs[0] == ("Where was Jana born?", CONTEXT)
    assert found.answers == [
        {"text": ["Oslo", "in Oslo"], "answer_start": [17, 14]},
        None,
        {"text": ["law"], "answer_start": [35]},
    ]
    assert found.kinds == ["where", "who", "other"]
    bare = json.loads(squad(tmp_path).read_text())
    for asked in bare["data"][0]["paragraphs"][0]["qas"]:
        del asked["is_impossible"]  # as in SQuAD 1.1
    (tmp_path / "bare.json").write_text(json.dumps(bare))
    assert _question_data.read_squad(tmp_path / "bare.json") == found


def test_all_questions_on_a_context_are_on_one_side():
    pairs = [(f"question {i}", f"context {i // 3}") for i in range(24)]
    questions = _question_data.Questions(pairs, [None] * 24, ["other"] * 24)
    train, test = _question_data.divided(questions, _question_data.by_context(questions))
    assert len(test) == 6
    assert not {context for _, context in train.pairs} & {context for _, context in test.pairs}


def test_baselines_by_hand():
    context = "copy(src, dst=None): Copy a file. Returns its place.\nmove(src): Move a file."
    pairs = [("What is the default of dst in copy?", context), ("Which file does move move?", context)]
    assert _question_data.most_common_words(pairs) == ["copy(src, dst=None)", "Move a file"]
    assert _question_data.behind_the_name(pairs) == ["Copy a file", "Returns its place"]


# Bad input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, options, message",
    [
        (None, [], "there is no file"),
        ("", [], "is not JSON"),
        ("[1]", [], "is not in SQuAD's format"),
        ('{"data": [{"paragraphs": [{"context": "c", "qas": [{}]}]}]}', [], "KeyError, 'question'"),
        ('{"data": []}', [], "has no questions"),
        (("Where?", ["Rome"]), [], "the answer 'Rome' should be at character -1"),
        (("Where?", None), [], "has an answer"),
        (("Where?", ["Oslo"]), ["--limit", "0"], "must be above 0"),
        (("Where?", ["Oslo"]), ["--model", "nowhere"], "--model nowhere: there is no such directory"),
        (("Where?", ["Oslo"]), ["--max-length", "513"], "513 is past the model's 512 positions"),
        (("Where? " * 20, ["Oslo"]), ["--max-length", "12"], "leaves 0 of max_length=12"),
        (("Where?", ["Oslo"]), ["--output", "train.json"], "train.json is a file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(content, options, message, model_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.json"
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        squad(tmp_path, [content])
    arguments = ["--data", path, "--validation-file", path, "--model", model_directory, *options]
    with pytest.raises(SystemExit) as exit:
        run(monkeypatch, *arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("runs").exists()


def test_a_file_to_hold_out_needs_one_to_train_on(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "--validation-file", "some.json")
    assert "--validation-file goes with --data" in capsys.readouterr().err


# Runs -------------------------------------------------------------------------------------------------------------------


def test_a_run_on_the_librarys_functions(model_directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_question_data, "MOST_ROWS", 200)
    options = ["--model", model_directory, "--limit", 64, "--epochs", 2, "--output", tmp_path / "run"]
    run(monkeypatch, *options, "--max-length", 512)
    names = {"model.keras", "curves.png", "kinds.png", "metrics.json"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names
    for name in ("curves.png", "kinds.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics) == {"example", "backend", "settings", "rows", "results", "history", "seconds"}
    assert metrics["example"] == "answer_questions"
    assert metrics["rows"]["train"] == metrics["settings"]["limit"] == 64
    results, rows = metrics["results"], metrics["rows"]
    assert results["F1, no answer at all"] == pytest.approx(rows["held out, no answer"] / rows["held out"])
    assert 0 < results["F1, sentence behind the name"] < 0.5
    assert results["F1, fine-tuned BERT"] == pytest.approx(metrics["history"]["val_f1"][-1], abs=1e-6)
    assert len(metrics["history"]["loss"]) == 2
    assert re.search(r"What does \S+ return\?|What is the default of", capsys.readouterr().out)


def test_a_file_of_squads_format(model_directory, tmp_path, monkeypatch):
    path = squad(tmp_path)
    options = ["--epochs", 40, "--learning-rate", 0.015, "--max-length", 64, "--output", tmp_path / "run"]
    run(monkeypatch, "--data", path, "--validation-file", path, "--model", model_directory, *options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 3, "held out": 3, "held out, no answer": 1}
    assert metrics["results"]["exact match, fine-tuned BERT"] == 1  # they are its training rows
    assert metrics["results"]["right where there is no answer, fine-tuned BERT"] == 1
    model = keras.models.load_model(tmp_path / "run" / "model.keras")
    questions = _question_data.read_squad(path)
    found = tfm.training.AnswerScores(questions.pairs, questions.answers).predictions(model)
    assert found == ["Oslo", "", "law"]
