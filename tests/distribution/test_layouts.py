"""One device and eight simulated ones train the same weights, and each weight lives where its axes say."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import BACKEND, simulated

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution lays out weights on JAX")

WORKER = Path(__file__).with_name("simulated.py")
KINDS = ["encoder", "decoder", "grouped", "experts", "encoder_decoder"]
WAYS = ["data", "tensor", "fsdp", "data x tensor", "fsdp x tensor"]


def python(*arguments: str, devices: int = 8, timeout: float = 400) -> str:
    """The output of a program on so many simulated devices."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=simulated(devices),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@functools.cache
def results(kind: str) -> dict:
    lines = python(str(WORKER), kind).splitlines()
    return json.loads(next(line for line in lines if line.startswith("RESULT ")).removeprefix("RESULT "))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_eight_devices_train_what_one_does(kind, way):
    found = results(kind)
    assert found["ways"][way]["loss"] == pytest.approx(found["loss"], rel=1e-4)
    assert found["ways"][way]["difference"] < 2e-4


@pytest.mark.parametrize("kind", KINDS)
def test_slots_live_with_their_weights(kind):
    for way in WAYS:
        placed = results(kind)["ways"][way]["placements"]
        weights = {p["path"].replace("/", "_"): p for p in placed if p["kind"] == "weight"}
        slots = [p for p in placed if p["kind"] == "optimizer" and p["path"].endswith(("_momentum", "_velocity"))]
        assert len(slots) >= 2
        for slot in slots:
            own = slot["path"].rpartition("/")[2].removesuffix("_momentum").removesuffix("_velocity")
            assert slot["spec"] == weights[own]["spec"], slot["path"]
            assert slot["shard"] == weights[own]["shard"], slot["path"]


def specs(kind, way):
    return {
        p["path"]: (p["spec"], p["shard"]) for p in results(kind)["ways"][way]["placements"] if p["kind"] == "weight"
    }


def test_tensor_parallel_splits_heads_and_width():
    found = specs("grouped", "data x tensor")
    block = next(path for path in found if path.endswith("block_0/attention/query/kernel")).removesuffix(
        "attention/query/kernel"
    )
    assert found[f"{block}attention/query/kernel"] == ([None, "model", None], [32, 2, 4])
    assert found[f"{block}attention/key/kernel"] == ([None, None, None], [32, 2, 4])  # 2 heads on 4 devices: whole
    assert found[f"{block}attention/output/kernel"] == (["model", None, None], [2, 4, 32])
    assert found[f"{block}feed_forward/up/kernel"] == ([None, "model"], [32, 32])
    assert found[f"{block}feed_forward/down/kernel"] == (["model", None], [32, 32])
    table = next(path for path in found if path.endswith("table/embeddings"))
    assert found[table] == (["model", None], [16, 32])


def test_experts_are_split():
    found = specs("experts", "tensor")
    for kernel, shard in (("expert_up", [1, 32, 128]), ("expert_down", [1, 128, 32])):
        experts = [value for path, value in found.items() if path.endswith(f"feed_forward/{kernel}")]
        assert experts == [(["model", None, None], shard)] * 2


def test_fsdp_leaves_an_eighth_on_each_device():
    for kind in KINDS:
        found = results(kind)["ways"]["fsdp"]
        large = [p for p in found["placements"] if len(p["shape"]) > 1 and _count(p["shape"]) >= 4096]
        assert large
        for p in large:
            assert _count(p["shard"]) * 8 == _count(p["shape"]), p["path"]
        assert found["bytes"] < found["whole_bytes"]


def _count(shape):
    total = 1
    for size in shape:
        total *= size
    return total


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_collectives_of_a_block_are_the_textbooks(kind):
    """Two all-reduces forward and two backward (Shoeybi et al. 2019, figure 3), and nothing else."""
    one, two = results(kind)["ways"]["tensor"]["collectives"]
    block = {name: {sort: two[name][sort] - one[name][sort] for sort in one[name]} for name in one}
    nothing = dict.fromkeys(("all-gather", "reduce-scatter", "all-to-all", "collective-permute"), 0)
    assert block["forward"] == {"all-reduce": 2, **nothing}
    assert block["both"] == {"all-reduce": 4, **nothing}


@pytest.mark.parametrize("way", ["fsdp", "fsdp x tensor"])
def test_files_go_from_a_mesh_to_one_device_and_back(way):
    """Bit for bit: weights, and of `.keras` files the optimizer; and training goes on from them."""
    found = results("decoder")["ways"][way]["saved"]
    for name in ("keras", "weights", "safetensors", "keras, back", "safetensors, back"):
        assert found[name] == [0.0] * (2 if "keras" in name else 1), name
    assert found["keras, back: specs"]
    assert found["safetensors, back: specs"]
    assert found["gone on, mesh"] == [0.0, 0.0]
    assert max(found["gone on, one device"]) < 2e-4


def test_the_report_is_a_table():
    text = results("encoder")["ways"]["tensor"]["text"]
    assert "split over" in text
    assert "heads" not in text  # the mesh's axes, not the weights'
    assert text.splitlines()[-1].startswith("all ")


