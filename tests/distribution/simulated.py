"""Trains small models on 8 simulated devices and on one, and prints what came of it as JSON. Run by `test_layouts`.

python simulated.py KIND, with XLA_FLAGS=--xla_force_host_platform_device_count=8 and KERAS_BACKEND=jax.
"""

from __future__ import annotations

import json
import re
import sys

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
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
