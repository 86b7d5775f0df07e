"""Experts against a loop over tokens, and against `transformers`."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import BACKEND, assert_close, fill_weights, gradients, normal, numpy
from keras import ops

import keras_tfm as tfm
from keras_tfm.layers import FeedForward, MixtureOfExperts
from keras_tfm.ops import grouped_loops
from keras_tfm.ops.backend import recording
from keras_tfm.ops.experts import grouped_product

X = normal(2, 7, 8)
SIZES = dict(num_experts=5, top_k=2, intermediate_dim=12)


def built(**options) -> MixtureOfExperts:
    layer = MixtureOfExperts(**{**SIZES, **options})
    layer.build((None, None, 8))
    return fill_weights(layer)


def silu(x):
    return x / (1 + np.exp(-x))


def by_token(layer: MixtureOfExperts, x: np.ndarray) -> np.ndarray:
    """The definition, one token and one expert at a time, in float64."""

    def of(name, expert):
        weight = getattr(layer, f"expert_{name}")
        return None if weight is None else numpy(weight).astype(np.float64)[expert]

    output = np.zeros_like(x, dtype=np.float64)
    for place in np.ndindex(x.shape[:-1]):
        token = x[place].astype(np.float64)
        logits = token @ numpy(layer.router).astype(np.float64)
        if layer.use_router_bias:
            logits = logits + numpy(layer.router_bias)
        chosen = np.argsort(-logits, kind="stable")[: layer.top_k]
        likes = np.exp(logits - logits.max())
        weights = likes[chosen] / (likes[chosen].sum() if layer.normalize else likes.sum())
        for weight, expert in zip(weights, chosen, strict=True):
            zero = np.zeros(1)
            up = token @ of("up", expert) + (zero if layer.expert_up_bias is None else of("up_bias", expert))
            if layer.gated:
                gate = token @ of("gate", expert) + (
                    zero if layer.expert_gate_bias is None else of("gate_bias", expert)
                )
                if layer.clip is not None:
                    gate, up = np.minimum(gate, layer.clip), np.clip(up, -layer.clip, layer.clip)
                hidden = silu(gate) * (up + layer.up_offset)
            else:
                hidden = silu(up)
            result = hidden @ of("down", expert) + (zero if layer.expert_down_bias is None else of("down_bias", expert))
            output[place] += weight * result
        if layer.shared is not None:
            shared = numpy(layer.shared(token.astype("float32")[None]))[0]
            if layer.shared_gate:
                shared = shared / (1 + np.exp(-token @ numpy(layer.shared_gate_projection.kernel)))
            output[place] += shared
    return output


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"gated": False},
        {"normalize": False},
        {"use_bias": True, "use_router_bias": True},
        {"clip": 0.3, "up_offset": 1.0},
        {"shared_dim": 6},
        {"shared_dim": 6, "shared_gate": True, "use_bias": True, "gated": False},
    ],
    ids=str,
)
def test_each_token_goes_through_its_experts(options):
    layer = built(**options)
    assert_close(layer(X), by_token(layer, X), 2e-5)


def test_one_expert_is_a_feed_forward_layer():
    layer = built(num_experts=1, top_k=1)
    plain = FeedForward(12, "silu", gated=True, use_bias=False)
    plain.build((None, None, 8))
    for name in ("gate", "up", "down"):
        getattr(plain, name).kernel.assign(numpy(getattr(layer, f"expert_{name}"))[0])
    assert_close(layer(X), plain(X), 1e-5)


def test_grouped_products_of_empty_and_full_groups():
    kernel, rows = normal(4, 8, 3), normal(6, 8, seed=1)
    for sizes in ([0, 6, 0, 0], [1, 2, 0, 3], [6, 0, 0, 0], [0, 0, 0, 0]):
        groups = np.repeat(np.arange(4), sizes)
        rows = rows[: len(groups)]
        expected = np.einsum("ri,rio->ro", rows, kernel[groups])
        result, (to_rows, to_kernel) = gradients(
            lambda x, k, sizes=sizes: grouped_product(x, k, ops.convert_to_tensor(np.array(sizes, "int32"))),
            rows,
            kernel,
        )
        assert_close(result, expected, 1e-5)
        weights = np.cos(np.arange(result.size)).reshape(result.shape)
        assert_close(to_rows, np.einsum("ro,rio->ri", weights, kernel[groups]), 1e-4)
        summed = np.zeros_like(kernel)
        np.add.at(summed, groups, np.einsum("ri,ro->rio", rows, weights))
        assert_close(to_kernel, summed, 1e-4)


@pytest.mark.parametrize(("groups", "sizes"), [(4, [1, 2, 0, 3]), (14, [0] * 9 + [2, 0, 4, 0, 0])])
def test_shapes_may_have_to_be_known(groups, sizes):
    """As XLA and torch's recorder want it: written down with some sizes, run with others."""
    kernel, rows = ops.convert_to_tensor(normal(groups, 8, 3)), ops.convert_to_tensor(normal(6, 8, seed=1))
    start = ops.convert_to_tensor(np.eye(groups, dtype="int32")[0] * 6)
    given = ops.convert_to_tensor(np.array(sizes, "int32"))
    expected = grouped_product(rows, kernel, given)
    with recording():
        if BACKEND == "torch":
            from torch.fx.experimental.proxy_tensor import make_fx

            written = make_fx(grouped_product)(rows, kernel, start)
        elif BACKEND == "tensorflow":
            import tensorflow as tf

            written = tf.function(grouped_product, jit_compile=True)
            written(rows, kernel, start)
        else:
            import jax

            written = jax.jit(grouped_product)
        assert_close(written(rows, kernel, given), expected, 1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="loops are for XLA")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("known", [True, False])
