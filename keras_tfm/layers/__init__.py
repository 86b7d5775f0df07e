"""Keras layers. Each plugs into the Functional API and survives a `.keras` file on its own."""

from keras_tfm.layers.alibi import ALiBi
from keras_tfm.layers.disentangled_bias import DisentangledBias
from keras_tfm.layers.dropout import Dropout, DropPath, LayerScale
from keras_tfm.layers.feed_forward import FeedForward
from keras_tfm.layers.heads import ClassificationHead, MaskedLMHead
from keras_tfm.layers.mixture_of_experts import MixtureOfExperts
from keras_tfm.layers.multi_head_cross_attention import MultiHeadCrossAttention
from keras_tfm.layers.multi_head_self_attention import MultiHeadSelfAttention
from keras_tfm.layers.patch_embedding import PatchEmbedding
from keras_tfm.layers.pooling import Pooling
from keras_tfm.layers.position_scheme import PositionScheme
from keras_tfm.layers.positional_encoding import PositionalEncoding
from keras_tfm.layers.relative_position_bias import RelativePositionBias
from keras_tfm.layers.residual import Residual
from keras_tfm.layers.rms_norm import RMSNormalization
from keras_tfm.layers.rotary_embedding import RotaryEmbedding
from keras_tfm.layers.token_embedding import TokenEmbedding
from keras_tfm.layers.token_type_embedding import TokenTypeEmbedding
from keras_tfm.layers.transformer_decoder_block import TransformerDecoderBlock
from keras_tfm.layers.transformer_encoder_block import TransformerEncoderBlock

__all__ = [
    "ALiBi",
    "ClassificationHead",
    "DisentangledBias",
    "DropPath",
    "Dropout",
    "FeedForward",
    "LayerScale",
    "MaskedLMHead",
    "MixtureOfExperts",
    "MultiHeadCrossAttention",
    "MultiHeadSelfAttention",
    "PatchEmbedding",
    "Pooling",
    "PositionScheme",
    "PositionalEncoding",
    "RMSNormalization",
    "RelativePositionBias",
    "Residual",
    "RotaryEmbedding",
    "TokenEmbedding",
    "TokenTypeEmbedding",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
]
