"""A real trained model writes a story; conversations become prompts; examples make a classifier."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import fill_weights

import keras_tfm as tfm
from keras_tfm import cli
from keras_tfm.console import add_commands
from keras_tfm.generation import FewShot
from keras_tfm.generation.chat import chat_ids

from .test_text import BYTES, LETTERS, byte_tokenizer

STORIES = Path(os.environ.get("KERAS_TFM_DATA") or "none") / "stories260k-hf"
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="needs KERAS_TFM_DATA")


@needs_stories
def test_the_stories_are_the_golden_ones(capsys):
    golden = json.loads((STORIES / "golden.json").read_text())
    model = tfm.CausalLM.from_pretrained(STORIES)
    count = golden["greedy_new_tokens"]
    ids = model.generate(golden["prompt_ids"], count)
    assert golden["prompt_ids"] + ids.tolist() == golden["ids"]
    prompt = model.tokenizer.decode(golden["prompt_ids"])
    text = model.generate(prompt, count)
    assert prompt + text == model.tokenizer.decode(golden["ids"])
    pieces = list(model.stream(prompt, count))
    assert "".join(pieces) == text
    assert len(pieces) > 5

    cli.main(["generate", str(STORIES), prompt, "--stream", "--prompt-too", "--max-new-tokens", str(count)])
    assert capsys.readouterr().out == prompt + text + "\n"
    cli.main(["generate", str(STORIES), prompt, "--max-new-tokens", "9", "--temperature", "0.8", "--seed", "1"])
    assert capsys.readouterr().out == model.generate(prompt, 9, temperature=0.8, seed=1) + "\n"
    with pytest.raises(SystemExit):
        cli.main(["chat", str(STORIES)])
    assert "no chat template" in capsys.readouterr().err


def test_every_option_of_the_console_is_one_of_generate():
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    args = parser.parse_args(["generate", "x", "y", "--top-k", "3", "--stop", "a", "--stop", "b"])
    assert (args.top_k, args.stop, args.prompt) == (3, ["a", "b"], "y")


@needs_stories
def test_what_ends_a_story_early_is_said_to_the_shell(monkeypatch, capsys):
    def interrupted(self, prompt, *args, **options):
        yield "Once"
        raise KeyboardInterrupt

    monkeypatch.setattr(tfm.CausalLM, "stream", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", str(STORIES), "x", "--stream"])
    assert ended.value.code == 130
    assert capsys.readouterr().out == "Once\n"


@needs_stories
@pytest.mark.once
def test_a_reader_may_have_read_enough():
    command = f"{sys.executable} -m keras_tfm.cli generate {STORIES} Once --max-new-tokens 200 --stream | head -c 1"
    found = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert len(found.stdout) == 1
    assert "keras-tfm:" not in found.stderr
    assert "Broken" not in found.stderr


@pytest.fixture
def chatty():
    pytest.importorskip("jinja2")
    tokenizer = byte_tokenizer()
    tokenizer.settings["chat_template"] = (
        "{% for message in messages %}{% if message.role == 'nobody' %}{{ raise_exception('no such role') }}{% endif %}"
        "<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


def test_conversations(chatty):
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    written = "<system>be kind\n<user>hi\n<assistant>"
    assert chat_ids(chatty, messages) == BYTES.tokenizer.encode(written).ids
    sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=256, max_sequence_length=300)
    backbone = tfm.models.gpt(position="rotary", **sizes)
    model = fill_weights(tfm.CausalLM(backbone, tokenizer=chatty), 0.4)
    answer = model.generate(messages, 12, **LETTERS)
    assert answer == model.generate(written, 12, **LETTERS)
    assert model.generate([messages, messages[1:]], 12, **LETTERS)[0] == answer
    with pytest.raises(ValueError, match=r"refuses.*no such role"):
        model.generate([{"role": "nobody", "content": ""}])
    with pytest.raises(ValueError, match="no chat_template"):
        chat_ids(BYTES, messages)


def test_what_chat_models_keep_beside_the_config(chatty, tmp_path):
    """Further ends of text in generation_config.json, the template in a file of its own."""
    sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=256, max_sequence_length=300)
    template = chatty.settings.pop("chat_template")
    model = tfm.CausalLM(tfm.models.gpt(metadata={"eos_token_id": 7}, **sizes), tokenizer=chatty)
    model.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    again = tfm.from_pretrained(tmp_path)
    assert again.tokenizer.settings["chat_template"] == template
    assert again.backbone.config.metadata["eos_token_id"] == [7, 9]
    plain = again.generate([1, 2], 6, forced_tokens=[3, 9, 3], return_details=True)
    assert (plain.token_ids.tolist(), plain.reason) == ([3, 9], "end")
    (tmp_path / "generation_config.json").write_text("{")
    assert tfm.from_pretrained(tmp_path).backbone.config.metadata["eos_token_id"] == 7


def test_templates_cannot_reach_out(chatty):
    chatty.settings["chat_template"] = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ValueError, match="refuses"):
        chat_ids(chatty, [{"role": "user", "content": ""}])


def test_examples_make_a_classifier():
    sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=256, max_sequence_length=300)
    model = fill_weights(tfm.CausalLM(tfm.models.gpt(position="rotary", **sizes), tokenizer=BYTES), 0.4)
    few = FewShot(model, [("great", "good"), ("dull", "bad"), ("fine", "good")], instruction="Judge.")
    assert few.prompt("so so", "bad").endswith("Text: fine\nLabel: good\n\nText: so so\nLabel: bad")
    scores = few.scores(["lovely", "awful"])
    np.testing.assert_allclose(np.exp(scores).sum(1), 1.0, rtol=1e-9)
    for text, row in zip(
        ["lovely", "awful"], scores, strict=True
    ):  # the label's tokens alone, by the whole texts' scores
        whole = [model.score(few.prompt(text, label)) for label in few.classes]
        shared = len(BYTES.tokenizer.encode(few.prompt(text, "")).ids)
        expected = np.array([each.log_probs[shared - 1 :].sum() for each in whole])
        np.testing.assert_allclose(row, expected - np.logaddexp.reduce(expected), atol=1e-4)
    assert few.predict(["lovely"]) == [few.classes[int(scores[0].argmax())]]
    with pytest.raises(ValueError, match="template"):
        FewShot(model, [("a", "b"), ("c", "d")], template="{text}")
    with pytest.raises(ValueError, match="two labels"):
        FewShot(model, [("a", "b")])