def test_loops_over_tiles_of_rows(dtype, known):
    """Groups of less than a tile, of several and a part, of none; rows of no group; the last tile beginning early."""
    rows, width, out = 613, 12, 7
    given = normal(rows, width), normal(6, width, out), normal(rows, out, seed=2)
    x, kernel, by = (numpy(ops.cast(ops.cast(a, dtype), "float32")) for a in given)  # as the dtype has them

    def of(x, kernel, by, sizes):
        given = [ops.cast(a, dtype) for a in (x, kernel)]
        if BACKEND == "jax":
            import jax

            output, back = jax.vjp(lambda x, kernel: grouped_loops.product(x, kernel, sizes), *given)
            return output, *back(ops.cast(by, dtype))
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(given)
            output = grouped_loops.product(*given, sizes)
        return output, *tape.gradient(output, given, ops.cast(by, dtype))

    if BACKEND == "jax":
        import jax

        run = jax.jit(of)
    else:
        import tensorflow as tf

        shapes = [[rows if known else None, width], kernel.shape, [rows if known else None, out]]
        signature = [tf.TensorSpec(shape) for shape in shapes] + [tf.TensorSpec([6], "int32")]
        run = tf.function(of, signature, jit_compile=True)
    for sizes in ([300, 0, 31, 256, 25, 1], [0, 0, 0, 0, 0, 613], [64, 64, 64, 64, 64, 64]):
        groups = np.repeat(np.arange(6), sizes)
        used = len(groups)
        output, to_x, to_kernel = (numpy(ops.cast(a, "float32")) for a in run(x, kernel, by, np.array(sizes, "int32")))
        tolerance = 1e-5 if dtype == "float32" else 2.0**-8  # of a result; sums are wider
        chosen = kernel[groups]
        summed = np.zeros_like(kernel)
        np.add.at(summed, groups, np.einsum("ri,ro->rio", x[:used], by[:used]))
        for found, expected in (
            (output[:used], np.einsum("ri,rio->ro", x[:used], chosen)),
            (to_x[:used], np.einsum("ro,rio->ri", by[:used], chosen)),
            (to_kernel, summed),
        ):
            assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.skipif(BACKEND != "jax", reason="where shapes are fixed and experts may be elsewhere")
def test_few_rows_of_no_group_are_finite():
    """So are gradients, by what is computed from them."""
    kernel, rows = normal(14, 8, 3), normal(6, 8, seed=1)
    sizes = ops.convert_to_tensor(np.eye(14, dtype="int32")[3] * 4)
    result, found = gradients(lambda x, k: grouped_product(x, k, sizes), rows, kernel)
    assert_close(result[:4], rows[:4] @ kernel[3], 1e-5)
    for array in (result, *found):
        assert np.isfinite(array).all()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA always compiles on JAX, never on torch")
def test_it_may_be_compiled_by_xla():
    import tensorflow as tf

    layer = built()
    compiled = tf.function(layer, jit_compile=True)
    for x in (X, X[:, ::-1] * 2.0):
        assert_close(compiled(tf.constant(x)), layer(x), 1e-5)


# Keras has Inductor compile for jit_compile=True on torch, a minute here; on TensorFlow it declines, with a warning.
@pytest.mark.parametrize("jit_compile", ["auto", True] if BACKEND == "jax" else ["auto"])
def test_it_trains_compiled_and_not(jit_compile):
    inputs = keras.Input((5, 16))
    model = keras.Model(inputs, MixtureOfExperts(4, 2, 8, seed=1)(inputs))
    model.set_weights([normal(*weight.shape, seed=i) for i, weight in enumerate(model.get_weights())])
    x, y = normal(2, 5, 16), normal(2, 5, 16, seed=1)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit_compile)
    model.fit(x, y, verbose=0)
    plain = keras.Model(inputs, model.output)
    assert np.isfinite(plain.predict(x, verbose=0)).all()
    once = [np.array(weight) for weight in model.get_weights()]
    model.set_weights([normal(*weight.shape, seed=i) for i, weight in enumerate(model.get_weights())])
    model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
    model.fit(x, y, verbose=0)
    for found, expected in zip(once, model.get_weights(), strict=True):
        assert_close(found, expected, 1e-5)


