"""Blocks computed twice: the same steps, from less memory."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, numpy, some_steps

import keras_tfm as tfm

SIZES = dict(num_layers=3, hidden_dim=16, num_heads=2, vocabulary_size=23, max_sequence_length=8, dropout=0.3)
IDS = np.random.default_rng(0).integers(1, 23, (4, 8)).astype("int32")
MODELS = {
    "gpt": lambda **o: tfm.CausalLM(tfm.models.gpt(**SIZES, drop_path=0.2, **o)),
    "seq2seq": lambda **o: tfm.Seq2SeqLM(tfm.models.transformer(**SIZES, **o)),
    "masks of zeros": lambda **o: tfm.TextClassifier(
        tfm.models.bert(**SIZES, mask_zero=True, pooler=False, **o), num_classes=23, pooling="mean"
    ),
    "half": lambda **o: tfm.CausalLM(tfm.models.gpt(**SIZES, dtype="mixed_bfloat16", **o)),
}


def inputs(name):
    real = np.arange(8) < np.array([[8], [5], [8], [1]])
    if name == "masks of zeros":
        return {"token_ids": IDS * real}
    ids = {"token_ids": IDS, "padding_mask": real}
    return ids | {"decoder_token_ids": IDS[:, :6]} if name == "seq2seq" else ids


@pytest.mark.parametrize("name", MODELS if BACKEND != "jax" else ["gpt", "seq2seq", "masks of zeros"])
def test_the_same_steps(name):
    """Several of them, so that random states are seen to move on alike."""
    found = []
    for on in (False, True):
        model = MODELS[name]()
        model.backbone.recompute_blocks(on)
        labels = {"seq2seq": IDS[:, :6], "masks of zeros": IDS[:, 0]}.get(name, IDS)
        found.append(some_steps(model, inputs(name), labels))
    tolerance = 2e-2 if name == "half" else 1e-5
    assert_close(found[0][0], found[1][0], tolerance)
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        assert_close(mine, theirs, tolerance)


def kept(model) -> float:
    """A measure of what is kept for the gradients, or of what is computed for them."""
    ids = keras.ops.convert_to_tensor(IDS)
    if BACKEND == "torch":
        import torch

        sizes: dict[int, int] = {}

        def note(tensor):
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(ids, training=True).sum()
        return -sum(sizes.values())
    if BACKEND == "jax":
        import jax

        values = [v.value for v in model.trainable_variables]
        rest = [v.value for v in model.non_trainable_variables]
        text = str(jax.make_jaxpr(lambda v: model.stateless_call(v, rest, ids, training=True)[0])(values))
        return text.count("checkpoint[") + text.count("remat2[")
    import tensorflow as tf

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(model(ids, training=True))
        return tape.gradient(y, model.trainable_variables[0].value)

    graph = gradients.get_concrete_function().graph
    return sum(node.op in ("MatMul", "BatchMatMulV2", "Einsum") for node in graph.as_graph_def().node)


def test_less_is_kept_for_the_gradients():
    model = fill_weights(MODELS["gpt"](), 0.1)
    before = kept(model)
    model.backbone.recompute_blocks()
    assert kept(model) > before
    if BACKEND == "torch":
        assert kept(model) > 0.5 * before  # less than half of it
    if BACKEND == "jax":
        assert kept(model) == 3  # blocks
    model.backbone.recompute_blocks(False)
    assert kept(model) == before


def test_the_rest_of_a_model_goes_on():
    model = fill_weights(MODELS["gpt"](), 0.1)
    expected = numpy(model(IDS))
    model.backbone.recompute_blocks()
    assert_close(model(IDS), expected)
    assert len(model.backbone.attention_scores(IDS)) == 3
    assert model.generate(IDS[:1, :3], 2)[0].shape == (2,)


def test_experts_with_a_loss_of_their_own():
    experts = {"num_experts": 2, "top_k": 1, "balance_loss": 0.1}
    backbone = tfm.models.gpt(**{**SIZES, "num_layers": 1}, feed_forward={"kind": "mixture_of_experts", **experts})
    with pytest.raises(ValueError, match=r"balance_loss=0\.1"):
        backbone.recompute_blocks()
