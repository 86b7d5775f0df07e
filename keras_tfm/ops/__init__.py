"""Pure functions on tensors: attention and its kernels, masks, positions, the key/value cache, activations."""

from keras_tfm.ops import activations, kv_cache, losses, masks, positions, random
from keras_tfm.ops.attention import attention, explain_kernel

__all__ = ["activations", "attention", "explain_kernel", "kv_cache", "losses", "masks", "positions", "random"]
