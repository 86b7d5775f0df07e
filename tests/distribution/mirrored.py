"""Trains small models under MirroredStrategy on 4 logical devices and on one, and prints what came of it as JSON.

python mirrored.py, with KERAS_BACKEND=tensorflow. Run by `test_strategies`.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import traceback
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_tfm as tfm

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # each program runs a few times
STRATEGY = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(4)])

SIZES = dict(num_layers=1, hidden_dim=16, num_heads=2, vocabulary_size=64, max_sequence_length=16, dropout=0.0)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(1, 64, (16, 12)).astype("int32")
# Rows of a replica (a quarter of a batch of 8) differ in length from those of the others.
LENGTHS = np.tile([12, 11, 3, 2, 7, 6, 1, 1], 2)[:, None]
MASK = np.arange(12) < LENGTHS
LABELS = np.where(MASK, np.roll(IDS, -1, 1), -100)
TEXTS = [" ".join(["soup", "bean", "day"][i % 3] for i in range(n, n + 2 + n % 4)) for n in range(13)]
TOKENIZER = tfm.data.train_tokenizer(TEXTS, 60, kind="wordpiece", max_length=16)
ONE_IN_FOUR = np.where(np.arange(12) % 4 == np.arange(16)[:, None] % 3, LABELS, -100)


def gpt(**options):
    return tfm.CausalLM(tfm.models.gpt(**{**SIZES, **options}))


def classifier(**options):
    return tfm.TextClassifier(tfm.models.bert(**{**SIZES, **options}), num_classes=4)


def on_texts(**options):
    sizes = {**SIZES, "vocabulary_size": TOKENIZER.vocabulary_size, **options}
    return tfm.TextClassifier(tfm.models.bert(**sizes), 2, tokenizer=TOKENIZER)


PADDED = {"token_ids": IDS, "padding_mask": MASK}
BOTH = {"token_ids": IDS, "decoder_token_ids": IDS[:, ::-1].copy(), "padding_mask": MASK}
SPANS = {"start_logits": LENGTHS[:, 0] // 3, "end_logits": np.where(LENGTHS[:, 0] > 2, LENGTHS[:, 0] // 2, -100)}


def recomputed():
    """With two things that keep state of their own: blocks computed twice, and adapters."""
    model = gpt()
    model.backbone.recompute_blocks()
    tfm.training.add_lora(model, rank=2)
    return model


def experts(**options):
    return gpt(feed_forward={"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2, **options})


KINDS = {
    "encoder": (classifier, PADDED, IDS[:, 0] % 4),
    "decoder": (gpt, PADDED, LABELS),
    "linear": (gpt, PADDED, LABELS),
    "encoder_decoder": (lambda: tfm.Seq2SeqLM(tfm.models.transformer(**SIZES)), BOTH, LABELS),
    "texts": (on_texts, TEXTS, [n % 2 for n in range(13)]),
    "bfloat16": (gpt, PADDED, LABELS),
    "tokens, PyDataset": (
        lambda: tfm.TokenClassifier(tfm.models.bert(**SIZES), 5),
        PADDED,
        np.where(MASK, IDS % 5, -100),
    ),
    "masked, tf.data": (lambda: tfm.MaskedLM(tfm.models.bert(**SIZES)), PADDED, ONE_IN_FOUR),
    "answers, clipnorm": (lambda: tfm.QuestionAnswerer(tfm.models.bert(**SIZES)), PADDED, SPANS),
    "experts, clipvalue": (experts, PADDED, LABELS),
    "weights, rates": (gpt, PADDED, LABELS),
    "recomputed, lora": (recomputed, PADDED, LABELS),
}
TRACED = ("encoder", "linear")
OPTIMIZERS = {
    "decoder": lambda: keras.optimizers.AdamW(1e-2, epsilon=1e-5),
    "experts, clipvalue": lambda: keras.optimizers.SGD(0.5, clipvalue=1e-2),
    "answers, clipnorm": lambda: keras.optimizers.SGD(0.5, clipnorm=1e-2),
}


class Rows(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.y) // 8)

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return {name: value[rows] for name, value in self.x.items()}, self.y[rows]


def scope(strategy):
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def trained(kind, strategy=None):
    """The model after two epochs, and its losses. Only what must be is made within the strategy's scope."""
    keras.utils.set_random_seed(0)
    make, x, y = KINDS[kind]
    options = {}
    with scope(strategy):
        keras.config.set_dtype_policy("mixed_bfloat16" if kind == "bfloat16" else "float32")
        model = make()
        keras.config.set_dtype_policy("float32")
        optimizer = OPTIMIZERS.get(kind, lambda: keras.optimizers.AdamW(1e-2, global_clipnorm=0.1))()
        if kind == "weights, rates":
            optimizer = tfm.training.layer_rates(model, 0.5, optimizer)
        loss = "linear_crossentropy" if kind == "linear" else "auto"
        # Eagerly where it is about losses and gradients alone: tracing four replicas takes most of the time.
        model.compile(optimizer, loss, run_eagerly=kind not in TRACED)
    if kind == "weights, rates":
        options["sample_weight"] = np.linspace(0.0, 2.0, 16).astype("float32")
    if kind == "masked, tf.data":
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        x, y = data, None
    if kind == "tokens, PyDataset":
        x, y = Rows(x, y), None
    # Texts are shuffled, in the same order under any strategy; of arrays Keras draws another one.
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=kind == "texts", verbose=0, **options)
    return model, history.history["loss"]


