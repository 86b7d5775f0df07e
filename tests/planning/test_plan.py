"""Plans agree with what models have, keep and exchange, and say what they rest on."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import BACKEND, simulated
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tfm as tfm
from keras_tfm import cli
from keras_tfm.distribution import plan
from keras_tfm.planning import activations, memory
from keras_tfm.planning.described import describe
from keras_tfm.planning.job import Job
from keras_tfm.planning.moments import moments
from keras_tfm.planning.tensors import total
from keras_tfm.planning.ways import Way

WORKER = Path(__file__).with_name("measured.py")
WAYS = ["data 8", "model 8", "data 8, fsdp", "data 2 x model 4", "data 2 x model 4, fsdp"]
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="keras.distribution lays out weights on JAX")
TINY = dict(num_layers=2, hidden_dim=64, num_heads=8, vocabulary_size=512, max_sequence_length=32)


# Against measurement ---------------------------------------------------------------------------------------------------


@functools.cache
def measured() -> dict:
    done = subprocess.run(
        [sys.executable, str(WORKER)], env=simulated(8), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])


@on_jax
def test_weights_and_slots_are_those_of_the_layout_report():
    for row in measured()["meshes"]:
        for part in ("weights", "gradients", "optimizer"):
            predicted, found = row[part]
            assert predicted == found > 0, (row["model"], row["mesh"], part)


@on_jax
def test_collectives_are_those_of_the_compiled_program():
    rows = measured()["meshes"]
    assert {row["mesh"] for row in rows} == set(WAYS)
    for row in rows:
        exact = row["model"].startswith("decoder")
        assert row["moved"][0] == pytest.approx(row["moved"][1], rel=0.01 if exact else 0.1), row
        reduced = row["sorts"]["all-reduce"]
        assert reduced[0] == pytest.approx(reduced[1], rel=0.1), row
        if exact:
            assert row["tensors"][0] == pytest.approx(row["tensors"][1], rel=0.1), row


@on_jax
def test_a_step_on_a_mesh_takes_what_is_planned():
    for row in measured()["meshes"]:
        predicted, found = row["step"]
        assert predicted == pytest.approx(found, rel=0.1), row


@on_jax
def test_what_is_kept_for_the_gradients_is_what_jax_keeps():
    for row in measured()["kept"]:
        predicted, found = row["activations"]
        assert predicted == pytest.approx(found, rel=0.1 if "remat" in row["model"] else 0.03), row


@on_jax
def test_a_compiled_step_keeps_of_a_block_what_is_planned():
    for row in measured()["blocks"]:
        predicted, found = row["adds"]
        assert predicted == pytest.approx(found, rel=0.05 if "experts" in row["block"] else 0.01), row


@on_jax
def test_a_compiled_step_takes_what_is_planned():
    rows = measured()["compiled"]
    assert len(rows) >= 8
    for row in rows:
        predicted, found = row["step"]
        assert predicted == pytest.approx(found, rel=0.1), row


def test_weights_are_those_of_models_that_exist():
    model = tfm.CausalLM(tfm.models.gpt(**TINY))
    model.compile(keras.optimizers.AdamW(1e-3))
    model.optimizer.build(model.trainable_variables)
    report = tfm.distribution.layout_report(model)
    parts = plan(model, batch_size=8).meshes[0].memory
    for kind, part in (("weight", "weights"), ("optimizer", "optimizer")):
        assert parts[part] == sum(p.bytes for p in report.placements if p.kind == kind)


@pytest.mark.parametrize("name", ["sgd", "adafactor", "lion", "rmsprop"])
def test_slots_are_those_that_an_optimizer_makes(name):
    model = tfm.CausalLM(tfm.models.gpt(**TINY))
    optimizer = keras.optimizers.get(name)
    described = describe(model, optimizer=optimizer)
    assert not optimizer.built
    optimizer.build(model.trainable_variables)
    made = sorted((tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for v in optimizer.variables)
    assert sorted((v.shape, v.dtype) for v in described.slots) == made


def test_a_cache_is_as_large_as_one_that_is_made():
    for options, dtype in (({"num_key_value_heads": 2}, "float32"), ({"window": 8}, None), ({}, "int8")):
        model = tfm.CausalLM(tfm.models.gpt(**TINY, **options))
        made = keras.tree.flatten(model.backbone.make_cache(4, 24, dtype))
        expected = sum(np.asarray(keras.ops.convert_to_numpy(array)).nbytes for array in made)
        job = Job(4, 16, policy="float32", cache_tokens=24, cache_dtype=dtype)
        assert memory.cache(describe(model), job, Way(1)) == expected


@pytest.mark.parametrize(
    ("source", "task", "parameters"),
    [
        ("gpt:small", None, 124_439_808),  # Radford et al. 2019, as published
        ("gpt:xl", None, 1_557_611_200),
        ("bert:base", "Backbone", 109_482_240),  # bert-base-uncased with its pooler
        ("bert:large", "Backbone", 335_141_888),
        ("vit:base", "Backbone", 85_798_656),
    ],
)
def test_published_parameter_counts(source, task, parameters):
    found = plan(source, task=task, policy="float32", batch_size=1)
    assert found.described.parameters == parameters
    assert found.meshes[0].memory["weights"] == pytest.approx(4 * parameters, rel=1e-5)
    assert found.meshes[0].memory["optimizer"] == pytest.approx(8 * parameters, rel=1e-5)


# Properties ------------------------------------------------------------------------------------------------------------

MODELS = {
    "decoder": lambda: describe(tfm.TransformerConfig(kind="decoder", intermediate_dim=256, dropout=0.1, **TINY)),
    "grouped": lambda: describe(
        tfm.TransformerConfig(
            kind="decoder", intermediate_dim=256, gated=True, norm="rms_norm", num_key_value_heads=4, **TINY
        )
    ),
    "encoder": lambda: describe("bert:tiny", "TextClassifier"),
    "pair": lambda: describe(tfm.TransformerConfig(kind="encoder_decoder", intermediate_dim=256, **TINY)),
}
described = functools.cache(lambda name: MODELS[name]())
options = st.fixed_dictionaries(
    {
        "jit_compile": st.booleans(),
        "remat": st.booleans(),
        "kernel": st.sampled_from(["dense", "fused"]),
        "sequence_length": st.sampled_from([8, 32]),
    }
)


@given(st.sampled_from(sorted(MODELS)), options, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_more_devices_never_need_more_of_each(name, given_options, data, model, fsdp):
    job = Job(64, **given_options)

    def of(way):
        parts = memory.training(described(name), job, way)
        return [
            {part: parts[part] for part in ("weights", "optimizer", "gathered")},
            *moments(described(name), job, way),
        ]

    few = of(Way(data, model, fsdp and data > 1))
    for more in (Way(2 * data, model, fsdp), Way(data, 2 * model, fsdp and data > 1)):
        if more.model <= (2 if name == "encoder" else 8):  # bert:tiny has two heads
            many = of(more)
            if few[0]["gathered"] == 0 < many[0]["gathered"]:
                del many[0]["gathered"]
            assert all(b[part] <= a[part] for a, b in zip(few, many, strict=True) for part in b), (few, many)


@given(st.sampled_from(sorted(MODELS)), options, st.sampled_from([1, 8, 64]))
@settings(max_examples=30, deadline=None)
def test_gradients_come_as_activations_go(name, given_options, rows):
    job, way = Job(rows, **given_options), Way(1)
    found, parts = moments(described(name), job, way), memory.training(described(name), job, way)
    gradients, kept = ([moment[part] for moment in found] for part in ("gradients", "activations"))
    assert gradients[:-1] == sorted(gradients[:-1])
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == total(activations.saved(described(name), job))
    assert kept[-1] == 0
    trained = sum(variable.bytes for variable in described(name).weights if variable.trainable)
    assert gradients[-1] == trained
    most = max(sum(moment.values()) for moment in found)
    assert sum(parts.values()) == most + parts["weights"] + parts["optimizer"]


def test_blocks_that_share_their_weights_share_a_gradient():
    shared, apart = (
        moments(describe(tfm.models.gpt(**TINY, layer_groups=groups)), Job(8, 16), Way(1)) for groups in (1, None)
    )
    assert len(shared) == len(apart) == 4
    assert shared[1]["gradients"] == shared[2]["gradients"] == apart[1]["gradients"] < apart[2]["gradients"]


@given(st.sampled_from(sorted(MODELS)), options, st.sampled_from([8, 32, 64]))
@settings(max_examples=30, deadline=None)
def test_remat_and_fused_kernels_never_keep_more(name, given_options, rows):
    def kept(**changes):
        job = Job(rows, **{**given_options, **changes})
        return max(moment["activations"] + moment["recomputed"] for moment in moments(described(name), job, Way(1)))

    assert kept(jit_compile=True) <= kept(jit_compile=False)
    assert kept(remat=True) <= kept(remat=False)
    assert kept(kernel="fused") <= kept(kernel="dense")


def test_the_whole_is_the_sum_of_its_parts():
    found = plan("gpt:small", devices=8, cache_tokens=1024)
    for mesh in found.meshes:
        if mesh.refused is None:
            assert mesh.bytes == max(sum(mesh.memory.values()), sum(mesh.generation.values())) > 0
            assert mesh.moved == sum(collective.bytes for collective in mesh.collectives)
            assert mesh.seconds["step"] == pytest.approx(mesh.seconds["compute"] + mesh.seconds["communication"])


def test_a_step_of_gpt_is_six_operations_a_weight_and_token():
    found = plan("gpt:small", batch_size=1, sequence_length=1024).meshes[0].flops
    weights = 12 * 12 * 768**2 + 50_257 * 768  # Kaplan et al. 2020, table 1, and the head
    attention = 12 * 12 * 768 * 1024  # 12 * layers * width * length a token, forward and backward
    assert found == pytest.approx(1024 * (6 * weights + attention), rel=1e-3)


def test_thousands_of_devices_are_planned_without_any():
    found = plan("gpt:medium", devices=4096, mesh="data=512,model=8", batch_size=4096)
    assert found.meshes[0].way.devices == 4096
    assert (
        found.meshes[0].memory["weights"] < plan("gpt:medium").meshes[0].memory["weights"] / 3
    )  # 50,257 tokens: whole
    series = plan("gpt:small", devices=8, batch_size=64).scaling(4096)
    assert series["data"][-1]["devices"] == 4096
    speeds = [point["tokens_per_second"] for point in series["data"]]
    assert speeds == sorted(speeds)
    assert all(point["tokens_per_second"] <= point["ideal"] * 1.0001 for points in series.values() for point in points)


# What is said ----------------------------------------------------------------------------------------------------------


def test_meshes_are_ranked_by_time_among_those_that_fit():
    found = plan("gpt:medium", devices=8, batch_size=64, memory="80GiB", remat=True)
    fitting = [mesh.seconds["step"] for mesh in found.meshes if mesh.fits]
    assert fitting == sorted(fitting)
    assert found.best is found.meshes[0]
    assert [mesh.fits for mesh in found.meshes] == sorted((mesh.fits for mesh in found.meshes), reverse=True)


def test_the_nearest_miss_and_its_remedies_hold():
    given_options = dict(devices=8, memory="24GiB", batch_size=64, mesh="data=8")
    found = plan("gpt:medium", **given_options)
    assert found.best is None
    text = str(found)
    assert "Nothing fits. data 8, fsdp is nearest" in text
    assert "remat=True" in text.split("It would fit with")[1].split("\n")[0]
    assert plan("gpt:medium", remat=True, **given_options).best is not None
    impossible = plan("gpt:xl", devices=1, memory="12GiB")
    assert "It would fit on" in impossible.advice[-1]


def test_text_json_and_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["plan", "gpt:small", "--devices", "8", "--memory", "80GiB", "--mesh", "data=2,model=4"]
    picture = tmp_path / "plan.png"
    cli.main([*arguments, "--plot", str(picture), "--plot-devices", "64", "--cache-tokens", "512"])
    printed = capsys.readouterr().out
    for words in ("124.4 M parameters", "data 2 x model 4", "tokens/s", "Assumptions:", "NVIDIA H100", "Generating"):
        assert words in printed
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    cli.main([*arguments, "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 124_439_808
    assert {(mesh["mesh"]["data"], mesh["mesh"]["model"]) for mesh in facts["meshes"]} == {(2, 4)}
    assert facts["meshes"][0]["bytes"] == sum(facts["meshes"][0]["memory"].values())


def test_every_description_of_a_model(tmp_path):
    config = tfm.TransformerConfig(kind="decoder", intermediate_dim=256, **TINY)
    model = tfm.CausalLM(tfm.Backbone(config))
    model.save_pretrained(tmp_path / "gpt")
    for file in (tmp_path / "gpt").glob("*.safetensors"):
        file.unlink()  # config.json is enough
    model.save(tmp_path / "gpt.keras")
    (tmp_path / "fields.json").write_text(json.dumps(config.to_dict()))
    sources = (config, model, tmp_path / "gpt", tmp_path / "gpt" / "config.json", tmp_path / "gpt.keras")
    for source in (*sources, str(tmp_path / "fields.json")):
        found = describe(source)
        assert type(found.model).__name__ == "CausalLM"
        assert found.parameters == model.count_params()
    assert type(describe(tmp_path / "gpt", "TextClassifier").model).__name__ == "TextClassifier"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(config="gpt:smal"), "Did you mean 'small'"),
        (dict(config="nothing"), "There is no model 'nothing'"),
        (dict(config=3), "config must be"),
        (dict(devices=0), "devices must be a positive integer; got 0"),
        (dict(memory="80 gigs"), "memory must be bytes, or a size such as '80GiB'.*got '80 gigs'"),
        (dict(device="H300"), "No device 'H300' is known.*Did you mean 'H"),
        (dict(devices=8, mesh="data=4,model=4"), "has 16 devices; there are 8"),
        (dict(devices=8, mesh="rows=8"), "mesh must be sizes of data and model"),
        (dict(loss="chunk"), "Did you mean 'chunked'"),
        (dict(config="bert:tiny", task="TextClassifier", loss="chunked"), "is of language models"),
        (dict(config="bert:tiny", cache_tokens=8), "models that generate"),
        (dict(cache_dtype="int8"), "give cache_tokens too"),
        (dict(task="Classifier"), "Did you mean '.*Classifier'"),
        (dict(sequence_length=4096), "more than the model's max_sequence_length=1024"),
        (dict(optimizer="adamx"), "optimizer must be a name"),
        (dict(utilization=2.0), "utilization must be"),
        (dict(config="vit:tiny", sequence_length=8), "no effect on a model of images"),
    ],
)
def test_what_means_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan(**{"config": "gpt:small", **arguments})


def test_no_weight_is_made(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("weights were made")

    monkeypatch.setattr(keras.initializers.TruncatedNormal, "__call__", refuse)
    assert plan("gpt:xl", devices=8).described.parameters > 10**9


def test_a_kept_tensor_is_named():
    names, compiled = (
        {tensor.name for tensor in activations.saved(described("decoder"), Job(4, 16, jit_compile=jit))}
        for jit in (False, True)
    )
    assert {"attention: probabilities", "attention: dropout mask", "feed-forward: activation"} <= names
    assert names - compiled == {name for name in names if name.endswith(("mask", "mask of embeddings"))}