def test_experts_start_unequal_and_at_the_scale_of_a_layer():
    layer = MixtureOfExperts(4, 2, 64, kernel_initializer=keras.initializers.RandomNormal(stddev=0.1, seed=3))
    layer.build((None, 32))
    kernel = numpy(layer.expert_up)
    assert np.abs(kernel[0] - kernel[1]).max() > 0.05
    default = MixtureOfExperts(4, 2, 64)
    default.build((None, 32))
    limit = (6 / (32 + 64)) ** 0.5  # Glorot's, of one expert
    assert limit * 0.9 < np.abs(numpy(default.expert_up)).max() <= limit


def test_the_balance_loss_is_one_where_all_is_even():
    layer = MixtureOfExperts(4, 2, 8, balance_loss=0.5, kernel_initializer="zeros")
    layer(X, training=True)
    probability_of_each, loads_in_all = 0.25, 1.0
    assert_close(sum(layer.losses), 0.5 * 4 * probability_of_each * loads_in_all)
    layer(X)
    assert not layer.losses or float(numpy(sum(layer.losses))) == 0.0


def test_padding_has_no_part_in_the_balance():
    mask = np.arange(7) < np.array([[7], [4]])
    losses = []
    for x, given in ((X, mask), (np.where(mask[:, :, None], X, 9.0), mask), (X[mask][None], None), (X, None)):
        layer = built(balance_loss=1.0)
        layer(x, padding_mask=given, training=True)
        losses.append(float(numpy(sum(layer.losses))))
    assert_close(np.array(losses[1:3]), np.array(losses[:1] * 2), 1e-5)
    assert abs(losses[3] - losses[0]) > 1e-3

    block = tfm.layers.TransformerEncoderBlock(
        2, 8, feed_forward={"kind": "mixture_of_experts", "num_experts": 3, "top_k": 1, "balance_loss": 1.0}
    )
    for x in (X, np.where(mask[:, :, None], X, 9.0)):
        block(x, padding_mask=mask, training=True)
        losses.append(float(numpy(sum(block.losses))))
    assert abs(losses[-1] - losses[-2]) < 1e-5


def test_a_block_and_a_model_take_experts(tmp_path):
    model = tfm.CausalLM(
        tfm.models.gpt(
            num_layers=2,
            hidden_dim=16,
            num_heads=2,
            vocabulary_size=31,
            max_sequence_length=12,
            activation="silu",
            gated=True,
            feed_forward={"kind": "mixture_of_experts", "num_experts": 3, "top_k": 2, "balance_loss": 0.01},
        )
    )
    tokens = np.random.default_rng(0).integers(1, 31, (8, 9)).astype("int32")
    model.compile(keras.optimizers.Adam(1e-2))
    losses = model.fit(tokens, epochs=8, verbose=0, batch_size=8).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(numpy(again(tokens)), numpy(model(tokens)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 6}, "top_k"),
        ({"gated": False, "clip": 1.0}, "gated"),
        ({"clip": -1.0}, "clip"),
        ({"balance_loss": -1.0}, "balance_loss"),
        ({"num_experts": 0}, "num_experts"),
        ({"shared_dim": 0}, "shared_dim"),
        ({"shared_gate": True}, "shared_gate"),
    ],
)
def test_what_does_not_fit(options, words):
    with pytest.raises(ValueError, match=words):
        MixtureOfExperts(**{**SIZES, **options})


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="mixture_of_experts"):
        tfm.layers.TransformerEncoderBlock(2, 8, feed_forward={"kind": "mixture_of_expert"})


def test_mixtral_gives_the_same():
    torch, transformers = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers.models.mixtral.modeling_mixtral"),
    )
    from transformers import MixtralConfig

    config = MixtralConfig(hidden_size=8, intermediate_size=12, num_local_experts=5, num_experts_per_tok=2)
    theirs = transformers.MixtralSparseMoeBlock(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        result = theirs(torch.from_numpy(X))
        expected = (result[0] if isinstance(result, tuple) else result).numpy()
    layer = built()
    gate_up = theirs.experts.gate_up_proj.detach().numpy().transpose(0, 2, 1)
    layer.expert_gate.assign(gate_up[:, :, :12])
    layer.expert_up.assign(gate_up[:, :, 12:])
    layer.expert_down.assign(theirs.experts.down_proj.detach().numpy().transpose(0, 2, 1))
    layer.router.assign(theirs.gate.weight.detach().numpy().T)
    assert_close(layer(X), expected, 1e-5)