def values(model):
    return [np.asarray(keras.ops.convert_to_tensor(variable)) for variable in model.trainable_variables]


def apart(ours, theirs):
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def same(kind):
    keras.utils.set_random_seed(0)
    start = values(KINDS[kind][0]())
    one, expected = trained(kind)
    many, losses = trained(kind, STRATEGY)
    assert all(STRATEGY.extended.variable_created_in_scope(variable.value) for variable in many.variables)
    return {
        "difference": apart(values(many), values(one)),
        "trained": apart(values(one), start),
        "losses": [losses, expected],
    }


CHECKS = {f"same {kind}": (lambda kind=kind: same(kind)) for kind in KINDS}


def check(function):
    CHECKS[function.__name__] = function
    return function


def message(function, error=ValueError):
    try:
        function()
    except error as found:
        return str(found)
    return "nothing was raised"


@check
def raw_rows():
    one, many = trained("texts")[0], trained("texts", STRATEGY)[0]
    labels = KINDS["texts"][2]
    return {
        "predict": apart([many.predict(TEXTS, batch_size=8)], [one.predict(TEXTS, batch_size=8)]),
        "batch": apart([many.predict_on_batch(IDS % 20)], [one.predict_on_batch(IDS % 20)]),
        "accuracy": [model.evaluate(TEXTS, labels, batch_size=8, verbose=0)[1] for model in (one, many)],
    }


@check
def defaults_outside_of_the_scope():
    """`fit` on a model that is not compiled makes the optimizer itself, of the model's strategy."""
    with STRATEGY.scope():
        model = gpt()
    history = model.fit(PADDED, batch_size=8, epochs=1, verbose=0)
    steps = model.optimizer.__dict__.get("update_step")
    return {"finite": bool(np.isfinite(history.history["loss"]).all()), "fused": steps is not None}


@check
def saved():
    """There and back: a file of one is the other's, and training goes on alike."""
    found = {}
    for name, before, after in (("to one", STRATEGY, None), ("from one", None, STRATEGY)):
        model, _ = trained("decoder", before)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            with scope(after):
                again = keras.saving.load_model(path)
            found[name] = apart(values(again), values(model))
            for one in (model, again):
                one.fit(PADDED, LABELS, batch_size=8, epochs=1, shuffle=False, verbose=0)
            found[f"{name}, trained on"] = apart(values(again), values(model))
    return found


@check
def generated():
    with STRATEGY.scope():
        keras.utils.set_random_seed(0)
        many = gpt()
    keras.utils.set_random_seed(0)
    one = gpt()
    prompts = IDS[:3, :4]
    ours, theirs = (model.generate(prompts, max_new_tokens=5) for model in (many, one))
    return {"same": bool(np.array_equal(np.asarray(ours), np.asarray(theirs)))}


@check
def dropout():
    """Each replica draws its own mask, of the right rate."""
    with STRATEGY.scope():
        layer = tfm.layers.Dropout(0.5, seed=1)
    step = tf.function(lambda: STRATEGY.run(lambda: layer(tf.ones((1, 4096)), training=True)))
    draws = [[np.asarray(value) > 0 for value in STRATEGY.experimental_local_results(step())] for _ in range(2)]
    alone = tfm.layers.Dropout(0.5, seed=1)(np.ones((1, 4096), "float32"), training=True)
    masks = [mask for draw in draws for mask in draw]
    pairs = [float((masks[a] == masks[b]).mean()) for a in range(8) for b in range(a)]
    return {
        "agreement": [min(pairs), max(pairs)],
        "kept": [float(mask.mean()) for mask in masks],
        "first as alone": bool(np.array_equal(masks[0], np.asarray(alone) > 0)),
    }


