"""A feed-forward layer of many experts, of which each token sees a few."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_tfm.layers.base import (
    Layer,
    check_positive,
    check_rate,
    clone_initializer,
    derived_seed,
    logical_axes,
    register,
)
from keras_tfm.layers.dropout import Dropout
from keras_tfm.layers.feed_forward import FeedForward
from keras_tfm.ops import activations, backend, random
from keras_tfm.ops.experts import grouped_product
from keras_tfm.ops.shards import Parts, by_device


@register
class MixtureOfExperts(Layer):
    """Each token goes through the `top_k` of `num_experts` feed-forward layers that a router likes best, and their
    outputs add up, weighted (Shazeer et al. 2017; Jiang et al. 2024, Mixtral).

    No token is dropped and there is no capacity to choose: rows are sorted by expert and multiplied in groups.

    Args:
        num_experts: Feed-forward layers.
        top_k: Of them, per token.
        intermediate_dim: Width inside each.
        activation, gated: As of `FeedForward`.
        dropout: Of the intermediate activations, while training.
        use_bias: In the experts' projections.
        use_router_bias: In the router.
        normalize: The weights of a token's experts add up to 1: the softmax is over the chosen (Mixtral, gpt-oss).
            Otherwise it is over all, and what the others would have had is lost (Qwen-MoE).
        clip: The gate is cut above this value and the projection beside it on both sides (gpt-oss: 7). Needs gated.
        up_offset: Added to the projection beside the gate (gpt-oss: 1). Needs gated.
        shared_dim: Width of one more expert, which every token goes through (Dai et al. 2024, DeepSeekMoE).
        shared_gate: A sigmoid of each token weighs that expert's output (Qwen2-MoE). Needs shared_dim.
        balance_loss: Weight of a loss that pulls towards equally loaded experts, while training (Fedus et al. 2022,
            Switch, eq. 4).
        kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer: Of the experts.
        seed: An int, for reproducible dropout.

    Call arguments:
        x: (..., width), float. Returns the same shape. The router works in float32 under any dtype policy.
        padding_mask: (...), true = a token. Only `balance_loss` looks at it: padding has no part in the balance.

    Example:
        >>> layer = keras_tfm.layers.MixtureOfExperts(num_experts=8, top_k=2, intermediate_dim=64)
        >>> layer(keras.random.normal((2, 16, 32))).shape
        (2, 16, 32)
    """

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        intermediate_dim: int,
        activation: str | Callable = "silu",
        gated: bool = True,
        dropout: float = 0.0,
        use_bias: bool = False,
        *,
        use_router_bias: bool = False,
        normalize: bool = True,
        clip: float | None = None,
        up_offset: float = 0.0,
        shared_dim: int | None = None,
        shared_gate: bool = False,
        balance_loss: float = 0.0,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_experts=num_experts, top_k=top_k, intermediate_dim=intermediate_dim)
        check_rate(dropout=dropout)
        if top_k > num_experts:
            raise ValueError(f"top_k must be at most num_experts={num_experts}; got {top_k}.")
        if not gated and (clip is not None or up_offset):
            raise ValueError(f"clip={clip} and up_offset={up_offset} shape a gate; give gated=True with them.")
        if clip is not None and clip <= 0:
            raise ValueError(f"clip must be positive; got {clip}.")
        if shared_dim is not None:
            check_positive(shared_dim=shared_dim)
        elif shared_gate:
            raise ValueError("shared_gate=True needs shared_dim, the width of the expert that it weighs.")
        if balance_loss < 0:
            raise ValueError(f"balance_loss must not be negative; got {balance_loss}.")
        self.num_experts = num_experts
        self.top_k = top_k
        self.intermediate_dim = intermediate_dim
        self.activation = activation
        self.gated = gated
        self.dropout = dropout
        self.use_bias = use_bias
        self.use_router_bias = use_router_bias
        self.normalize = normalize
        self.clip = clip
        self.up_offset = up_offset
        self.shared_dim = shared_dim
        self.shared_gate = shared_gate
        self.balance_loss = balance_loss
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self.seed = seed
        self.supports_masking = True
        # On TensorFlow products of groups are quicker without XLA: a layer's gradients take 0.7 of the time.
        self.supports_jit = backend.NAME != "tensorflow"
        self.activation_function = activations.get(activation)
        self.dropout_layer = Dropout(dropout, seed, **self.sublayer_options("dropout"))

        self.shared = self.shared_gate_projection = None
        if shared_dim is not None:
            self.shared = FeedForward(
                shared_dim,
                activation,
                gated,
                dropout,
                use_bias,
                kernel_initializer=clone_initializer(kernel_initializer),
                bias_initializer=clone_initializer(bias_initializer),
                kernel_regularizer=kernel_regularizer,
                bias_regularizer=bias_regularizer,
                seed=derived_seed(seed, "shared"),
                **self.sublayer_options("shared"),
            )
        if shared_gate:
            self.shared_gate_projection = keras.layers.Dense(
                1,
                use_bias=False,
                kernel_initializer=clone_initializer(kernel_initializer),
                **self.sublayer_options("shared_gate_projection"),
            )

    def build(self, x_shape):
        width, inner = x_shape[-1], self.intermediate_dim
        # Plain weights, as the experts' are: a router's few numbers decide too much to be quantized.
        self.router = self.add_weight(
            name="router", shape=(width, self.num_experts), initializer=clone_initializer(self.kernel_initializer)
        )
        logical_axes(self.router, "embed", None)
        self.router_bias = None
        if self.use_router_bias:
            self.router_bias = self.add_weight(name="router_bias", shape=(self.num_experts,), initializer="zeros")
            logical_axes(self.router_bias, None)
        self.expert_gate = self.expert_gate_bias = None
        if self.gated:
            self.expert_gate, self.expert_gate_bias = self._experts("gate", (width, inner), ("embed", "mlp"))
        self.expert_up, self.expert_up_bias = self._experts("up", (width, inner), ("embed", "mlp"))
        self.expert_down, self.expert_down_bias = self._experts("down", (inner, width), ("mlp", "embed"))
        if self.shared is not None:
            self.shared.build((None, width))
        if self.shared_gate_projection is not None:
            self.shared_gate_projection.build((None, width))
            logical_axes(self.shared_gate_projection._kernel, "embed", None)

    def _experts(self, name: str, shape: tuple[int, int], axes: tuple[str, str]) -> tuple[Any, Any]:
        """All experts' weights of a projection: (experts, rows, columns), and (experts, columns) or None."""

        def each(shape, dtype=None):  # as if each expert were a layer of its own
            made = [_initializer(self.kernel_initializer, expert) for expert in range(shape[0])]
            return ops.stack([initializer(shape[1:], dtype=dtype) for initializer in made])

        kernel = self.add_weight(
            name=f"expert_{name}",
            shape=(self.num_experts, *shape),
            initializer=each,
            regularizer=self.kernel_regularizer,
        )
        logical_axes(kernel, "experts", *axes)
        if not self.use_bias:
            return kernel, None
        bias = self.add_weight(
            name=f"expert_{name}_bias",
            shape=(self.num_experts, shape[1]),
            initializer=clone_initializer(self.bias_initializer),
            regularizer=self.bias_regularizer,
        )
        logical_axes(bias, "experts", axes[1])
        return kernel, bias

    def call(self, x, padding_mask=None, training=None):
        shape, width = ops.shape(x), x.shape[-1]
        tokens = ops.reshape(x, (-1, width))  # (tokens, width)
        logits = ops.matmul(ops.cast(tokens, "float32"), ops.cast(self.router, "float32"))  # (tokens, experts)
        if self.router_bias is not None:
            logits += ops.cast(self.router_bias, "float32")
        # Each device routes its own tokens, and multiplies them by the experts that it has. Both are (tokens, top_k).
        weights, experts = by_device(self._route, (logits,), (), ("rows", "rows"), self.router)
        if training and self.balance_loss:
            padding_mask = backend.implicit_mask(x) if padding_mask is None else padding_mask
            self.add_loss(self.balance_loss * self._imbalance(logits, experts, padding_mask))
        places = ops.arange(ops.shape(tokens)[0], dtype="int32")
        draw = random.early_draw(self.dropout_layer.seed_generator) if training and self.dropout else None
        through = functools.partial(self._through_experts, training=training)
        given, parts = (tokens, weights, experts, places), Parts(self._expert_weights(), self.expert_up)
        (output,) = by_device(through, given, (draw,), ("rows",), self.router, parts)
        if self.shared is not None:
            shared = self.shared(tokens, training=training)
            if self.shared_gate_projection is not None:
                shared *= ops.sigmoid(self.shared_gate_projection(tokens))
            output += shared
        return ops.reshape(output, shape)

    def _expert_weights(self) -> dict[str, Any]:
        """Of each projection that there is, by name, its kernel and bias as tensors."""
        found: dict[str, Any] = {}
        for name in ("up", "gate", "down"):
            weights = getattr(self, f"expert_{name}"), getattr(self, f"expert_{name}_bias")
            if weights[0] is not None:
                found[name] = tuple(None if weight is None else ops.convert_to_tensor(weight) for weight in weights)
        return found

    def _through_experts(self, tokens, weights, experts, places, draw, kernels, part, training):
        """What experts make of tokens, (tokens, width), whose weights and experts these are, (tokens, top_k).

        `places`, (tokens,), are the tokens' in the whole batch, for a draw of dropout that all devices share. `kernels` are
        those of all experts, or the part of them with this number; of others' tokens the result is 0.
        """
        chosen = ops.reshape(experts, (-1,))  # (tokens * top_k,), a token's experts side by side
        here = kernels["up"][0].shape[0]
        if here < self.num_experts:
            chosen = (chosen - part * here) % self.num_experts  # those that are here come first
        order = ops.argsort(chosen)  # by expert
        by_expert = ops.take(chosen, order)
        sizes = ops.sum(ops.cast(by_expert[None, :] == ops.arange(here)[:, None], "int32"), axis=1)
        rows = ops.take(tokens, order // self.top_k, axis=0)  # (tokens * top_k, width)

        def of_here(x):
            return x if here == self.num_experts else ops.where((by_expert < here)[:, None], x, 0.0)

        rows = of_here(rows)
        hidden = self._product(rows, kernels["up"], sizes, by_expert)
        if "gate" not in kernels:
            hidden = self.activation_function(hidden)
        else:
            gate = self._product(rows, kernels["gate"], sizes, by_expert)
            if self.clip is not None:
                gate, hidden = ops.minimum(gate, self.clip), ops.clip(hidden, -self.clip, self.clip)
            hidden = self.activation_function(gate) * (hidden + self.up_offset)
        if draw is None:
            hidden = self.dropout_layer(hidden, training=training)
        else:
            place = ops.take(places, order // self.top_k) * self.top_k + order % self.top_k
            hidden = random.dropout_of_rows(hidden, self.dropout, draw, place)
        output = of_here(self._product(hidden, kernels["down"], sizes, by_expert))
        output = ops.take(output, ops.argsort(order), axis=0)  # back beside its token
        output = ops.reshape(output, (-1, self.top_k, tokens.shape[-1])) * ops.cast(weights, output.dtype)[:, :, None]
        return (ops.sum(output, axis=1),)

    def _route(self, logits):
        """Weights and indices of each token's experts."""
        if self.normalize:
            best, experts = ops.top_k(logits, self.top_k)
            return ops.softmax(best, axis=-1) if self.top_k > 1 else ops.ones_like(best), experts
        return ops.top_k(ops.softmax(logits, axis=-1), self.top_k)

    def _imbalance(self, logits, experts, padding_mask):
        """Experts times the sum of load times mean probability: 1 where all is even."""
        probability = ops.softmax(logits, axis=-1)  # (tokens, experts)
        load = ops.mean(ops.one_hot(experts, self.num_experts, dtype="float32"), axis=1)  # (tokens, experts)
        real = 1.0 if padding_mask is None else ops.cast(ops.reshape(padding_mask, (-1, 1)), "float32")
        count = ops.maximum(ops.sum(ops.ones_like(logits[:, :1]) * real), 1.0)
        return self.num_experts * ops.sum(
            (ops.sum(load * real, axis=0) / count) * (ops.sum(probability * real, axis=0) / count)
        )

    def _product(self, rows, weights, sizes, by_expert):
        kernel, bias = weights
        result = grouped_product(rows, ops.cast(kernel, rows.dtype), sizes)
        if bias is None:
            return result
        here = ops.minimum(by_expert, bias.shape[0] - 1)  # of experts that are elsewhere it is not looked at
        return result + ops.take(ops.cast(bias, result.dtype), here, axis=0)

    def compute_output_spec(self, x, padding_mask=None, training=None):
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


def _initializer(given: Any, expert: int) -> Callable:
    """A copy for each expert: one initializer gives the same values whenever it is called."""
    initializer = keras.initializers.get(clone_initializer(given))
    config = initializer.get_config() if isinstance(initializer, keras.initializers.Initializer) else {}
    if isinstance(config.get("seed"), int):
        return type(initializer).from_config({**config, "seed": config["seed"] + expert})
    return initializer
