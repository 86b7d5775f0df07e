import random
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy

import keras_tfm
from keras_tfm.training import TensorBoard, layer_rates
from keras_tfm.training.seeing.event_files import EventFile
from keras_tfm.training.seeing.samples import _cell
from keras_tfm.training.seeing.throughput import CountedTokens, training_flops
from training.models import SIZES, X, Y, classifier, quickly, writer

TEXTS = ["some words", "other words that go on", "few", "many more words | of <these>"] * 2


def read(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(directory), size_guidance={"tensors": 0}).Reload()


def values(run, tag):
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto)) for event in run.Tensors(tag)]


@pytest.fixture(scope="module")
def tokenizer():
    return keras_tfm.data.train_tokenizer(TEXTS, 60, kind="wordpiece", lowercase=True, max_length=6)


def test_all_charts_of_a_classifier_on_raw_texts(tmp_path, tokenizer):
    """And weights and generators are afterwards those of a training without the callback, bit for bit."""
    labels = ["few", "many"] * 4
    weights, drawn = [], []
    for seen in (False, True):
        keras.utils.set_random_seed(3)
        backbone = keras_tfm.models.bert(
            num_layers=1, **{**SIZES, "vocabulary_size": tokenizer.vocabulary_size, "dropout": 0.1}
        )
        model = keras_tfm.TextClassifier(backbone, labels=["few", "many"], tokenizer=tokenizer)
        model.compile(layer_rates(model, 0.5, keras.optimizers.AdamW(0.01)))
        data = model.dataset(TEXTS, labels, batch_size=4, shuffle=True, seed=0)
        board = TensorBoard(
            tmp_path,
            (TEXTS[:3], labels[:3]),
            every=3,
            texts=TEXTS[:2],
            histograms=True,
            embeddings=7,
            peak_flops=1e12,
        )
        # On torch, validation draws from the generator that dropout has: it belongs to both.
        model.fit(data, epochs=2, validation_data=(TEXTS, labels), verbose=0, callbacks=[board] if seen else [])
        weights.append([numpy(v) for v in (*model.weights, *model.optimizer.variables)])
        drawn.append(random.random())
    assert drawn[0] == drawn[1]
    for without, with_it in zip(*weights, strict=True):
        np.testing.assert_array_equal(without, with_it)

    run, held_out = read(tmp_path / "train"), read(tmp_path / "validation")
    assert [step for step, _ in values(run, "batch/loss")] == [1, 2, 3, 4]
    assert [step for step, _ in values(run, "epoch/loss")] == [2, 4] == [s for s, _ in values(held_out, "epoch/loss")]
    sampled = [0, 3]
    rates = {tag: values(run, tag) for tag in run.Tags()["tensors"] if tag.startswith("learning_rate/")}
    by_name = {tag.split("/")[1].split("_", 1)[1]: found[0][1] for tag, found in rates.items()}
    np.testing.assert_allclose(by_name["head"], 0.01, rtol=1e-5)
    np.testing.assert_allclose(by_name["blocks.0.attention"], 0.01 * 0.5, rtol=1e-5)
    for tag in ("gradient_norm/all", "attention_entropy/blocks.0.attention/head_0"):
        assert [step for step, _ in values(run, tag)] == sampled
    norms = [float(values(run, tag)[0][1]) for tag in run.Tags()["tensors"] if tag.startswith("gradient_norm/")]
    total = float(values(run, "gradient_norm/all")[0][1])
    np.testing.assert_allclose(np.sqrt(sum(n**2 for n in norms) - total**2), total, rtol=1e-4)
    updates = [values(run, tag) for tag in run.Tags()["tensors"] if tag.startswith("update_norm/")]
    assert all([step for step, _ in found] == [1, 4] for found in updates)
    assert all(value > 0 for found in updates for _, value in found)
    padding = float(values(run, "speed/padding")[-1][1])
    assert 0 < padding < 1
    assert float(values(run, "speed/mfu")[-1][1]) > 0
    lines = values(run, "samples/predictions")[-1][1].item().decode().splitlines()
    assert len(lines) == 4
    assert lines[0] == "| text | prediction | probability |"
    said = [line.strip("| ").split(" | ") for line in lines[2:]]
    assert [row[0] for row in said] == TEXTS[:2]
    assert {row[1] for row in said} <= {"few", "many"}
    assert all(0.5 <= float(row[2]) <= 1 for row in said)
    image = values(run, "attention/blocks.0.attention")[-1][1]
    assert image[2].startswith(b"\x89PNG")
    assert int(image[0]) > 100
    histogram = values(run, next(tag for tag in run.Tags()["tensors"] if "weights/" in tag and "head" in tag))[0][1]
    assert histogram.shape == (40, 3)
    assert histogram[:, 2].sum() == 8 * 2 + 2
    vectors = np.loadtxt(tmp_path / "train" / "tensors.tsv")
    np.testing.assert_allclose(
        vectors, numpy(model.backbone.token_embedding.table.embeddings)[:7], rtol=1e-4, atol=1e-6
    )
    assert len((tmp_path / "train" / "metadata.tsv").read_text().splitlines()) == 7
    assert data.label_batch is None  # no longer counted