@check
def distilled():
    def run(strategy):
        keras.utils.set_random_seed(0)
        with scope(strategy):
            student, teacher = gpt(), gpt(num_layers=2)
            distiller = tfm.training.Distiller(student, teacher, hard=0.5, hidden=0.3)
            distiller.compile(keras.optimizers.SGD(0.1, global_clipnorm=0.1), run_eagerly=True)
        history = distiller.fit(PADDED, LABELS, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return values(student), {name: each for name, each in history.history.items() if "loss" in name}

    (one, expected), (many, losses) = run(None), run(STRATEGY)
    return {"difference": apart(many, one), "losses": [losses, expected]}


@check
def plain_mean():
    """How far Keras's mean of the replicas' means is from the mean over tokens."""
    replicas = tfm.ops.replicas
    one, _ = trained("decoder")
    summed, replicas.summed = replicas.summed, lambda x: x * replicas.count()
    try:
        many, _ = trained("decoder", STRATEGY)
    finally:
        replicas.summed = summed
    return apart(values(many), values(one))


@check
def refused():
    found = {}

    def fit(
        name, rows=PADDED, labels=LABELS, dtype="float32", build=gpt, optimizer="adam", error=ValueError, **options
    ):
        fitting = options.pop("fit", {"batch_size": 8})
        with STRATEGY.scope():
            keras.config.set_dtype_policy(dtype)
            model = build()
            keras.config.set_dtype_policy("float32")
            model.compile(optimizer() if callable(optimizer) else optimizer, **options)
        found[name] = message(lambda: model.fit(rows, labels, verbose=0, **fitting), error)

    fit("float16", dtype="mixed_float16")
    fit("jit", jit_compile=True)
    fit("steps", steps_per_execution=2)
    fit("accumulation", optimizer=lambda: keras.optimizers.SGD(gradient_accumulation_steps=2))
    sparse = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="mean_with_sample_weight")
    fit("mean", build=classifier, labels=IDS[:, 0] % 4, loss=sparse)
    fit("batch size", fit={"batch_size": 6})
    short = {name: value[:13] for name, value in PADDED.items()}
    fit("last rows", short, LABELS[:13])
    fit("tensors", tf.constant(IDS[:13]), LABELS[:13])
    fit("split", fit={"batch_size": 8, "validation_split": 0.1})
    data = tf.data.Dataset.from_tensor_slices((short, LABELS[:13])).batch(8)
    fit("tf.data", data, None, error=(ValueError, tf.errors.InvalidArgumentError), fit={})
    fixed = tf.data.Dataset.from_tensor_slices((PADDED, LABELS)).batch(6, drop_remainder=True)
    fit("fixed tf.data", fixed, None, fit={})
    fit("PyDataset", Rows(short, LABELS[:13]), None, error=Exception, fit={})
    fit("generator", iter([(short, LABELS[:13])]), None, error=Exception, fit={})
    fit("validation", fit={"batch_size": 8, "validation_data": (short, LABELS[:13])})
    squares = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit("other loss", TEXTS, [n % 2 for n in range(13)], build=on_texts, loss=squares)
    outside = gpt()
    backbone = tfm.models.gpt(**SIZES)
    adam = keras.optimizers.Adam()
    with STRATEGY.scope():
        found["model"] = message(lambda: outside.fit(PADDED, LABELS, batch_size=8, verbose=0))
        half = tfm.CausalLM(backbone)
        within = gpt()
        within.compile(adam)
    found["backbone"] = message(lambda: half.fit(PADDED, LABELS, batch_size=8, verbose=0))
    found["optimizer"] = message(lambda: within.fit(PADDED, LABELS, batch_size=8, verbose=0))
    other = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found["other strategy"] = message(lambda: tfm.distribution.check_strategy(within, other))
    return found


@check
def page():
    """The documentation's own lines."""
    text = (Path(__file__).parents[2] / "docs" / "distribution.md").read_text("utf-8")
    block = text.partition("## Several GPUs with TensorFlow")[2].partition("```py\n")[2].partition("```")[0]
    names = {"keras": keras, "tfm": tfm, "x": IDS, "y": LABELS}
    made = tf.distribute.MirroredStrategy
    tf.distribute.MirroredStrategy = lambda: STRATEGY  # of two in one process, TensorFlow mixes the collectives up
    try:
        exec(block, names)
    finally:
        tf.distribute.MirroredStrategy = made
    return int(keras.ops.convert_to_numpy(names["model"].optimizer.iterations))


@check
def jit_auto():
    """On a machine with accelerators "auto" is XLA, but not under a strategy."""
    physical = tf.config.list_physical_devices
    tf.config.list_physical_devices = lambda *kind: [*physical(), tf.config.PhysicalDevice("GPU:0", "GPU")]
    try:
        one = gpt()
        one.compile("adam")
        with STRATEGY.scope():
            many = gpt()
        many.compile("adam")
    finally:
        tf.config.list_physical_devices = physical
    return {"one": one.jit_compile, "many": many.jit_compile}


def main() -> None:
    names = sys.argv[1:] or list(CHECKS)
    found = {}
    for name in names:
        try:
            start = time.process_time()
            found[name] = CHECKS[name]()
            print(f"{name}: {time.process_time() - start:.0f} s", file=sys.stderr)
        except Exception:
            found[name] = {"error": traceback.format_exc()[-3000:]}
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
