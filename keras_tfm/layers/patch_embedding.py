"""Images as sequences of patches."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_tfm.config import sides
from keras_tfm.layers.base import Layer, check_positive, clone_initializer, logical_axes, register
from keras_tfm.layers.projection import project
from keras_tfm.ops.backend import static_shape


@register
class PatchEmbedding(Layer):
    """Cuts images into patches and projects each to a vector (Dosovitskiy et al. 2021, equation 1).

    The projection is that of a convolution whose kernel and stride are the patch: one matrix product here.

    Args:
        hidden_dim: Width of the vectors.
        patch_size: Pixels of a patch's side, or (height, width).
        class_token: A learned vector comes before the patches, for a classifier to read (section 3.1).
        use_bias: Of the projection.
        kernel_initializer: Of the projection and the class token.

    Call arguments:
        x: (batch, height, width, channels), float, scaled as the model was trained; height and width are multiples of
            the patch's.

    Returns:
        (batch, patches, hidden_dim), row by row of the image; one more in front with a class token.

    Raises:
        ValueError: for images of integers, without a known size, or that do not divide into patches.

    Example:
        >>> keras_tfm.layers.PatchEmbedding(32, patch_size=4)(keras.random.uniform((2, 16, 16, 3))).shape
        (2, 17, 32)
    """

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int | tuple[int, int] | list[int] = 16,
        *,
        class_token: bool = True,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(hidden_dim=hidden_dim)
        self._patch = sides("patch_size", patch_size)
        self.hidden_dim = hidden_dim
        self.patch_size = patch_size
        self.class_token = class_token
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.projection = keras.layers.Dense(
            hidden_dim,
            use_bias=use_bias,
            kernel_initializer=clone_initializer(kernel_initializer),
            **self.sublayer_options("projection"),
        )

    def build(self, x_shape):
        self.projection.build((None, None, self._patch[0] * self._patch[1] * x_shape[-1]))
        logical_axes(getattr(self.projection, "_kernel", None), None, "embed")
        logical_axes(self.projection.bias, "embed")
        self.class_vector = None
        if self.class_token:
            self.class_vector = self.add_weight(
                name="class_vector",
                shape=(1, self.hidden_dim),
                initializer=clone_initializer(self.kernel_initializer),
            )
            logical_axes(self.class_vector, None, "embed")

    def call(self, x):
        rows, columns, channels = self._grid(x)
        height, width = self._patch
        x = ops.reshape(x, (-1, rows, height, columns, width, channels))
        x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, rows * columns, height * width * channels))
        x = project(self.projection, x)  # (batch, patches, hidden_dim)
        if self.class_vector is None:
            return x
        first = ops.broadcast_to(ops.cast(self.class_vector, x.dtype), (ops.shape(x)[0], 1, self.hidden_dim))
        return ops.concatenate([first, x], axis=1)

    def _grid(self, x) -> tuple[int, int, int]:
        """Patches along height and width, and channels."""
        shape = static_shape(x)
        if "float" not in keras.backend.standardize_dtype(x.dtype):
            raise ValueError(
                f"x must be float, scaled as the model was trained, such as images / 127.5 - 1; got {x.dtype}."
            )
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(f"x must be (batch, height, width, channels) of known sizes; got shape {shape}.")
        height, width, channels = (int(size or 0) for size in shape[1:])
        rows, columns = height // self._patch[0], width // self._patch[1]
        if (rows * self._patch[0], columns * self._patch[1]) != (height, width):
            raise ValueError(f"Images of {height} x {width} pixels do not divide into patches of {self._patch}.")
        return rows, columns, channels

    def compute_output_spec(self, x):
        rows, columns, _ = self._grid(x)
        length = rows * columns + int(self.class_token)
        return keras.KerasTensor((x.shape[0], length, self.hidden_dim), dtype=self.compute_dtype)
