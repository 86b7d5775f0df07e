"""What models take, counted: bytes of arrays, of JAX's residuals and of the collectives in compiled programs.

python measured.py, with XLA_FLAGS=--xla_force_host_platform_device_count=8 and KERAS_BACKEND=jax, prints predicted and
measured figures of small models as JSON. Run by `test_plan`, and with the argument "all" by `benchmarks.plan`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections import Counter

# XLA's library of loops for CPUs, which no other device has, makes up to two arrays more for each attention's scores.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_experimental_ynn_fusion_type="

import jax
import keras
import numpy as np

import keras_tfm as tfm
from keras_tfm import distribution
from keras_tfm.planning import activations, memory
from keras_tfm.planning.collectives import collectives
from keras_tfm.planning.described import describe
from keras_tfm.planning.job import Job
from keras_tfm.planning.tensors import total
from keras_tfm.planning.ways import Way

ROWS, LENGTH = 32, 32
SIZES = dict(num_layers=2, hidden_dim=64, num_heads=8, vocabulary_size=512, max_sequence_length=LENGTH, dropout=0.0)
LATER = dict(position="rotary", norm="rms_norm", gated=True, activation="silu", use_bias=False)
IDS = np.random.default_rng(0).integers(1, 512, (ROWS, LENGTH)).astype("int32")
MASK = np.ones((ROWS, LENGTH), bool)
NEXT = np.roll(IDS, -1, 1)
EXPERTS = {"kind": "mixture_of_experts", "num_experts": 8, "top_k": 2}


def gpt(policy="float32", **options):
    return tfm.CausalLM(tfm.models.gpt(**{**SIZES, **options}, dtype=policy))


def later(policy="float32", **options):
    return gpt(policy, **{**LATER, **options})


def masked(policy="float32", **options):
    return tfm.MaskedLM(tfm.models.bert(**{**SIZES, **options}, dtype=policy))


def classifier(policy="float32", **options):
    return tfm.TextClassifier(tfm.models.bert(**{**SIZES, **options}, dtype=policy), 4)


def pair(policy="float32", **options):
    return tfm.Seq2SeqLM(tfm.models.transformer(**{**SIZES, **options}, dtype=policy))


TOKENS = (IDS, NEXT)
MASKED = ({"token_ids": IDS, "padding_mask": MASK}, NEXT)
PAIRS = ({"token_ids": IDS, "decoder_token_ids": IDS[:, ::-1].copy()}, NEXT)
CLASSES = (IDS, IDS[:, 0] % 4)

WAYS = {
    "data 8": (Way(8), lambda: distribution.data_parallel()),
    "model 8": (Way(1, 8), lambda: distribution.tensor_parallel()),
    "data 8, fsdp": (Way(8, 1, True), lambda: distribution.fsdp()),
    "data 2 x model 4": (Way(2, 4), lambda: distribution.tensor_parallel(distribution.mesh(data=2, model=4))),
    "data 2 x model 4, fsdp": (
        Way(2, 4, True),
        lambda: distribution.tensor_parallel(distribution.mesh(data=2, model=4), rest="data"),
    ),
}
# Name, model, data, options of the job, ways.
MESHES = [
    ("decoder", gpt, TOKENS, {}, list(WAYS)),
    ("decoder, chunked loss", gpt, TOKENS, {"loss": "chunked"}, list(WAYS)),
    ("decoder, gated, rotary", later, TOKENS, {}, list(WAYS)),
    ("decoder, grouped heads", lambda: later(num_key_value_heads=2), TOKENS, {}, ["model 8", "data 2 x model 4"]),
    ("experts", lambda: gpt(feed_forward=EXPERTS), TOKENS, {}, list(WAYS)),
    ("encoder, masked tokens", masked, MASKED, {}, list(WAYS)),
    ("encoder, classifier", classifier, CLASSES, {}, ["data 8", "data 2 x model 4", "data 2 x model 4, fsdp"]),
    ("encoder-decoder", pair, PAIRS, {}, ["data 8", "data 2 x model 4"]),
]
FEWER = {  # of the ways, without the argument "all"
    "decoder, chunked loss": ["data 8, fsdp", "data 2 x model 4"],
    "decoder, gated, rotary": ["data 8, fsdp", "data 2 x model 4, fsdp"],
    "decoder, grouped heads": ["data 2 x model 4"],
    "experts": ["data 2 x model 4"],
    "encoder, masked tokens": ["model 8", "data 8, fsdp"],
    "encoder, classifier": ["data 2 x model 4"],
    "encoder-decoder": ["data 2 x model 4"],
}
# Name, model of a policy, data, options of the job, which is not compiled.
KEPT = [
    ("decoder", gpt, TOKENS, {}),
    ("decoder, dropout", lambda policy: gpt(policy, dropout=0.1), TOKENS, {}),
    ("decoder, chunked loss", gpt, TOKENS, {"loss": "chunked"}),
    ("decoder, remat", gpt, TOKENS, {"remat": True}),
    ("decoder, mixed_bfloat16", gpt, TOKENS, {"policy": "mixed_bfloat16"}),
    ("decoder, gated, grouped heads", lambda policy: later(policy, num_key_value_heads=2), TOKENS, {"loss": "chunked"}),
    (
        "decoder, gated, grouped heads, mixed_bfloat16, remat",
        lambda policy: later(policy, num_key_value_heads=2),
        TOKENS,
        {"loss": "chunked", "remat": True, "policy": "mixed_bfloat16"},
    ),
    ("decoder, relu, window", lambda policy: gpt(policy, activation="relu", window=8), TOKENS, {}),
    ("decoder, parallel", lambda policy: gpt(policy, parallel=True), TOKENS, {}),
    ("decoder, experts", lambda policy: gpt(policy, feed_forward=EXPERTS), TOKENS, {}),
    ("encoder, masked tokens", masked, MASKED, {}),
    ("encoder, classifier, dropout", lambda policy: classifier(policy, dropout=0.1), MASKED[:1] + CLASSES[1:], {}),
    ("encoder-decoder", pair, PAIRS, {}),
]
# Those that XLA compiles for a CPU as for other devices: there it undoes recomputation and widens 16 bits.
COMPILED = [case for case in KEPT if not {"remat", "policy"} & case[3].keys()]
BLOCKS = [  # options of the builder
    {"activation": "gelu_tanh"},
    {"activation": "gelu"},
    {"activation": "relu"},
    {"activation": "quick_gelu"},
    {"activation": "silu", "gated": True},
    {"activation": "relu", "gated": True},
    {"norm": "rms_norm"},
    {"norm": "rms_norm", "norm_placement": "sandwich"},
    {"norm_placement": "residual"},
    {"norm_placement": "none"},
    {"num_key_value_heads": 2, "head_dim": 16},
    {"parallel": True},
    {"parallel": "shared_norm"},
    {"dropout": 0.1},
    {"feed_forward": EXPERTS},
    {"feed_forward": {**EXPERTS, "num_experts": 4}, "activation": "silu", "gated": True},
]
ITEM = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "pred": 1}
SORTS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def compiled(model, data, loss="dense"):
    """The train step of `fit`, compiled for the distribution that is set."""
    model.compile(keras.optimizers.AdamW(1e-3), loss="auto" if loss == "dense" else "linear_crossentropy", metrics=None)
    model.optimizer.build(model.trainable_variables)
    layouts = keras.distribution.distribution()
    state = model._get_jax_state(
        trainable_variables=True, non_trainable_variables=True, optimizer_variables=True, metrics_variables=True
    )
    options = {}
    if layouts is not None:
        data = keras.tree.map_structure(
            lambda a: jax.device_put(a, layouts.get_data_layout(a.shape).backend_layout), data
        )
        options["out_shardings"] = (None, model._get_state_sharding_spec())
    return jax.jit(model.train_step, donate_argnums=0, **options).lower(state, (*data, None)).compile()


def exchanged(text):
    """Tensors and bytes of each sort of collective in a compiled program."""
    tensors, sizes = Counter(), Counter()
    for shapes, sort in re.findall(rf"= (.*?) ({SORTS})(?:-start)?\(", text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"/\*.*?\*/", "", shapes)):
            tensors[sort] += 1
            sizes[sort] += ITEM[dtype] * math.prod(int(size) for size in shape.split(",") if size)
    return tensors, sizes


def residuals(model, data, loss="dense"):
    """Bytes that the loss's derivative by the weights keeps: equal values once, weights and constants not."""
    model.compile(keras.optimizers.SGD(1e-3), loss="auto" if loss == "dense" else "linear_crossentropy", metrics=None)
    model.optimizer.build(model.trainable_variables)
    random = np.random.default_rng(1)
    for variable in model.trainable_variables:  # no two weights are equal
        variable.assign(variable + 0.01 * random.normal(size=variable.shape).astype("float32"))
    trained = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    slots = [variable.value for variable in model.optimizer.variables]
    x, y = keras.tree.map_structure(jax.numpy.asarray, data)

    def loss_of(trained):
        projects = getattr(model, "_as_the_loss_takes_it", contextlib.nullcontext)
        with projects():
            return model.compute_loss_and_updates(
                trained, others, [], x, y, None, training=True, optimizer_variables=slots
            )[0]

    _, back = jax.vjp(loss_of, trained)
    weights = {array.tobytes() for value in trained for array in (np.asarray(value), np.asarray(value).T)}
    kept = {}
    for leaf in jax.tree.leaves(back):
        array = np.asarray(leaf)
        if array.size and not (array == array.flat[0]).all() and array.tobytes() not in weights:
            kept.setdefault(array.tobytes(), array.nbytes)
    return sum(kept.values())


