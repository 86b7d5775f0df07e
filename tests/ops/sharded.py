"""The loss, the experts and attention (in blocks, by Pallas) on 8 simulated devices beside one, as JSON: for `test_shards`.

python sharded.py, with XLA_FLAGS=--xla_force_host_platform_device_count=8 and KERAS_BACKEND=jax.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.export
import keras
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import keras_tfm as tfm
from keras_tfm import distribution
from keras_tfm.layers import MixtureOfExperts
from keras_tfm.ops import attention, backend
from keras_tfm.ops import experts as grouped
from keras_tfm.ops.kernels import blockwise
from keras_tfm.ops.linear_crossentropy import linear_crossentropy

RANDOM = np.random.default_rng(0)
ROWS, LENGTH, WIDTH, VOCABULARY = 16, 33, 32, 128
X = RANDOM.normal(size=(ROWS, LENGTH, WIDTH)).astype("float32")
TABLE = RANDOM.normal(size=(VOCABULARY, WIDTH)).astype("float32")
BIAS = RANDOM.normal(size=VOCABULARY).astype("float32")
LABELS = RANDOM.integers(0, VOCABULARY, (ROWS, LENGTH)).astype("int32")
LABELS[RANDOM.random((ROWS, LENGTH)) < 0.3] = -100
LABELS[2:5] = -1  # a device with few labels, and one of eight with none
WEIGHTS = RANDOM.random((ROWS, LENGTH)).astype("float32")
LENGTHS = RANDOM.integers(3, LENGTH + 1, (ROWS, 1))
FEW = slice(0, 12)  # rows that 8 devices share neither by rows nor by tokens
OPTIONS = dict(scale=0.5, softcap=20.0, label_smoothing=0.1, z_loss=1e-3, chunk=24)
EXPERTS = dict(
    num_experts=8,
    top_k=2,
    intermediate_dim=64,
    use_bias=True,
    use_router_bias=True,
    normalize=False,
    shared_dim=16,
    shared_gate=True,
    balance_loss=0.1,
    seed=3,
)
MOE = {"kind": "mixture_of_experts", "num_experts": 4, "top_k": 2}
WAYS = {
    "data": lambda: distribution.data_parallel(),
    "fsdp": lambda: distribution.fsdp(),
    "data x tensor": lambda: distribution.tensor_parallel(distribution.mesh(data=2, model=4)),
    "fsdp x tensor": lambda: distribution.tensor_parallel(distribution.mesh(data=2, model=4), rest="data"),
}


def placed(array, *axes):
    """An array as the distribution that is set has one of these axes; without one as it is."""
    found = keras.distribution.distribution()
    if found is None:
        return jax.numpy.asarray(array)
    mesh = found.device_mesh.backend_mesh
    return jax.device_put(
        array, NamedSharding(mesh, PartitionSpec(*(a if a in mesh.axis_names else None for a in axes)))
    )


def loss(hidden, table, bias, labels, weights, **options):
    return linear_crossentropy(hidden, table, labels, weights=weights, bias=bias, **options)[0]


def arguments(way="", rows=slice(None)):
    split = [None if rows == FEW else "data"]
    columns = "data" if "fsdp" in way else None
    return (
        placed(X[rows], *split),
        placed(TABLE, "model", columns),
        placed(BIAS, "model"),
        placed(LABELS[rows], *split),
        placed(WEIGHTS[rows], *split),
    )


def of_loss(way="", rows=slice(None), compiled=True, **options):
    function = jax.value_and_grad(lambda *a: loss(*a, **{**OPTIONS, **options}), argnums=(0, 1, 2))
    return jax.tree.leaves((jax.jit(function) if compiled else function)(*arguments(way, rows)))


def of_devices_by_hand():
    """Within a `shard_map` of the caller's, each device calls it with its rows."""
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    rows, whole = PartitionSpec("data"), PartitionSpec()

    def one(*given):
        return jax.lax.psum(loss(*given, **OPTIONS), "data")

    function = jax.shard_map(
        one, mesh=mesh, in_specs=(rows, whole, whole, rows, rows), out_specs=whole, check_vma=False
    )
    return [jax.jit(function)(*arguments())]


