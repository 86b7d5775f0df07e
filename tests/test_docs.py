"""Every Python block in the README and the docs runs; a page's blocks run in order, in one namespace."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import keras
import pytest

import keras_tfm as tfm

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if BLOCK.search(path.read_text("utf-8"))
]


@pytest.fixture(scope="module")
def bert_directory(tmp_path_factory) -> Path:
    """What the pages call "my-bert": a BERT directory with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    directory = tmp_path_factory.mktemp("pages") / "my-bert"
    base = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "loved": 4}, unk_token="[UNK]"))
    base.pre_tokenizer = pre_tokenizers.Whitespace()
    base.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    backbone = tfm.models.bert(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=5)
    model = tfm.TextClassifier(backbone, tokenizer=tfm.data.Tokenizer(base, 64))
    model.save_pretrained(directory)
    config = (directory / "config.json").read_text().replace("BertForSequenceClassification", "BertModel")
    (directory / "config.json").write_text(config)
    from safetensors.numpy import load_file, save_file

    arrays = load_file(directory / "model.safetensors")
    body = {name.removeprefix("bert."): array for name, array in arrays.items() if not name.startswith("classifier")}
    save_file(body, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_there_are_pages():
    assert {path.name for path in PAGES} >= {"README.md", "composing.md", "options.md", "quickstart.md", "models.md"}


def docstrings():
    """The extension of the documentation generator."""
    pytest.importorskip("griffe")
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_line_for_several_arguments_becomes_a_row_each():
    text = """Sum.

    Args:
        a, b: Of the
            blocks.
        c: One, two: three.

    Attributes:
        d, e,
            f: Parts.

    Not an argument, or two: this.
    """
    assert (
        docstrings().split_names(text)
        == """Sum.

    Args:
        a: Of the blocks.
        b: Of the blocks.
        c: One, two: three.

    Attributes:
        d: Parts.
        e: Parts.
        f: Parts.

    Not an argument, or two: this.
    """
    )


def test_every_field_of_the_config_has_a_row_with_its_type_and_default():
    extension = docstrings()
    package = extension.griffe.load(
        "keras_tfm.config",
        search_paths=[ROOT],
        extensions=extension.griffe.load_extensions(extension.Headings),
        docstring_parser="google",
        docstring_options={"warnings": False},
    )
    sections = package["TransformerConfig"].docstring.parsed
    rows = next(section.value for section in sections if section.kind.value == "parameters")
    fields = dataclasses.fields(tfm.TransformerConfig)
    assert {row.name for row in rows} == {field.name for field in fields}
    for row in rows:
        assert row.annotation is not None
        field = next(field for field in fields if field.name == row.name)
        assert (row.default is None) == (field.default is dataclasses.MISSING)


ONCE = [page for page in PAGES if page.name not in ("README.md", "quickstart.md")]
MARKED = [pytest.param(page, marks=pytest.mark.once if page in ONCE else (), id=page.name) for page in PAGES]


@pytest.mark.parametrize("page", MARKED)
def test_blocks_run(page, bert_directory, monkeypatch):
    monkeypatch.chdir(bert_directory.parent)
    keras.utils.set_random_seed(0)
    namespace: dict = {}
    for block in BLOCK.findall(page.read_text("utf-8")):
        exec(compile(block, str(page), "exec"), namespace)  # the point of the test
