"""A layer of experts: gradients of many tokens, and the outputs of one, beside KerasHub's and Hugging Face's Mixtral.

    python -m benchmarks.experts                 every installed backend, each in its own process; some 4 minutes
    python -m benchmarks.experts --backend jax   this backend alone

The same weights, whose outputs are compared first; layers alternate in one process. "feed-forward" is a dense layer of ours
that takes as many operations a token as its chosen experts do.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np

from benchmarks.measure import alternate, gradient_step, matrix_rate, ratio, run_by_backend

SIZES = {"tokens": 2048, "width": 512, "inner": 1024, "experts": 8, "top_k": 2}
FEW, MANY = "one token", "all tokens"


def layers() -> dict[str, object]:
    """Name to a layer that takes (1, tokens, width); all but the last have the same weights."""
    import keras
    from keras_hub.src.models.mixtral.mixtral_decoder import MixtralSparseMoeBlock

    from keras_tfm.layers import FeedForward, MixtureOfExperts

    s, shape = SIZES, (1, SIZES["tokens"], SIZES["width"])
    ours = MixtureOfExperts(s["experts"], s["top_k"], s["inner"], seed=1)
    theirs = MixtralSparseMoeBlock(s["width"], s["inner"], s["experts"], s["top_k"])
    dense = FeedForward(s["top_k"] * s["inner"], "silu", gated=True, use_bias=False)
    for layer in (ours, theirs, dense):
        layer.build(shape)
    theirs._sparse_feedforward_gate_dense.kernel.assign(ours.router)
    bank = theirs.expert_bank
    bank._expert_feedforward_gate_dense.assign(ours.expert_gate)
    bank._expert_feedforward_intermediate_dense.assign(ours.expert_up)
    bank._expert_feedforward_output_dense.assign(ours.expert_down)
    found = {"keras_tfm": ours, "KerasHub": theirs}
    if keras.backend.backend() == "torch":
        found["Hugging Face"] = _hugging_face(ours)
    if keras.backend.backend() == "jax":
        found["ragged_dot"] = _by_ragged_dot(ours)
    return {**found, "feed-forward": dense}


def _by_ragged_dot(ours):
    """The same layer with XLA's products by group, which serve on GPUs and TPUs."""
    import jax

    class ByRaggedDot(type(ours)):
        def _product(self, rows, weights, sizes, by_expert):
            return jax.lax.ragged_dot(rows, weights[0], sizes)

    layer = ByRaggedDot(SIZES["experts"], SIZES["top_k"], SIZES["inner"])
    layer.build((1, SIZES["tokens"], SIZES["width"]))
    layer.set_weights(ours.get_weights())
    return layer


def _hugging_face(ours) -> Callable:
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    s = SIZES
    config = MixtralConfig(
        hidden_size=s["width"],
        intermediate_size=s["inner"],
        num_local_experts=s["experts"],
        num_experts_per_tok=s["top_k"],
    )
    block = MixtralSparseMoeBlock(config)
    router, gate, up, down = (
        torch.from_numpy(np.array(weight.value.detach())).transpose(-1, -2).contiguous()
        for weight in (ours.router, ours.expert_gate, ours.expert_up, ours.expert_down)
    )
    with torch.no_grad():
        block.gate.weight.copy_(router)
        block.experts.gate_up_proj.copy_(torch.cat([gate, up], 1))
        block.experts.down_proj.copy_(down)
    return block


def _of(layer, x, weights=None):
    """The output, of a Keras layer with these weights."""
    import keras

    if not isinstance(layer, keras.Layer):
        return layer(x)
    if weights is None:
        output = layer(x)
    else:
        output, _ = layer.stateless_call(weights, [v.value for v in layer.non_trainable_variables], x)
    return output[0] if isinstance(output, tuple) else output


def gradients(layer, x: np.ndarray) -> Callable[[], object]:
    """What computes the gradients of a layer's output by tokens and weights."""
    import keras
    from keras import ops

    if not isinstance(layer, keras.Layer):
        import torch

        given = torch.from_numpy(x).requires_grad_()

        def run():
            given.grad = None
            layer.zero_grad()
            layer(given).square().sum().backward()

        return run
    weights = [ops.convert_to_numpy(variable) for variable in layer.trainable_variables]
    return gradient_step(lambda x, *weights: ops.sum(ops.square(_of(layer, x, list(weights)))), [x, *weights])


def outputs(layer, x: np.ndarray) -> Callable[[], object]:
    """What computes a layer's output, compiled where the backend compiles."""
    import keras
    from keras import ops

    given = ops.convert_to_tensor(x)
    if keras.backend.backend() == "jax":
        import jax

        compiled, weights = jax.jit(lambda weights, x: _of(layer, x, weights)), [v.value for v in layer.variables]
        return lambda: jax.block_until_ready(compiled(weights, given))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        traced = tf.function(lambda: _of(layer, given))
        return lambda: traced().numpy()
    import torch

    def run():
        with torch.no_grad():
            return _of(layer, given)

    return run


def measure(backend: str, rounds: int) -> dict:
    """Milliseconds of each layer, in this process."""
    del backend
    s, made = SIZES, layers()
    x = np.random.default_rng(0).normal(size=(1, s["tokens"], s["width"])).astype("float32")
    found = {name: np.asarray(outputs(layer, x)()) for name, layer in made.items()}
    for name, output in found.items():
        apart = np.abs(output - found["keras_tfm"]).max() / np.abs(output).max()
        if name != "feed-forward" and apart > 1e-4:
            raise SystemExit(f"{name}'s output is another: {apart:.1e} of its largest value")
    seconds = {
        MANY: alternate({name: gradients(layer, x) for name, layer in made.items()}, rounds),
        FEW: alternate({name: outputs(layer, x[:, :1]) for name, layer in made.items()}, 20 * rounds),
    }
    multiplied = 3 * s["width"] * s["inner"] * s["top_k"]  # weights that a token meets
    return {
        "milliseconds": {
            what: {name: statistics.median(of) * 1e3 for name, of in times.items()} for what, times in seconds.items()
        },
        "ratios": {what: {name: ratio(times, name, "keras_tfm") for name in times} for what, times in seconds.items()},
        "floor": 6 * multiplied * s["tokens"] / matrix_rate() * 1e3,
    }


def table(results: dict[str, dict]) -> str:
    """The results as Markdown."""
    names = ["KerasHub", "Hugging Face", "ragged_dot", "feed-forward"]
    lines = [
        "| backend | tokens | keras_tfm | " + " | ".join(f"{name} | ×" for name in names) + " | floor |",
        "|---" * (4 + 2 * len(names)) + "|",
    ]
    for backend, found in results.items():
        for what, times in found["milliseconds"].items():
            cells = [backend, what, f"{times['keras_tfm']:.1f} ms"]
            for name in names:
                there = name in times
                cells += [f"{times[name]:.1f} ms", f"{found['ratios'][what][name]:.2f}"] if there else ["", ""]
            cells.append(f"{found['floor']:.0f} ms" if what == MANY else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_by_backend("experts", __doc__ or "", measure, table, {"sizes": SIZES})