def experts(**options):
    """Output, losses and gradients of a layer, and its compiled gradient."""
    keras.utils.set_random_seed(1)
    layer = MixtureOfExperts(**{**EXPERTS, **options})
    layer.build((None, None, WIDTH))
    trained = [variable.value for variable in layer.trainable_variables]
    others = [variable.value for variable in layer.non_trainable_variables]
    mask = placed(np.arange(LENGTH) < LENGTHS, "data")

    def of(trained, x):
        output, _, losses = layer.stateless_call(
            trained, others, x, padding_mask=mask, training=True, return_losses=True
        )
        return keras.ops.sum(output * keras.ops.cos(output)) + 100.0 * sum(losses), (output, losses)

    program = jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True)).lower(trained, placed(X, "data")).compile()
    return program, jax.tree.leaves(program(trained, placed(X, "data")))


def in_blocks():
    """Output and gradients of attention, whose scores come in blocks, and its compiled gradient."""
    heads = X.reshape(ROWS, LENGTH, 4, 8)
    given = [placed(heads * scale, "data", None, "model") for scale in (1.0, 0.5, 2.0)]
    mask = placed(np.arange(LENGTH) < LENGTHS, "data")

    def of(query, key, value, mask):
        output = attention(query, key, value, causal=True, padding_mask=mask, kernel="blockwise")
        return keras.ops.sum(output * keras.ops.cos(output)), output

    function = jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True)
    program = jax.jit(function).lower(*given, mask).compile()
    return program, jax.tree.leaves(program(*given, mask))


def splashed(kv_heads, rows=slice(None), compiled=True):
    """Output and gradients of attention by the Pallas kernel, interpreted, sinks included."""
    split = None if rows == FEW else "data"
    heads = X.reshape(ROWS, LENGTH, 4, 8)[rows]
    kv = "model" if kv_heads == 4 else None
    given = [placed(heads, split, None, "model")]
    given += [placed(heads[:, :, :kv_heads] * scale, split, None, kv) for scale in (0.5, 2.0)]
    given += [placed(np.linspace(-1, 1, 4, dtype="float32"), "model")]
    mask = placed((np.arange(LENGTH) < LENGTHS)[rows], split)

    def of(query, key, value, sinks, mask):
        output = attention(query, key, value, causal=True, padding_mask=mask, sinks=sinks, kernel="splash")
        return keras.ops.sum(output * output), output  # of which no sum over rows cancels

    function = jax.value_and_grad(of, argnums=(0, 1, 2, 3), has_aux=True)
    return jax.tree.leaves((jax.jit(function) if compiled else function)(*given, mask))


def splashed_by_hand():
    """Within a `shard_map` of the caller's, each device calls it with its rows; heads are left to it."""
    mesh = keras.distribution.distribution().device_mesh.backend_mesh
    heads = placed(X.reshape(ROWS, LENGTH, 4, 8), "data", None, "model")
    rows = PartitionSpec("data")
    function = jax.shard_map(
        lambda x: attention(x, x, x, causal=True, kernel="splash"),
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        axis_names={"data"},
        check_vma=False,
    )
    return [jax.jit(function)(heads)]


def splashed_for_tpus():
    """Of the Pallas calls that are lowered for TPUs, whether each takes one device's rows and heads."""
    heads = jax.ShapeDtypeStruct((ROWS, LENGTH, 4, 64), "bfloat16")
    real, backend.device = backend.device, lambda x=None: "tpu"
    try:
        mesh = keras.distribution.distribution().device_mesh.backend_mesh
        layout = NamedSharding(mesh, PartitionSpec("data", None, "model" if "model" in mesh.axis_names else None))
        function = jax.grad(lambda x: keras.ops.sum(attention(x, x, x, causal=True, kernel="splash")))
        program = jax.jit(function, in_shardings=layout, out_shardings=layout)
        text = jax.export.export(program, platforms=["tpu"])(heads).mlir_module()
    finally:
        backend.device = real
    calls = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    rows, heads = ROWS // mesh.shape["data"], 4 // dict(mesh.shape).get("model", 1)
    return [f"tensor<{rows}x{heads}x128x64xbf16>" in line for line in calls]


