"""One block's program for all blocks: the same steps, from a program that does not grow with depth."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, numpy, some_steps

import keras_tfm as tfm

SIZES = dict(num_layers=3, hidden_dim=16, num_heads=2, vocabulary_size=23, max_sequence_length=8, dropout=0.3)
IDS = np.random.default_rng(0).integers(1, 23, (4, 8)).astype("int32")
MODELS = {
    "gpt": lambda: tfm.CausalLM(tfm.models.gpt(**SIZES, position="rotary")),
    "seq2seq": lambda: tfm.Seq2SeqLM(tfm.models.transformer(**SIZES, position="relative")),
    "classifier": lambda: tfm.TextClassifier(tfm.models.bert(**SIZES, mask_zero=True), num_classes=23),
    "half": lambda: tfm.CausalLM(tfm.models.gpt(**SIZES, dtype="mixed_bfloat16")),
}
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="JAX's scan")


def inputs(name):
    real = np.arange(8) < np.array([[8], [5], [8], [1]])
    if name == "classifier":
        return {"token_ids": IDS * real}
    ids = {"token_ids": IDS, "padding_mask": real}
    return ids | {"decoder_token_ids": IDS[:, :6]} if name == "seq2seq" else ids


@on_jax
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recompute", [False, True])
def test_the_same_steps(name, recompute):
    """Several of them, so that random states are seen to move on alike."""
    if recompute and name != "gpt":
        pytest.skip("one model says it")
    found = []
    for on in (False, True):
        model = MODELS[name]()
        model.backbone.scan_blocks(on)
        model.backbone.recompute_blocks(on and recompute)
        labels = {"seq2seq": IDS[:, :6], "classifier": IDS[:, 0]}.get(name, IDS)
        found.append(some_steps(model, inputs(name), labels))
    tolerance = 2e-2 if name == "half" else 1e-5
    assert_close(found[0][0], found[1][0], tolerance)
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        assert_close(mine, theirs, tolerance)


@on_jax
def test_the_program_does_not_grow_with_depth():
    import jax

    def size(layers, scan):
        backbone = tfm.models.gpt(**{**SIZES, "num_layers": layers})
        backbone.scan_blocks(scan)
        values = [[v.value for v in part] for part in (backbone.trainable_variables, backbone.non_trainable_variables)]

        def loss(trained, rest):
            return keras.ops.sum(backbone.stateless_call(trained, rest, IDS, training=True)[0])

        return jax.jit(jax.grad(loss)).lower(*values).as_text().count("stablehlo.dot_general")

    assert size(3, False) < 0.6 * size(6, False)
    assert size(3, True) == size(6, True) < size(3, False)


@on_jax
def test_calls_outside_of_compiled_programs_generation_and_scores_go_block_by_block():
    model = fill_weights(MODELS["gpt"](), 0.1)
    expected = numpy(model(IDS)), model.generate(IDS[:, :4], max_new_tokens=3), model.backbone.attention_scores(IDS)
    model.backbone.scan_blocks()
    assert_close(model(IDS), expected[0], 1e-6)
    assert_close(model.predict(IDS, verbose=0), expected[0], 1e-5)
    np.testing.assert_array_equal(model.generate(IDS[:, :4], max_new_tokens=3), expected[1])
    assert_close(model.backbone.attention_scores(IDS), expected[2], 1e-6)


@on_jax
@pytest.mark.parametrize(
    "options, message",
    [
        ({"drop_path": 0.2}, "block_1 differs from block_0 in drop_path"),
        ({"layer_pattern": [{"window": 2}, {}]}, "block_1 differs from block_0 in .*window"),
        ({"layer_groups": 1}, "share their weights"),
        (
            {"feed_forward": {"kind": "mixture_of_experts", "num_experts": 2, "top_k": 1, "balance_loss": 0.1}},
            "adds a loss",
        ),
    ],
)
def test_blocks_that_are_not_alike_are_refused(options, message):
    backbone = tfm.models.gpt(**SIZES, **options)
    with pytest.raises(ValueError, match=message):
        backbone.scan_blocks()
    backbone.scan_blocks(False)


@pytest.mark.skipif(BACKEND == "jax", reason="JAX can")
def test_other_backends_refuse():
    with pytest.raises(ValueError, match="scan_blocks is of JAX"):
        tfm.models.gpt(**SIZES).scan_blocks()