def test_several_steps_at_once_and_accumulation(tmp_path):
    for name, options, compiling, updates in (
        ("executions", {}, {"steps_per_execution": 2}, [2, 4]),
        ("accumulated", {"gradient_accumulation_steps": 2}, {}, [2, 4]),
    ):
        if BACKEND == "torch" and compiling:  # Keras has none there
            continue
        model = writer()
        rate = keras_tfm.training.WarmupSchedule(0.01, 4, 8)
        model.compile(keras.optimizers.SGD(rate, **options), metrics=None, **compiling)
        board = TensorBoard(tmp_path / name, every=2)
        model.fit(X, batch_size=2, shuffle=False, verbose=0, callbacks=[board])
        run = read(tmp_path / name / "train")
        tag = next(tag for tag in run.Tags()["tensors"] if tag.startswith("update_norm/"))
        assert [step for step, _ in values(run, tag)] == updates
        expected = [0, 0.005] if name == "executions" else [0.0025, 0.0075]  # of the batch that updates
        np.testing.assert_allclose([value for _, value in values(run, "learning_rate")], expected, rtol=1e-5)
        assert not [tag for tag in run.Tags()["tensors"] if tag.startswith(("gradient_norm", "attention"))]
        if BACKEND == "jax":
            break  # compiled once


@quickly
def test_what_a_language_model_writes(tmp_path, tokenizer):
    sizes = {**SIZES, "vocabulary_size": tokenizer.vocabulary_size}
    model = keras_tfm.CausalLM(keras_tfm.models.gpt(num_layers=1, **sizes), tokenizer=tokenizer)
    model.compile(keras.optimizers.SGD(0.0))
    board = TensorBoard(tmp_path, TEXTS[:2], prompts=["some", "|"], max_new_tokens=2, images=False)
    model.fit(TEXTS, batch_size=8, verbose=0, callbacks=[board])
    run = read(tmp_path / "train")
    lines = values(run, "samples/generated")[-1][1].item().decode().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| some", r"| \|"]
    written = model.generate("some", max_new_tokens=2).strip()
    assert lines[2] == f"| some | {_cell(written)} |"
    assert not [tag for tag in run.Tags()["tensors"] if tag.startswith("attention/")]
    assert [float(value) for _, value in values(run, "update_norm/2_blocks.0.attention")] == [0.0]


@pytest.mark.once
def test_flops_are_those_of_the_paper():
    """PaLM, appendix B: 6 N + 12 L H Q T a token; N here without the lookups."""
    model = keras_tfm.CausalLM(
        keras_tfm.models.gpt(
            num_layers=3, hidden_dim=16, num_heads=2, intermediate_dim=64, vocabulary_size=50, max_sequence_length=32
        )
    )
    lookups = sum(v.value.shape[0] * 16 for v in model.weights if "embedding" in v.path)
    n = model.count_params() - lookups + 50 * 16
    assert training_flops(model, 20) == 20 * (6 * n + 12 * 3 * 16 * 20)
    with pytest.raises(ValueError, match="decoder_length"):
        training_flops(model, 20, 3)


@pytest.mark.once
def test_tokens_are_counted_as_they_are_handed_out(tokenizer):
    sizes = {**SIZES, "vocabulary_size": tokenizer.vocabulary_size}
    model = keras_tfm.CausalLM(keras_tfm.models.gpt(num_layers=1, **sizes), tokenizer=tokenizer)
    data = model.dataset(TEXTS, batch_size=3)
    label_batch = data.label_batch
    expected = [data[index] for index in range(3)]
    counted = CountedTokens(data)
    for given, batch in zip(expected, [data[index] for index in range(3)], strict=True):
        np.testing.assert_array_equal(given[1], batch[1])
    masks = [x["padding_mask"] for x, _ in expected]
    tokens, share, flops = counted.take(model)
    assert tokens == sum(mask.sum() for mask in masks) / 3
    assert share == 1 - sum(mask.sum() for mask in masks) / sum(mask.size for mask in masks)
    assert flops == np.mean([len(m) * training_flops(model, int(np.ceil(m.sum() / len(m)))) for m in masks])
    assert counted.batches == 0
    counted.stop()
    assert data.label_batch == label_batch


def test_no_tensorflow_unless_it_is_the_backend(tmp_path):
    script = (
        "import sys, numpy as np, keras_tfm as tfm\n"
        "from keras_tfm.training.seeing.event_files import EventFile, write_projector\n"
        f"file = EventFile({str(tmp_path)!r})\n"
        "file.scalars({'a': 1.0}, 1); file.text('b', 'c', 1); file.histogram('d', np.arange(5.0), 1); file.close()\n"
        "assert 'tensorflow' not in sys.modules"
    )
    if BACKEND == "tensorflow":
        pytest.skip("it is the backend")
    subprocess.run([sys.executable, "-c", script], check=True)
    assert values(read(tmp_path), "a")[0][1] == 1.0


@pytest.mark.once
def test_what_has_no_effect_is_refused(tmp_path, monkeypatch):
    for options, said in (
        ({"peak_flops": -1.0}, "peak_flops"),
        ({"max_new_tokens": 3}, "max_new_tokens"),
        ({"images": True}, "images"),
        ({"texts": "one"}, "texts"),
        ({"every": 0}, "every"),
    ):
        with pytest.raises(ValueError, match=said):
            TensorBoard(tmp_path, **options)
    model = classifier()
    with pytest.raises(ValueError, match="prompts"):
        model.fit(X, Y, verbose=0, callbacks=[TensorBoard(tmp_path, prompts=["a"])])
    with pytest.raises(ValueError, match="tokens counted"):
        model.fit(X, Y, verbose=0, callbacks=[TensorBoard(tmp_path, peak_flops=1e12)])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="visualize"):
        TensorBoard(tmp_path, (X, Y))
    TensorBoard(tmp_path, (X, Y), images=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"keras_tfm\[tensorboard\]"):
        TensorBoard(tmp_path)
    with pytest.raises(ImportError, match="tensorboard"):
        EventFile(tmp_path)
