"""Adapter files: what `peft` writes is read, what is written `peft` reads, with its outputs; what is not, is refused."""

import json

import numpy as np
import pytest
from helpers import assert_close, numpy
from safetensors.numpy import load_file, save_file

import keras_tfm
from keras_tfm import architectures
from keras_tfm.checkpoints.matching import pairs
from keras_tfm.training import add_lora, freeze, load_adapter, save_adapter, set_adapter, unfreeze
from keras_tfm.training.adapter_files import CONFIG, WEIGHTS
from training.models import SIZES, X, classifier, not_jax, quickly, writer
from training.test_lora import shaken

TASK = {"peft_type": "LORA", "bias": "none", "lora_alpha": 6, "r": 2}
ROTARY = dict(num_key_value_heads=1, norm="rms_norm", gated=True, activation="silu", use_bias=False, position="rotary")


def family_model(family):
    """A small model of a family, and the prefix of its names."""
    if family == "bert":
        return classifier(), "bert."
    if family == "gpt2":
        return writer(), "transformer."
    options = {"llama": ROTARY, "phi3": {**ROTARY, "family": "phi3"}}[family]
    return writer(tie_embeddings=False, **options), "model."


# Names as peft's documentation and files have them: `base_model.model.` and the module's, behind it lora_A and lora_B.
MODULES = {
    "bert": ["bert.encoder.layer.1.attention.self.query", "bert.encoder.layer.0.output.dense", "bert.pooler.dense"],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"],
    "llama": ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.gate_proj", "model.layers.0.self_attn.o_proj"],
    "phi3": ["model.layers.1.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"],
}
TRANSPOSED = ("gpt2",)


def write(directory, arrays, **config):
    directory.mkdir(exist_ok=True)
    save_file({f"base_model.model.{key}": value for key, value in arrays.items()}, directory / WEIGHTS)
    (directory / CONFIG).write_text(json.dumps({**TASK, **config}))
    return directory


@pytest.mark.once
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", MODULES)
def test_reads_what_the_documented_formula_means(family, dora, tmp_path):
    """W + alpha / r * B A, as (out, in) matrices of the published model, each row of DoRA's with its magnitude."""
    model, _ = family_model(family)
    expected, prefix = family_model(family)
    architecture = architectures.find(family)
    rng, arrays = np.random.default_rng(0), {}
    for pair in pairs(expected, architecture):
        name = ("" if pair.in_head else prefix) + pair.theirs.removesuffix(".weight")
        if name in MODULES[family] and pair.theirs.endswith(".weight"):
            theirs = pair.write()
            weight = theirs.T if family in TRANSPOSED else theirs  # (out, in)
            a, b = rng.normal(size=(2, weight.shape[1])), rng.normal(size=(weight.shape[0], 2))
            a, b = 0.3 * a.astype("float32"), 0.3 * b.astype("float32")
            weight = weight + 6 / 2 * b @ a
            arrays |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
            if dora:
                magnitude = 1 + rng.random(weight.shape[0]).astype("float32")
                weight = magnitude[:, None] * weight / np.linalg.norm(weight, axis=1, keepdims=True)
                arrays[f"{name}.lora_magnitude_vector"] = magnitude
            pair.read(np.ascontiguousarray(weight.T if family in TRANSPOSED else weight))
    assert len(arrays) == (3 if dora else 2) * len(MODULES[family])
    before = numpy(model(X))
    load_adapter(model, write(tmp_path / "theirs", arrays, use_dora=dora), "read")
    assert_close(model(X), expected(X), 2e-5)
    assert np.abs(numpy(model(X)) - before).max() > 1e-2

    if family == "bert":
        freeze(model, "head")
    save_adapter(model, tmp_path / "ours")  # the same tensors, fused ones included
    written = load_file(tmp_path / "ours" / WEIGHTS)
    assert set(written) == {f"base_model.model.{key}" for key in arrays}
    for key, value in arrays.items():
        np.testing.assert_array_equal(written[f"base_model.model.{key}"], value)


@pytest.mark.parametrize(
    "family, options",
    [
        pytest.param("bert", {"dora": True, "rank_stabilized": True}, marks=quickly),
        pytest.param("gpt2", {"dora": True}, marks=not_jax),
    ],
)
def test_round_trip(family, options, tmp_path):
    model, _ = family_model(family)
    add_lora(model, 2, alpha=3, targets=["query", "value", "blocks[0].feed_forward.up"], **options)
    shaken(model)
    save_adapter(model, tmp_path, base="somewhere")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["base_model_name_or_path"] == "somewhere"
    assert config["peft_type"] == "LORA"
    again, _ = family_model(family)
    if family == "bert":  # the head comes along
        again.head.logits.kernel.assign(np.zeros((8, 3)))
    load_adapter(again, tmp_path)
    assert_close(again(X), model(X), 1e-5)


@pytest.mark.once
def test_fused_projections_get_all_ranks(tmp_path):
    model, _ = family_model("gpt2")
    add_lora(model, 2, alpha=3, targets=["query", "value", "up"], rank_stabilized=True)
    shaken(model)
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    shapes = {
        key.split("h.0.")[1]: value.shape for key, value in load_file(tmp_path / WEIGHTS).items() if "h.0." in key
    }
    assert shapes == {
        "attn.c_attn.lora_A.weight": (4, 8),
        "attn.c_attn.lora_B.weight": (24, 4),
        "mlp.c_fc.lora_A.weight": (2, 8),
        "mlp.c_fc.lora_B.weight": (12, 2),
    }
    assert config["fan_in_fan_out"]
    assert config["target_modules"] == ["c_attn", "c_fc"]
    ranks = {config["r"], *config["rank_pattern"].values()}
    alphas = {config["lora_alpha"], *config["alpha_pattern"].values()}
    assert ranks == {2, 4}
    assert sorted(alphas) == pytest.approx([3, 3 * np.sqrt(2)])


