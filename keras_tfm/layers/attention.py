"""What self- and cross-attention share: the projections and what happens around the scores."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.layers import norm as norms
from keras_tfm.layers.base import (
    Layer,
    check_choice,
    check_positive,
    check_rate,
    clone_initializer,
    logical_axes,
    serialize,
)
from keras_tfm.layers.projection import project
from keras_tfm.ops.kernels import KERNELS

PROJECTIONS = ("query", "key", "value", "output")


class Attention(Layer):
    """Projections, per-head normalization, gate and sinks: all of an attention layer but who attends to whom.

    Subclasses fill in `call` and take the options documented in `MultiHeadSelfAttention`.
    """

    def __init__(
        self,
        num_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        *,
        qk_norm: Any = None,
        qk_norm_scope: str = "head",
        logit_softcap: float | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        use_bias: bool | dict[str, bool] = True,
        output_gate: str | None = None,
        sinks: str | None = None,
        kernel: str = "auto",
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(num_heads=num_heads, num_key_value_heads=num_key_value_heads, head_dim=head_dim)
        check_rate(dropout=dropout)
        kv_heads = num_key_value_heads or num_heads
        if num_heads % kv_heads:
            raise ValueError(f"num_key_value_heads must divide num_heads={num_heads}; got {num_key_value_heads}.")
        if isinstance(use_bias, dict):
            for name in use_bias:
                check_choice("use_bias", name, PROJECTIONS)
        if qk_norm is not None:
            norms.check(qk_norm)
        check_choice("qk_norm_scope", qk_norm_scope, ("head", "each_head", "all_heads"))
        if qk_norm is None and qk_norm_scope != "head":
            raise ValueError(f"qk_norm_scope={qk_norm_scope!r} says how qk_norm works; give qk_norm too.")
        if qk_norm_scope == "each_head":
            norms.grouped(qk_norm, 1)  # raises for what has no such form
        check_choice("output_gate", output_gate, (None, "headwise", "elementwise"))
        check_choice("sinks", sinks, (None, "learned", "off_by_one"))
        check_choice("kernel", kernel, ("auto", *KERNELS))
        if logit_softcap is not None and logit_softcap <= 0:
            raise ValueError(f"logit_softcap must be positive; got {logit_softcap}.")
        self.num_heads = num_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.qk_norm = serialize(qk_norm)
        self.qk_norm_scope = qk_norm_scope
        self.logit_softcap = logit_softcap
        self.scale = scale
        self.dropout = dropout
        self.use_bias = use_bias
        self.output_gate = output_gate
        self.sinks = sinks
        self.kernel = kernel
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.kernel_regularizer = kernel_regularizer
        self.bias_regularizer = bias_regularizer
        self.seed = seed
        self.supports_masking = True
        self.seed_generator = keras.random.SeedGenerator(seed) if dropout > 0 else None

    # Building --------------------------------------------------------------------------------------------------------

    def _has_bias(self, projection: str) -> bool:
        return self.use_bias.get(projection, True) if isinstance(self.use_bias, dict) else self.use_bias

    def _projection(
        self, name: str, equation: str, output_shape: tuple, bias_axes: str, width: int | tuple, axes: tuple
    ) -> keras.layers.EinsumDense:
        layer = keras.layers.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=bias_axes if self._has_bias("query" if name == "gate" else name) else None,
            kernel_initializer=clone_initializer(self.kernel_initializer),
            bias_initializer=clone_initializer(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            **self.sublayer_options(name),
        )
        layer.build((None, None, *(width if isinstance(width, tuple) else (width,))))
        logical_axes(layer._kernel if hasattr(layer, "_kernel") else None, *axes)
        logical_axes(layer.bias, *axes[-len(bias_axes) :])
        return layer

    def check_width(self, width: int) -> None:
        """Raise ValueError unless the heads fit a stream of this width."""
        if self.head_dim is None and width % self.num_heads:
            raise ValueError(
                f"The width {width} is not divisible by num_heads={self.num_heads}. "
                "Choose num_heads among its divisors, or give head_dim."
            )

    def _build_projections(self, query_width: int, key_width: int) -> None:
        heads, kv_heads = self.num_heads, self.num_key_value_heads or self.num_heads
        self.check_width(query_width)
        self._widths = (("x", query_width),)
        self._kv_heads = kv_heads
        self._head_dim = head_dim = self.head_dim or query_width // heads
        into_heads = "btd,dnh->btnh"
        self.query = self._projection(
            "query", into_heads, (None, heads, head_dim), "nh", query_width, ("embed", "heads", "head_dim")
        )
        self.key = self._projection(
            "key", into_heads, (None, kv_heads, head_dim), "nh", key_width, ("embed", "kv_heads", "head_dim")
        )
        self.value = self._projection(
            "value", into_heads, (None, kv_heads, head_dim), "nh", key_width, ("embed", "kv_heads", "head_dim")
        )
        self.output_projection = self._projection(
            "output", "btnh,nhd->btd", (None, query_width), "d", (heads, head_dim), ("heads", "head_dim", "embed")
        )
        self.gate = None
        if self.output_gate is not None:
            gate_dim = head_dim if self.output_gate == "elementwise" else 1
            self.gate = self._projection(
                "gate", into_heads, (None, heads, gate_dim), "nh", query_width, ("embed", "heads", "head_dim")
            )
        self.query_norm = self.key_norm = None
        if self.qk_norm is not None:
            self.query_norm = self._head_norm("query_norm", heads, "heads")
            self.key_norm = self._head_norm("key_norm", kv_heads, "kv_heads")
        self.sink_logits = None
        if self.sinks == "learned":
            self.sink_logits = self.add_weight(name="sink_logits", shape=(heads,), initializer="zeros")
            logical_axes(self.sink_logits, "heads")

    def _head_norm(self, name: str, heads: int, axis: str) -> keras.layers.Layer:
        """A normalization of queries or keys, (batch, length, heads, head_dim), with weights as the scope says."""
        options = self.sublayer_options(name)
        if self.qk_norm_scope == "each_head":
            norm = norms.grouped(self.qk_norm, heads, **options)
            norm.build((None, heads * self._head_dim))
        else:
            norm = norms.make(self.qk_norm, **options)
            norm.build((None, None, self._head_dim * (heads if self.qk_norm_scope == "all_heads" else 1)))
        norms.annotate(norm, "head_dim" if self.qk_norm_scope == "head" else axis)
        return norm

    # Calling ---------------------------------------------------------------------------------------------------------

    def _queries(self, x):
        query = project(self.query, x)  # (batch, queries, heads, head_dim)
        return self._normalized(self.query_norm, query)

    def _keys_and_values(self, x):
        key, value = project(self.key, x), project(self.value, x)  # (batch, keys, kv_heads, head_dim)
        return self._normalized(self.key_norm, key), value

    def _normalized(self, norm, x):
        """Queries or keys behind their norm, which looks at each head or at all heads together."""
        if norm is None:
            return x
        if self.qk_norm_scope == "head":
            return norm(x)
        shape = ops.shape(x)
        lead = (-1,) if self.qk_norm_scope == "each_head" else shape[:2]  # groups span all axes but the first
        joined = ops.reshape(x, (*lead, x.shape[2] * x.shape[3]))  # (batch, length, heads * head_dim), or all tokens
        return ops.reshape(norm(joined), shape)

    def _score_options(self, training) -> dict[str, Any]:
        sinks = self.sink_logits
        if self.sinks == "off_by_one":
            sinks = ops.zeros((self.num_heads,), dtype="float32")
        return {
            "scale": self.scale,
            "softcap": self.logit_softcap,
            "sinks": sinks,
            "dropout": self.dropout if training else 0.0,
            "seed": self.seed_generator,
            "kernel": self.kernel,
        }

    def _combine_heads(self, heads, x):
        """(batch, queries, heads, head_dim) to (batch, queries, width)."""
        if self.gate is not None:
            heads = heads * ops.sigmoid(project(self.gate, x))
        return project(self.output_projection, heads)

    def _output_specs(self, x, keys, return_scores):
        output = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        scores = (
            keras.KerasTensor((x.shape[0], self.num_heads, x.shape[1], keys), dtype="float32")
            if return_scores
            else None
        )
        return output, scores
