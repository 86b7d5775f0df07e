"""Trains small models on 8 simulated devices and on one, and prints what came of it as JSON. Run by `test_layouts`.

python simulated.py KIND, with XLA_FLAGS=--xla_force_host_platform_device_count=8 and KERAS_BACKEND=jax.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile

import keras
import numpy as np

import keras_tfm as tfm
from keras_tfm import distribution

SIZES = dict(num_layers=2, hidden_dim=32, num_heads=8, vocabulary_size=64, max_sequence_length=16, dropout=0.0)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 64, (32, 12)).astype("int32")
LENGTHS = RANDOM.integers(4, 13, (32, 1))
MASK = np.arange(12) < LENGTHS

EXPERTS = {"kind": "mixture_of_experts", "num_experts": 8, "top_k": 2}


def classifier(**options):
    return tfm.TextClassifier(tfm.models.bert(**{**SIZES, **options}), num_classes=4)


def gpt(**options):
    return tfm.CausalLM(tfm.models.gpt(**{**SIZES, **options}))


MODELS = {
    "encoder": classifier,
    "decoder": gpt,
    "grouped": lambda **options: gpt(num_key_value_heads=2, position="rotary", norm="rms_norm", gated=True, **options),
    "experts": lambda **options: gpt(feed_forward=EXPERTS, **options),
    "encoder_decoder": lambda **options: tfm.Seq2SeqLM(tfm.models.transformer(**{**SIZES, **options})),
}
WAYS = {
    "data": lambda: distribution.data_parallel(),
    "tensor": lambda: distribution.tensor_parallel(),
    "fsdp": lambda: distribution.fsdp(),
    "data x tensor": lambda: distribution.tensor_parallel(distribution.mesh(data=2, model=4)),
    "fsdp x tensor": lambda: distribution.tensor_parallel(distribution.mesh(data=2, model=4), rest="data"),
}


def batch(kind):
    """Inputs and labels."""
    if kind == "encoder":
        return {"token_ids": IDS, "padding_mask": MASK}, IDS[:, 0] % 4
    labels = np.where(MASK, np.roll(IDS, -1, 1), -100)
    if kind == "encoder_decoder":
        return {"token_ids": IDS, "decoder_token_ids": IDS[:, ::-1].copy(), "padding_mask": MASK}, labels
    return {"token_ids": IDS, "padding_mask": MASK}, labels


def trained(kind):
    """The model after two epochs of four steps."""
    keras.utils.set_random_seed(0)
    model = MODELS[kind]()
    model.compile(keras.optimizers.AdamW(1e-2, global_clipnorm=1.0), metrics=None)
    x, y = batch(kind)
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model, history.history["loss"]


def collectives(kind, layers):
    """How many collectives of each sort the gradient of a model of so many layers has."""
    import jax

    model = MODELS[kind](num_layers=layers)
    x, y = batch(kind)
    weights = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    layout = keras.distribution.distribution().get_data_layout

    def placed(array):
        return jax.device_put(array, layout(array.shape).backend_layout)

    def forward(weights, x):
        return model.stateless_call(weights, others, x)[0]

    def loss(weights, x, y):
        return model._default_loss()(y, forward(weights, x))

    x, y = keras.tree.map_structure(placed, x), placed(y)
    texts = {
        "forward": jax.jit(forward).lower(weights, x).compile().as_text(),
        "both": jax.jit(jax.grad(loss)).lower(weights, x, y).compile().as_text(),
    }
    sorts = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    return {
        name: {sort: len(re.findall(rf" {sort}(?:-start)?\(", text)) for sort in sorts} for name, text in texts.items()
    }


def apart(ours, theirs):
    """The largest difference of two models' weights, and of their optimizers' slots."""
    groups = [(ours.weights, theirs.weights)]
    if getattr(ours, "optimizer", None) is not None:
        groups.append((ours.optimizer.variables, theirs.optimizer.variables))
    return [
        max(float(np.abs(np.asarray(a.value) - np.asarray(b.value)).max()) for a, b in zip(*pair, strict=True))
        for pair in groups
    ]


def saved(model, single, way):
    """Files written on the mesh and read on one device, and the other way round: how far apart what they hold is."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        with way().scope():
            model.save(f"{folder}/mesh.keras")
            model.save_weights(f"{folder}/mesh.weights.h5")
            model.save_pretrained(f"{folder}/mesh")
        one = keras.saving.load_model(f"{folder}/mesh.keras")
        found["keras"] = apart(one, model)
        fresh = MODELS["decoder"]()
        fresh.load_weights(f"{folder}/mesh.weights.h5")
        found["weights"] = apart(fresh, model)[:1]
        found["safetensors"] = apart(tfm.CausalLM.from_pretrained(f"{folder}/mesh"), model)[:1]
        single.save(f"{folder}/one.keras")
        single.save_pretrained(f"{folder}/one")
        with way().scope():
            for name, back in (
                ("keras, back", keras.saving.load_model(f"{folder}/one.keras")),
                ("safetensors, back", tfm.CausalLM.from_pretrained(f"{folder}/one")),
            ):
                found[name] = apart(back, single) if name.startswith("keras") else apart(back, single)[:1]
                split = distribution.layout_report(back)
                found[f"{name}: specs"] = specs(split) == specs(distribution.layout_report(model))
            x, y = batch("decoder")
            again = keras.saving.load_model(f"{folder}/mesh.keras")
            for one_more in (again, model):
                one_more.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        one.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        found["gone on, mesh"], found["gone on, one device"] = apart(again, model), apart(one, model)
    return found


def specs(report):
    return [(p.shape, p.spec) for p in report.placements if p.kind == "weight"]


def main() -> None:
    kind = sys.argv[1]
    single, losses = trained(kind)
    expected = [np.asarray(variable.value) for variable in single.trainable_variables]
    found = {"loss": losses, "ways": {}}
    for name, way in WAYS.items():
        with way().scope():
            model, losses = trained(kind)
            ours = [np.asarray(variable.value) for variable in model.trainable_variables]
            report = distribution.layout_report(model)
            entry = {
                "loss": losses,
                "difference": max(float(np.abs(a - b).max()) for a, b in zip(ours, expected, strict=True)),
                "placements": [
                    {"path": p.path, "kind": p.kind, "shape": p.shape, "spec": p.spec, "shard": p.shard}
                    for p in report.placements
                ],
                "bytes": report.bytes,
                "whole_bytes": report.whole_bytes,
                "text": str(report),
            }
            if name == "tensor" and kind in ("encoder", "decoder"):
                entry["collectives"] = [collectives(kind, layers) for layers in (1, 2)]
            found["ways"][name] = entry
        if kind == "decoder" and name in ("fsdp", "fsdp x tensor"):
            entry["saved"] = saved(model, single, way)
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