def on_meshes():
    found = []
    for name, make, data, options, names in MESHES:
        for mesh in names if "all" in sys.argv else FEWER.get(name, names):
            way, layouts = WAYS[mesh]
            job = Job(ROWS, LENGTH, policy="float32", **options)
            with layouts().scope():
                model = make()
                program = compiled(model, data, job.loss)
                tensors, sizes = exchanged(program.as_text())
                report = distribution.layout_report(model)
            described = describe(make())
            expected = collectives(described, job, way)
            parts = memory.training(described, job, way)
            held = {kind: sum(p.bytes for p in report.placements if p.kind == kind) for kind in ("weight", "optimizer")}
            trained = {variable.path for variable in model.trainable_variables}
            gradients = sum(p.bytes for p in report.placements if p.path in trained)
            found.append(
                {
                    "model": name,
                    "mesh": mesh,
                    "weights": [parts["weights"], held["weight"]],
                    "gradients": [memory.moments(described, job, way)[-1]["gradients"], gradients],
                    "optimizer": [parts["optimizer"], held["optimizer"]],
                    "tensors": [sum(c.tensors for c in expected), sum(tensors.values())],
                    "moved": [sum(c.bytes for c in expected), sum(sizes.values())],
                    "sorts": {sort: [sum(c.bytes for c in expected if c.kind == sort), sizes[sort]] for sort in sizes},
                    "step": [
                        sum(parts.values()) - parts["weights"] - parts["optimizer"],
                        program.memory_analysis().temp_size_in_bytes,
                    ],
                }
            )
    return found