PEFT = {
    "bert": (
        "BertForSequenceClassification",
        dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, num_labels=3),
        ["query", "value", "dense"],
    ),
    "gpt2": ("GPT2LMHeadModel", dict(n_embd=8, n_layer=2, n_head=2, n_positions=8), ["c_attn", "c_proj"]),
    "llama": (
        "LlamaForCausalLM",
        dict(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=12),
        "all-linear",
    ),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", PEFT)
def test_peft_agrees(family, dora, tmp_path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, sizes, targets = PEFT[family]
    config = transformers.AutoConfig.for_model(family, vocab_size=11, **sizes, bos_token_id=1, eos_token_id=1)
    base = getattr(transformers, name)(config).eval()
    base.save_pretrained(tmp_path / "base")

    def theirs(model):
        with torch.no_grad():
            return model(torch.tensor(X, dtype=torch.int64)).logits.numpy()

    model = keras_tfm.from_pretrained(tmp_path / "base")
    add_lora(model, 2, alpha=3, targets=["query", "value", "blocks[0].feed_forward.*"], dora=dora)
    shaken(model)
    save_adapter(model, tmp_path / "ours")
    assert_close(model(X), theirs(peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()), 1e-5)

    base = getattr(transformers, name).from_pretrained(tmp_path / "base")
    options = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, use_dora=dora, use_rslora=True, lora_dropout=0.1,
        task_type="SEQ_CLS" if family == "bert" else None, alpha_pattern={"layers.0.mlp.up_proj": 7},
    )  # fmt: skip
    tuned = peft.get_peft_model(base, options).eval()
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "theirs")
    load_adapter(model, tmp_path / "theirs", "theirs")
    assert_close(model(X), theirs(tuned), 1e-5)
    set_adapter(model, "default")
    freeze(model, "head") if family == "bert" else None
    set_adapter(model, "theirs")
    save_adapter(model, tmp_path / "again")
    first, second = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    updates = {key for key in first if "lora_" in key}
    assert updates == {key for key in second if "lora_" in key}
    for key in updates:
        np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.once
@pytest.mark.parametrize(
    "config, says",
    [
        (dict(peft_type="IA3"), "adapter of type 'IA3'"),
        (dict(bias="all"), "bias='all'"),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (dict(use_dora=True), "too few tensors"),
    ],
)
def test_refuses_other_adapters(config, says, tmp_path):
    model, _ = family_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    arrays = {f"{name}.lora_A.weight": np.ones((2, 8), "f4"), f"{name}.lora_B.weight": np.ones((8, 2), "f4")}
    with pytest.raises(ValueError, match=says):
        load_adapter(model, write(tmp_path, arrays, **config))
    assert all(v.trainable for v in model.weights)


@pytest.mark.once
def test_refuses_other_tensors(tmp_path):
    model, _ = family_model("llama")
    name = "model.layers.0.self_attn.q_proj"
    good = {f"{name}.lora_A.weight": np.ones((2, 8), "f4"), f"{name}.lora_B.weight": np.ones((8, 2), "f4")}
    for arrays, says in (
        ({**good, "model.layers.7.mlp.up_proj.lora_A.weight": np.ones((2, 8), "f4")}, "has no place for: .*layers.7"),
        (
            {**good, "model.embed_tokens.lora_embedding_A": np.ones((2, 11), "f4")},
            "has no place for: .*lora_embedding_A",
        ),
        ({**good, f"{name}.lora_A.weight": np.ones((2, 9), "f4")}, "lora_A \\(2, 9\\)"),
        ({f"{name}.lora_A.weight": good[f"{name}.lora_A.weight"]}, "too few tensors"),
        ({}, "has no LoRA"),
    ):
        with pytest.raises(ValueError, match=says):
            load_adapter(model, write(tmp_path / "theirs", arrays))
    assert not any("lora_" in v.path for v in model.weights)
    (tmp_path / "theirs" / WEIGHTS).rename(tmp_path / "theirs" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="is a pickle"):
        load_adapter(model, tmp_path / "theirs")
    with pytest.raises(FileNotFoundError, match=CONFIG):
        load_adapter(model, tmp_path)


@pytest.mark.once
def test_refuses_to_write_less_than_was_trained(tmp_path):
    model, _ = family_model("bert")
    with pytest.raises(ValueError, match="no LoRA to save"):
        save_adapter(model, tmp_path / "new")
    add_lora(model, 2)
    with pytest.raises(ValueError, match="has no adapter 'other'"):
        save_adapter(model, tmp_path / "new", "other")
    unfreeze(model, "embedding_norm")
    with pytest.raises(ValueError, match="embedding_norm/gamma, embedding_norm/beta are trained"):
        save_adapter(model, tmp_path / "new")
    masked = keras_tfm.MaskedLM(keras_tfm.models.bert(num_layers=1, **SIZES))
    add_lora(masked, 2)
    with pytest.raises(ValueError, match=r"cls\.predictions"):
        save_adapter(masked, tmp_path / "new")
    freeze(masked, "head")
    set_adapter(masked, None)
    with pytest.raises(ValueError, match="uses no adapter now"):
        save_adapter(masked, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    save_adapter(masked, tmp_path / "new", "default")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [CONFIG, WEIGHTS]