def operations(program):
    found = program.cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]


def of_loss_program(way=""):
    function = jax.grad(lambda *a: loss(*a, chunk=ROWS * LENGTH), argnums=(0, 1, 2))
    return jax.jit(function).lower(*arguments(way)).compile()


def difference(ours, theirs):
    """The largest, as a share of the largest value of its array."""
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(ours, theirs, strict=True)]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs)


def with_countable_products():
    """The compiled gradient of experts by JAX's `ragged_dot`: of loops, XLA counts one round."""
    real, grouped.device = grouped.device, lambda x=None: "tpu"
    try:
        return experts()[0]
    finally:
        grouped.device = real


def everything(way=""):
    """Arrays by name, and operations on one device."""
    _, arrays = experts()
    plain = with_countable_products()
    blocks, attended = in_blocks()
    values = {"loss": of_loss(way), "experts": arrays, "experts, dropout": experts(dropout=0.3, gated=False)[1]}
    counted = {"loss": of_loss_program(way), "experts": plain, "blocks": blocks}
    return values | {"blocks": attended}, {name: operations(program) for name, program in counted.items()}


def main() -> None:
    blockwise.QUERIES = blockwise.KEYS = 8
    expected, whole = everything()
    by_hand, few = [of_loss()[0]], of_loss(rows=FEW)
    heads = jax.numpy.asarray(X.reshape(ROWS, LENGTH, 4, 8))
    attended, few_attended = attention(heads, heads, heads, causal=True), splashed(4, rows=FEW)
    splash = {kv_heads: splashed(kv_heads) for kv_heads in (2, 4)}
    alone = functools.partial(loss, **OPTIONS, differentiable=False)
    found = {"differences": {}, "operations": {}, "for TPUs": {}}
    gpt = tfm.models.gpt(  # of one device, also where a distribution is set later
        num_layers=1,
        hidden_dim=16,
        num_heads=2,
        vocabulary_size=VOCABULARY,
        max_sequence_length=LENGTH,
        feed_forward=MOE,
    )
    logits = gpt(LABELS % VOCABULARY, training=False)
    for name, make in WAYS.items():
        with make().scope():
            values, counted = everything(name)
            found["differences"][name] = {key: difference(values[key], expected[key]) for key in expected}
            found["operations"][name] = {key: counted[key] / whole[key] for key in whole}
            few_heads = name in ("data", "fsdp x tensor")  # fewer than devices where heads are split
            kv_heads = 2 if few_heads else 4
            found["differences"][name]["splash"] = difference(splashed(kv_heads), splash[kv_heads])
            if not few_heads:
                found["for TPUs"][name] = splashed_for_tpus()
            if name == "data x tensor":
                differences = found["differences"][name]
                differences["splash, by hand"] = difference(splashed_by_hand(), [attended])
                differences["splash, eager"] = difference(splashed(4, compiled=False), splash[4])
            if name == "data":
                same = jax.jit(lambda x: gpt(x, training=False))(jax.numpy.asarray(LABELS % VOCABULARY))
                found["differences"][name]["another's model"] = difference([same], [logits])
                differences = found["differences"][name]
                differences["eager"] = difference(of_loss(compiled=False), expected["loss"])
                differences["by hand"] = difference(of_devices_by_hand(), by_hand)
                differences["few rows"] = difference(of_loss(rows=FEW), few)
                differences["splash, few rows"] = difference(splashed(4, rows=FEW), few_attended)
                differences["value alone"] = difference([jax.jit(alone)(*arguments())], by_hand)
    print("RESULT " + json.dumps(found))


if __name__ == "__main__":
    main()