def kept():
    found = []
    for name, make, data, options in KEPT:
        options = {"policy": "float32", **options}
        model = make(options["policy"])
        if options.get("remat"):
            model.backbone.recompute_blocks()
        measured = residuals(model, data, options.get("loss", "dense"))
        described, job = describe(model), Job(ROWS, LENGTH, jit_compile=False, **options)
        found.append({"model": name, "activations": [total(activations.saved(described, job)), measured]})
    return found


def compiled_on_one():
    """Bytes that a compiled step takes beside its arguments, as XLA's memory analysis has them."""
    found = []
    for name, make, data, options in COMPILED:
        job = Job(ROWS, LENGTH, policy="float32", **options)
        program = compiled(make("float32"), data, job.loss)
        parts = memory.training(describe(make("float32")), job, Way(1))
        predicted = sum(parts.values()) - parts["weights"] - parts["optimizer"]
        found.append({"model": name, "step": [predicted, program.memory_analysis().temp_size_in_bytes]})
    return found


def a_block_more():
    """Bytes that one block more adds to a compiled step: what it keeps, and nothing that is passing."""
    found = []
    for options in BLOCKS:
        planned, taken = [], []
        for layers in (2, 3):
            program = compiled(gpt(num_layers=layers, **options), TOKENS)
            taken.append(program.memory_analysis().temp_size_in_bytes)
            described = describe(gpt(num_layers=layers, **options))
            planned.append(total(activations.saved(described, Job(ROWS, LENGTH, policy="float32"))))
        name = ", ".join(f"{key}={value!r}" for key, value in options.items())
        found.append({"block": name, "adds": [planned[1] - planned[0], taken[1] - taken[0]]})
    return found


def main() -> None:
    found = {"meshes": on_meshes(), "kept": kept(), "blocks": a_block_more(), "compiled": compiled_on_one()}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
