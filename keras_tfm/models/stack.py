"""One stack of blocks with what comes before and after it: an encoder, or a decoder."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.config import EMBEDDING_POSITIONS, TransformerConfig, kind_of
from keras_tfm.layers import (
    Dropout,
    MultiHeadCrossAttention,
    TokenTypeEmbedding,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from keras_tfm.layers import norm as norms
from keras_tfm.layers import position as positions_
from keras_tfm.layers.base import argument_names, clone_initializer
from keras_tfm.layers.recompute import recomputed
from keras_tfm.layers.scanned import is_traced, scanned
from keras_tfm.layers.transformer_block import TransformerBlock
from keras_tfm.ops import kv_cache
from keras_tfm.ops.backend import is_symbolic
from keras_tfm.ops.places import at_places

# Position schemes of which all blocks use the same one, its table included (T5, DeBERTa), and its name.
SHARED_POSITIONS = {"relative": "relative_position_bias", "disentangled": "disentangled_bias"}


class Stack:
    """Embedded tokens in, hidden states out. Holds layers by the names that checkpoints and users know them by.

    Args:
        config: Of the model.
        decoder: Causal blocks.
        cross_attention: Blocks that attend to a context.
        prefix: Of the layers' names.
        dtype: Policy of the layers.

    Attributes:
        recompute: In training, compute the blocks' intermediate values again for the gradients.
        scan: In compiled programs of JAX, have one block's program run for all of them.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        decoder: bool,
        cross_attention: bool = False,
        prefix: str = "",
        dtype: Any = None,
    ):
        self.decoder = decoder
        self.recompute = self.scan = False
        options: dict[str, Any] = {"dtype": dtype}
        initializer = keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        position, in_blocks = config.position, config.attention_position
        if config.position_kind == "learned":
            extra = {} if isinstance(position, str) else {k: v for k, v in position.items() if k != "kind"}
            position = {
                "kind": "learned",
                "max_length": config.num_positions,
                "embeddings_initializer": initializer,
                **extra,
            }
        if config.position_kind not in (None, *EMBEDDING_POSITIONS):
            position, in_blocks = None, position
        if kind_of(in_blocks) in SHARED_POSITIONS:
            given = {"kind": in_blocks} if isinstance(in_blocks, str) else dict(in_blocks)
            defaults: dict[str, Any] = {"embeddings_initializer": initializer}
            if given["kind"] == "relative":
                defaults["bidirectional"] = not decoder
            name = SHARED_POSITIONS[given["kind"]]
            in_blocks = positions_.make({**defaults, **given}, name=f"{prefix}{name}", **options)
        self.position_embedding = positions_.make(position, name=f"{prefix}position_embedding", **options)
        self.token_type_embedding = None
        if config.token_type_vocabulary_size and not decoder:
            self.token_type_embedding = TokenTypeEmbedding(
                config.token_type_vocabulary_size, initializer, name=f"{prefix}token_type_embedding", **options
            )
        self.embedding_norm = (
            norms.make(config.norm, name=f"{prefix}embedding_norm", **options) if config.embedding_norm else None
        )
        self.embedding_dropout = Dropout(config.dropout, name=f"{prefix}embedding_dropout", **options)
        self.embedding_projection = None
        if config.embedding_dim is not None:
            self.embedding_projection = keras.layers.Dense(
                config.hidden_dim,
                kernel_initializer=clone_initializer(initializer),
                name=f"{prefix}embedding_projection",
                **options,
            )
        block = TransformerDecoderBlock if decoder else TransformerEncoderBlock
        count = (config.num_decoder_layers or config.num_layers) if cross_attention else config.num_layers
        groups = config.layer_groups or count
        common: dict[str, Any] = dict(
            num_heads=config.num_heads,
            intermediate_dim=config.intermediate_dim,
            norm=config.norm,
            norm_placement=config.norm_placement,
            dropout=config.dropout,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            window=config.window,
            position=in_blocks,
            activation=config.activation,
            gated=config.gated,
            use_bias=config.use_bias,
            attention_dropout=config.attention_dropout,
            activation_dropout=config.activation_dropout,
            parallel=config.parallel,
            attention=config.attention,
            feed_forward=config.feed_forward,
            kernel_initializer=initializer,
            **options,
        )
        distinct = [
            block(
                # Stochastic depth grows linearly with depth (Huang et al. 2016, section 3).
                drop_path=config.drop_path * index / max(groups - 1, 1),
                name=f"{prefix}block_{index}",
                **{**common, **config.block(index)},
                **({"cross_attention": _cross_attention(config, index)} if cross_attention else {}),
            )
            for index in range(groups)
        ]
        self.blocks = [distinct[index * groups // count] for index in range(count)]
        self.final_norm = (
            norms.make(config.norm, name=f"{prefix}final_norm", **options) if config.has_final_norm else None
        )

    def parts(self) -> dict[str, Any]:
        """The layers by the attribute names that a backbone gives them."""
        embedding = ("position_embedding", "token_type_embedding", "embedding_norm", "embedding_projection")
        return {name: getattr(self, name) for name in (*embedding, "blocks", "final_norm")}

    def run(
        self,
        x: Any,
        *,
        padding_mask: Any = None,
        attention_mask: Any = None,
        segment_ids: Any = None,
        positions: Any = None,
        token_type_ids: Any = None,
        context: Any = None,
        context_padding_mask: Any = None,
        context_segment_ids: Any = None,
        cache: list | None = None,
        return_scores: bool = False,
        places: Any = None,
        training: bool | None = None,
    ) -> tuple[Any, list | None, list | None]:
        """Embedded tokens, (batch, length, hidden_dim), to hidden states, the updated cache, and scores by block.

        With `places`, (batch, n) int, to the states of these tokens alone.
        """
        if cache is not None and positions is None:
            positions = kv_cache.next_positions(cache[0]["attention"], padding_mask, keras.ops.shape(x)[1])
        if self.position_embedding is not None:
            x = self.position_embedding(x, positions=positions, padding_mask=padding_mask, segment_ids=segment_ids)
        if self.token_type_embedding is not None:
            x = self.token_type_embedding(x, token_type_ids=token_type_ids)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.embedding_dropout(x, training=training)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        options: dict[str, Any] = {
            "padding_mask": padding_mask,
            "attention_mask": attention_mask,
            "segment_ids": segment_ids,
            "positions": positions,
        }
        if context is not None or context_padding_mask is not None:
            options |= {
                "context": context,
                "context_padding_mask": context_padding_mask,
                "context_segment_ids": context_segment_ids,
            }
        updated: list = []
        scores: list = []
        blocks = self.blocks
        if self.scan and cache is None and not return_scores and is_traced(x):
            last = 1 if places is not None and _answers_some(blocks[-1]) else 0
            alike = blocks[: len(blocks) - last]
            x = scanned(alike, x, recompute=self.recompute and bool(training), training=training, **options)
            blocks = blocks[len(alike) :]
        for index, block in enumerate(blocks, len(self.blocks) - len(blocks)):
            if cache is not None:
                options["cache"] = cache[index]
            if return_scores:
                options["return_scores"] = True
            if places is not None and index == len(self.blocks) - 1 and _answers_some(block):
                options["places"], places = places, None
            if self.recompute and training and cache is None and not return_scores and not is_symbolic(x):
                result = recomputed(block, x, training=training, **options)
            else:
                result = block(x, training=training, **options)
            if isinstance(result, tuple):
                x, *extras = result
                if cache is not None:
                    updated.append(extras.pop(0))
                scores += extras
            else:
                x = result
        if places is not None:
            x = at_places(x, places)
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x, (updated if cache is not None else None), (scores if return_scores else None)

    def make_cache(
        self, batch: int, capacity: int, dtype: str | None = None, spare: int = 0, context: Any = None
    ) -> list:
        """An empty cache for every block."""
        extra = {"context": context} if context is not None else {}
        return [block.make_cache(batch, capacity, dtype, spare, **extra) for block in self.blocks]


def _answers_some(block: Any) -> bool:
    """Whether a block computes some tokens' outputs alone: not where it is wrapped, or has a loss over all tokens."""
    return isinstance(block, TransformerBlock) and not getattr(block.feed_forward, "balance_loss", 0.0)


def _cross_attention(config: TransformerConfig, index: int) -> Any:
    """Options of a block's cross-attention: those of its self-attention, but for what cross-attention does not have."""
    options = config.block(index).get("attention", config.attention) or {}
    known = argument_names(MultiHeadCrossAttention)
    return {name: value for name, value in options.items() if name in known} or True