ERRORS = """
import keras, numpy as np, pytest
import keras_tfm as tfm
from keras_tfm import distribution as d

def raises(match, function):
    with pytest.raises(ValueError, match=match):
        function()

sizes = dict(num_layers=1, hidden_dim=24, num_heads=6, vocabulary_size=50, max_sequence_length=8)
raises("A mesh of data 3 has 3 devices; there are 8", lambda: d.mesh(data=3))
raises("a positive int", lambda: d.mesh(data=0))
raises("One axis may be -1", lambda: d.mesh(data=-1, model=-1))
raises("no axis 'modle'", lambda: d.Layouts(d.mesh(), {"heads": "modle"}))
raises("No weight has an axis 'head'; .*Did you mean 'heads'", lambda: d.Layouts(d.mesh(), {"head": "data"}))
raises("a keras.distribution.DeviceMesh", lambda: d.data_parallel("8"))
with d.tensor_parallel().scope():
    raises(r"query/kernel: its dimension 1 \\(heads\\) has 6 entries, .*'model' of 8", lambda: tfm.models.gpt(**sizes))
before = tfm.TextClassifier(tfm.models.bert(**sizes), 2)
with d.data_parallel().scope():
    raises("built before the distribution was set", lambda: before.fit(np.ones((8, 4), "int32"), np.zeros(8, "int32")))
twice = d.Layouts(d.mesh(), patterns={".*kernel": (None, None), "mine/.*": (None, None)})
with twice.scope():
    layer = keras.layers.Dense(8, name="mine")
    raises("mine/kernel is matched by", lambda: layer.build((1, 8)))
odd = d.Layouts(d.mesh(), {"mlp": "data"}, patterns={".*/mine/kernel": ("embed", "mlp"), "other/kernel": ("embed", "mlp")})
with odd.scope():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, name="mine")])
    report = d.layout_report(model)
    assert report.unmatched == ("other/kernel",), report
    assert "'other/kernel' matches no variable" in str(report)
    assert report.placements[0].shard == (8, 2)
    attention = keras.layers.MultiHeadAttention(8, 4, name="theirs")
    attention.build((None, 4, 32), (None, 4, 32))
with d.tensor_parallel().scope():
    attention = keras.layers.MultiHeadAttention(8, 4, name="theirs")
    attention.build((None, 4, 32), (None, 4, 32))
    shards = {v.path: v.value.sharding.shard_shape(v.value.shape) for v in attention.weights}
    assert shards["theirs/query/kernel"] == (32, 1, 4), shards
    assert shards["theirs/attention_output/kernel"] == (1, 4, 32), shards
    hub = pytest.importorskip("keras_hub") if HUB else None
    if hub is not None:
        block = hub.layers.TransformerEncoder(64, 8, name="hub")
        block.build((None, 4, 32))
        shards = {v.path: v.value.sharding.shard_shape(v.value.shape) for v in block.weights}
        dense = next(path for path in shards if path.endswith("feedforward_intermediate_dense/kernel"))
        assert shards[dense] == (32, 8), shards
print("all refused")
"""


def test_what_does_not_fit_is_refused():
    import importlib.util

    hub = importlib.util.find_spec("keras_hub") is not None
    assert "all refused" in python("-c", f"HUB = {hub}\n{ERRORS}")


def test_the_page_runs():
    page = (
        (Path(__file__).parents[2] / "docs" / "distribution.md")
        .read_text("utf-8")
        .partition("\n## Several GPUs with TensorFlow\n")[0]
    )
    blocks = re.findall(r"```py\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    example = (Path(__file__).parents[2] / "docs" / "many-devices.md").read_text("utf-8")
    blocks += re.findall(r"```py\n(.*?)```", example, flags=re.DOTALL)
    assert len(blocks) == 3
    assert "feed_forward/up/kernel" in python("-c", "\n".join(blocks))


UNEVEN = """
import keras, numpy as np, pytest
import keras_tfm as tfm
from keras_tfm import distribution as d

texts = [" ".join(["soup", "bean", "day"][i % 3] for i in range(n, n + 2 + n % 4)) for n in range(13)]
tokenizer = tfm.data.train_tokenizer(texts, 60, kind="wordpiece", max_length=16)
sizes = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=tokenizer.vocabulary_size, max_sequence_length=16)

def trained():
    keras.utils.set_random_seed(0)
    model = tfm.TextClassifier(tfm.models.bert(**sizes, dropout=0.0), 2, tokenizer=tokenizer)
    model.compile(keras.optimizers.SGD(0.3))
    model.fit(texts, [n % 2 for n in range(13)], batch_size=8, epochs=2, verbose=0, validation_split=0.2)
    return model

one = trained()
expected = [np.asarray(v.value) for v in one.trainable_variables]
with d.data_parallel().scope():
    model = trained()
    for ours, theirs in zip(model.trainable_variables, expected):
        np.testing.assert_allclose(np.asarray(ours.value), theirs, atol=2e-6)
    np.testing.assert_allclose(model.predict(texts), one.predict(texts), atol=2e-6)
    labels = [n % 2 for n in range(13)]
    both = [m.evaluate(texts, labels, batch_size=8, verbose=0) for m in (model,)]
    for match, call in (
        ("batch_size=6 is to be shared by 8 devices.*; take 8", lambda: model.fit(texts, labels, batch_size=6)),
        ("The last batch of 13 rows has 5", lambda: model.fit(np.ones((13, 4), "int32"), np.zeros(13, "int32"), batch_size=8)),
        ("The last batch of 13 rows has 5", lambda: model.evaluate(np.ones((13, 4), "int32"), np.zeros(13, "int32"), 8)),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    model.compile(keras.optimizers.SGD(0.3), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="The last batch of 13 rows"):
        model.fit(texts, labels, batch_size=8, verbose=0)
alone = one.evaluate(texts, labels, batch_size=8, verbose=0)
assert both[0][1] == pytest.approx(alone[1], abs=1e-6)
assert both[0][0] == pytest.approx(alone[0], rel=0.05)  # Keras weighs the last batch's mean by its rows, those added too
print("uneven ends agree")
"""


def test_uneven_ends_count_for_nothing():
    assert "uneven ends agree" in python("-c", UNEVEN)
