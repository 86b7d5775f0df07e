"""How much of a device training uses: tokens, floating-point operations, and the rate of a large product."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.layers import MixtureOfExperts
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.models.text_dataset import TextDataset
from keras_tfm.ops import backend
from keras_tfm.training.parts import EMBEDDINGS, check_model
from keras_tfm.training.seeing.named_parts import attention_layers, blocks, layer_groups


def training_flops(model: Any, length: int, decoder_length: int | None = None) -> float:
    """Floating-point operations of one row's training step (Chowdhery et al. 2022, PaLM, appendix B).

    6 a token for each weight that it is multiplied with, and 12 * heads * head_dim * keys for each attention layer;
    forward and backward, without what recomputation adds. Lookups cost nothing, the projection to the vocabulary does; of
    experts only those count that a token goes through. A causal layer is counted as one that is not.

    Args:
        model: A task model.
        length: Tokens of a row; of an encoder-decoder, of its source.
        decoder_length: Tokens of an encoder-decoder's target. Not of another model.

    Raises:
        ValueError: for a decoder_length that is missing, or without a decoder.
    """
    config = check_model(model).config
    two_sides = config.kind == "encoder_decoder"
    if two_sides != (decoder_length is not None):
        raise ValueError(
            f"decoder_length must be given of an encoder-decoder, and of no other model; got {decoder_length!r} for a "
            f"model of kind {config.kind!r}."
        )
    last = length if decoder_length is None else decoder_length
    flops = 0.0
    for name, variables in layer_groups(model).items():
        if name in EMBEDDINGS and name not in ("patch_embedding", "embedding_projection"):
            continue
        each_row = name in ("head", "pooler") and not isinstance(model, LanguageModel)
        tokens = last if name.startswith("decoder_") else 1 if each_row and _one_a_row(model) else length
        flops += 6.0 * tokens * sum(_active(model, name, variable) for variable in variables)
    if isinstance(model, LanguageModel):
        assert config.vocabulary_size is not None, "it reads tokens"
        flops += 6.0 * last * config.vocabulary_size * (config.embedding_dim or config.hidden_dim)
    for name, layer in attention_layers(model).items():
        queries = last if name.startswith("decoder_") else length
        keys = length if name.endswith("cross_attention") else queries
        keys = min(keys, getattr(layer, "window", None) or keys)
        heads = getattr(layer, "num_heads", config.num_heads)
        head_dim = getattr(layer, "head_dim", None) or config.head_dim or config.hidden_dim // config.num_heads
        flops += 12.0 * queries * keys * heads * head_dim
    return flops


def _one_a_row(model: Any) -> bool:
    """Whether the head sees a row as one vector."""
    return hasattr(model, "pooling")


def _active(model: Any, name: str, variable: Any) -> float:
    """How many of a variable's elements a token is multiplied with."""
    owner, _, branch = name.rpartition(".")
    layer = getattr(blocks(model).get(owner), branch, None) if branch == "feed_forward" else None
    share = 1.0
    if isinstance(layer, MixtureOfExperts) and variable.path.rpartition("/")[2].startswith("expert_"):
        share = layer.top_k / layer.num_experts
    return share * float(np.prod(variable.shape))


def measured_flops(dtype: str = "float32") -> float:
    """Floating-point operations a second of this device in a large matrix product, the best of three, as a yardstick."""
    size = 1024 if backend.device() == "cpu" else 8192
    x = ops.ones((size, size), dtype=dtype)
    best = float("inf")
    for _ in range(4):  # the first compiles
        start = time.perf_counter()
        ops.convert_to_numpy(ops.cast(ops.matmul(x, x)[0, 0], "float32"))
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


class CountedTokens:
    """Counts the tokens of the batches that a dataset hands out, a few ahead of training."""

    def __init__(self, data: TextDataset):
        self.data = data
        self.label_batch = data.label_batch
        data.label_batch = self._see
        self._reset()

    def _reset(self) -> None:
        self.batches = self.tokens = self.places = 0
        self.rows: list[tuple[int, int, int | None]] = []

    def _see(self, batch: dict[str, Any], labels: Any) -> Any:
        lengths: list[int | None] = []
        for prefix in ("", "decoder_"):
            ids = batch.get(f"{prefix}token_ids")
            if ids is not None:
                mask = np.asarray(batch.get(f"{prefix}padding_mask", np.ones(ids.shape, bool)), bool)
                self.tokens += int(mask.sum())
                self.places += mask.size
                lengths.append(int(np.ceil(mask.sum() / len(mask))))
        self.batches += 1
        self.rows.append((len(batch["token_ids"]), lengths[0] or 1, lengths[1] if len(lengths) > 1 else None))
        return labels if self.label_batch is None else self.label_batch(batch, labels)

    def take(self, model: Any) -> tuple[float, float, float]:
        """Tokens a batch, the share of padding, FLOPs a batch; since the last call."""
        flops = sum(rows * training_flops(model, length, decoder) for rows, length, decoder in self.rows)
        found = self.tokens / self.batches, 1.0 - self.tokens / self.places, flops / len(self.rows)
        self._reset()
        return found

    def stop(self) -> None:
        self.data.label_batch = self.label_batch
