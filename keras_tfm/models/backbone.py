"""The backbone: tokens to hidden states, for every kind of transformer."""

from __future__ import annotations

from typing import Any

import keras

from keras_tfm.config import TransformerConfig
from keras_tfm.layers import PatchEmbedding, Pooling, TokenEmbedding
from keras_tfm.layers import norm as norms
from keras_tfm.layers.base import clone_initializer, logical_axes, register
from keras_tfm.layers.recompute import check_recomputable
from keras_tfm.layers.scanned import check_scannable
from keras_tfm.models.named_inputs import NamedInputsModel
from keras_tfm.models.pretrained import Pretrained
from keras_tfm.models.stack import Stack

NAMES = {
    "encoder": ["token_ids", "padding_mask", "segment_ids", "positions", "attention_mask"],
    "decoder": ["token_ids", "padding_mask", "segment_ids", "positions", "attention_mask"],
    "encoder_decoder": [
        "token_ids",
        "decoder_token_ids",
        "padding_mask",
        "decoder_padding_mask",
        "segment_ids",
        "decoder_segment_ids",
        "positions",
        "decoder_positions",
    ],
}


@register
class Backbone(Pretrained, NamedInputsModel):
    """A functional Keras model, built from a `TransformerConfig` and serialized as one.

    Args:
        config: A `TransformerConfig`, or its fields as a dict.
        name, trainable, dtype: As of any Keras model.

    Call arguments: a dict of the inputs below, of which only the first is required, and may be passed bare
        (of an encoder-decoder `token_ids` and `decoder_token_ids` are required).
        token_ids: (batch, length) int. `decoder_token_ids` likewise.
        padding_mask: (batch, length), true = a token. `decoder_padding_mask` likewise.
        token_type_ids: (batch, length) int, of encoders that have them.
        segment_ids: (batch, length) int, of packed sequences. `decoder_segment_ids` likewise.
        positions: (batch, length) int. Default: counted over real tokens, anew in each segment.
        attention_mask: (batch, length, length) or (batch, heads, length, length), true = may attend.
        images: (batch, height, width, channels) float, scaled as the model was trained: all that a model of images takes.

    Returns:
        A decoder: hidden states, (batch, length, hidden_dim). An encoder: a dict with these as "sequence_output", and
        (batch, hidden_dim) "pooled_output" where it has a pooler. An encoder-decoder: a dict with the decoder's as
        "sequence_output" and the encoder's as "encoder_sequence_output".

    Attributes:
        token_embedding, patch_embedding, position_embedding, token_type_embedding, embedding_norm,
            embedding_projection, blocks, final_norm, pooler: the layers (None where there is none); of an encoder-decoder
            also decoder_position_embedding, decoder_embedding_norm, decoder_blocks, decoder_final_norm.
    """

    def __init__(
        self,
        config: TransformerConfig | dict[str, Any],
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
    ):
        if isinstance(config, dict):
            config = TransformerConfig.from_dict(config)
        self.config = config
        self.vocabulary_size = config.vocabulary_size
        self.image_shape = config.image_shape
        main = Stack(config, decoder=config.kind == "decoder", dtype=dtype)
        decoder = (
            Stack(config, decoder=True, cross_attention=True, prefix="decoder_", dtype=dtype)
            if config.kind == "encoder_decoder"
            else None
        )
        initializer = keras.initializers.TruncatedNormal(stddev=config.initializer_range)
        parts: dict[str, Any] = {**_embedding(config, initializer, dtype), "pooler": None, **main.parts()}
        if config.pooler:
            parts["_first_token"] = Pooling("first", name="first_token", dtype=dtype)
            parts["pooler"] = keras.layers.Dense(
                config.hidden_dim,
                activation="tanh",
                kernel_initializer=clone_initializer(initializer),
                name="pooler",
                dtype=dtype,
            )
        if decoder is not None:
            parts |= {f"decoder_{part}": layer for part, layer in decoder.parts().items()}
        self._main: Stack = main
        self._decoder: Any = decoder
        names = list(NAMES[config.kind]) if config.image_shape is None else ["images"]
        if config.token_type_vocabulary_size:
            names.insert(2, "token_type_ids")
        super().__init__(
            names, 1 if decoder is None else 2, parts, name=name or "backbone", trainable=trainable, dtype=dtype
        )
        if self.pooler is not None:
            logical_axes(self.pooler._kernel, "embed", "mlp")
            logical_axes(self.pooler.bias, "mlp")
        for stack in filter(None, (main, decoder)):
            for norm in filter(None, (stack.embedding_norm, stack.final_norm)):
                norms.annotate(norm, "embed")

    # One computation, three faces: the graph, the cached step, the scores ----------------------------------------------

    def compute(self, inputs, training=None):
        return self._run(inputs, training=training)[0]

    def _run(
        self,
        inputs: dict[str, Any],
        *,
        cache: list | None = None,
        return_scores: bool = False,
        places: Any = None,
        training: bool | None = None,
    ):
        if self._decoder is not None:
            encoded, encoder_scores = self._encode(inputs, return_scores, training)
            hidden, cache, scores = self._decode(inputs, encoded, cache, return_scores, training)
            outputs: Any = {"sequence_output": hidden, "encoder_sequence_output": encoded}
            return outputs, cache, {"encoder": encoder_scores, "decoder": scores} if return_scores else None
        if self.patch_embedding is not None:
            embedded, options = self.patch_embedding(inputs["images"]), {}
        else:
            options = {name: value for name, value in inputs.items() if name != "token_ids"}
            embedded = self.token_embedding(inputs["token_ids"])
        hidden, cache, scores = self._main.run(
            embedded,
            **options,
            cache=cache,
            return_scores=return_scores,
            places=places,
            training=training,
        )
        if self.config.kind == "decoder" or places is not None:
            return hidden, cache, scores
        outputs = {"sequence_output": hidden}
        if self.pooler is not None:
            outputs["pooled_output"] = self.pooler(self._first_token(hidden, padding_mask=inputs.get("padding_mask")))
        return outputs, cache, scores

    def _encode(self, inputs, return_scores=False, training=None):
        names = ("padding_mask", "segment_ids", "positions")
        options = {name: inputs[name] for name in names}
        hidden, _, scores = self._main.run(
            self.token_embedding(inputs["token_ids"]), return_scores=return_scores, training=training, **options
        )
        return hidden, scores

    def _decode(self, inputs, encoded, cache=None, return_scores=False, training=None):
        return self._decoder.run(
            self.token_embedding(inputs["decoder_token_ids"]),
            padding_mask=inputs["decoder_padding_mask"],
            segment_ids=inputs["decoder_segment_ids"],
            positions=inputs["decoder_positions"],
            context=encoded,
            context_padding_mask=inputs["padding_mask"],
            context_segment_ids=inputs["segment_ids"],
            cache=cache,
            return_scores=return_scores,
            training=training,
        )

    def states_at(self, inputs: Any, places: Any, training: bool | None = None) -> Any:
        """Hidden states of some tokens, (batch, n, hidden_dim): what the whole would have there, for less work.

        The last block computes no more than these tokens need; with few of them it costs a sixth of another block's.

        Args:
            inputs: As the model's, of an encoder or decoder.
            places: (batch, n) int, along the sequence that the blocks see.
            training: As of any layer.
        """
        if self._decoder is not None:
            raise ValueError("states_at is of encoders and decoders; an encoder-decoder has two sequences.")
        return self._run(self.standardize(inputs), places=places, training=training)[0]

    def encode(self, inputs: Any) -> Any:
        """An encoder-decoder's encoder alone: (batch, length, hidden_dim)."""
        return self._encode(self.standardize(inputs, required=("token_ids",)))[0]

    def attention_scores(self, inputs: Any) -> Any:
        """The attention weights of every block, (batch, heads, queries, keys) float32, as a list.

        Of an encoder-decoder a dict with the lists of "encoder" and "decoder"; each entry of the latter is a dict with
        "attention" and "cross_attention".
        """
        return self._run(self.standardize(inputs), return_scores=True, training=False)[2]

    def recompute_blocks(self, on: bool = True) -> None:
        """Let training keep the blocks' inputs alone and compute the rest again for the gradients (Chen et al. 2016).

        Memory then grows by one tensor of (batch, length, hidden_dim) a block; a step takes about a third longer. Losses
        and gradients stay the same, dropout included. To be said before `compile`; files do not keep it.

        Raises:
            ValueError: for blocks that add a loss of their own (experts with a balance_loss).
        """
        for stack in filter(None, (self._main, self._decoder)):
            for block in stack.blocks if on else ():
                check_recomputable(block)
            stack.recompute = on

    def scan_blocks(self, on: bool = True) -> None:
        """On JAX, let one block's program run for all of them, so that compiling takes as long for many as for few.

        Each step copies the blocks' weights into stacks first. Losses and gradients stay the same, dropout included. To be
        said before `compile`; generation and calls that ask for scores go block by block, and files do not keep it.

        Raises:
            ValueError: on other backends; for blocks that differ in more than their weights, naming what; for blocks that
                add a loss of their own (experts with a balance_loss).
        """
        stacks = [stack for stack in (self._main, self._decoder) if stack is not None]
        for stack in stacks if on else ():
            check_scannable(stack.blocks)
        for stack in stacks:
            stack.scan = on

    def make_cache(
        self, batch: int, capacity: int, dtype: str | None = None, spare: int = 0, context: Any = None
    ) -> list:
        """An empty cache for `batch` rows of up to `capacity` tokens; of an encoder-decoder, give `encode`'s output.

        `dtype` and `spare` are those of `MultiHeadSelfAttention.make_cache`.
        """
        stack = self._decoder if self._decoder is not None else self._main
        return stack.make_cache(batch, capacity, dtype, spare, context)

    def cached_call(self, inputs: Any, cache: list) -> tuple[Any, list]:
        """Hidden states of the next tokens of each row, and the cache with them.

        Args:
            inputs: {"token_ids": (batch, chunk), "padding_mask"} of a decoder; of an encoder-decoder
                {"decoder_token_ids", "decoder_padding_mask"} and the context's own "padding_mask".
            cache: From `make_cache` or an earlier call.
        """
        if self._decoder is None:
            hidden, cache, _ = self._run(self.standardize(inputs), cache=cache, training=False)
            return hidden, cache
        given = self.standardize(inputs, required=("decoder_token_ids",))
        hidden, cache, _ = self._decode(given, None, cache, training=False)
        return hidden, cache

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "config": self.config.to_dict()}


def _embedding(config: TransformerConfig, initializer: Any, dtype: Any) -> dict[str, Any]:
    """The layer that embeds tokens or patches, by the attribute that a backbone keeps it as."""
    width = config.embedding_dim or config.hidden_dim
    if config.image_shape is not None:
        patches = PatchEmbedding(
            width,
            config.patch_size,
            kernel_initializer=initializer,
            **(config.patch_embedding or {}),
            name="patch_embedding",
            dtype=dtype,
        )
        return {"token_embedding": None, "patch_embedding": patches}
    assert config.vocabulary_size is not None, "checked by the config"
    tokens = TokenEmbedding(
        config.vocabulary_size,
        width,
        mask_zero=config.mask_zero,
        scale=config.embedding_scale,
        tied=config.tie_embeddings,
        output_bias=config.head_bias,
        logit_scale=config.logit_scale,
        logit_softcap=config.logit_softcap,
        embeddings_initializer=initializer,
        name="token_embedding",
        dtype=dtype,
    )
    return {"token_embedding": tokens, "patch_embedding": None}
