"""A whole model as data: validated when made, JSON-able, comparable."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any

EMBEDDING_POSITIONS = ("learned", "sinusoidal")  # kinds that are added to embeddings; the others act in attention
KINDS = ("encoder", "decoder", "encoder_decoder")
PATTERN_FIELDS = (
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_dim",
    "position",
    "window",
    "activation",
    "gated",
    "use_bias",
    "norm_placement",
    "attention",
    "feed_forward",
)
OF_TOKENS = (  # fields that mean nothing to a model of images
    "vocabulary_size",
    "max_sequence_length",
    "token_type_vocabulary_size",
    "embedding_scale",
    "tie_embeddings",
    "head_bias",
    "logit_scale",
    "logit_softcap",
    "mask_zero",
)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a transformer. Every backbone is built from one and serializes as one.

    Attributes:
        kind: "encoder" (BERT), "decoder" (GPT) or "encoder_decoder" (the original transformer).
        vocabulary_size: Rows of the token table; None of a model that reads images.
        hidden_dim: Width of the residual stream.
        num_layers: Blocks; of an encoder-decoder, those of the encoder.
        num_heads: Query heads.
        intermediate_dim: Width inside the feed-forward layers.
        num_decoder_layers: Blocks of an encoder-decoder's decoder. Default: num_layers.
        max_sequence_length: Rows of a learned position table; otherwise a limit that is not enforced by weights.
        num_key_value_heads: Key/value heads. Default: num_heads.
        head_dim: Width of a head. Default: hidden_dim // num_heads.
        position: "learned", "sinusoidal", "rotary", "alibi", "relative", "disentangled", a dict of options with a "kind",
            or None.
        attention_position: One that acts in attention, beside a `position` that is added to embeddings (MPNet, DeBERTa).
        token_type_vocabulary_size: Kinds of `token_type_ids` (BERT: 2); 0 for none.
        embedding_norm: Normalize the sum of embeddings (BERT).
        embedding_scale: Factor on token embeddings, such as hidden_dim ** 0.5.
        norm: "layer_norm", "rms_norm" or a dict of options with a "kind".
        norm_placement: "pre", "post", "sandwich", "residual" or "none"; or a dict of these by branch, as of the blocks.
        final_norm: Normalize what the last block gives. Default: where the placement leaves it unnormalized.
        activation, gated, use_bias: Of the blocks.
        dropout: Of embeddings and residual branches; also of attention weights unless `attention_dropout` is given.
        attention_dropout, activation_dropout, drop_path, window, parallel: Of the blocks.
        attention, feed_forward: Further options of `MultiHeadSelfAttention` and `FeedForward`; cross-attention has those
            of self-attention that it takes.
        pooler: BERT's dense layer with tanh on the first token.
        embedding_dim: Width of the embeddings, which a projection to hidden_dim then follows (ALBERT, ELECTRA). Default:
            hidden_dim, and no projection.
        layer_pattern: Options of blocks in turn, a list of dicts that is repeated along the depth and takes the place of
            the fields above: [{"window": 512}] * 5 + [{}] is Gemma 3's. Its keys: `PATTERN_FIELDS`.
        layer_groups: How many blocks have weights of their own; consecutive ones share them (ALBERT: 1).
        tie_embeddings: A language model's head uses the token table.
        head_bias: A language model's head adds a bias to the logits.
        logit_scale, logit_softcap: What a language model's logits are multiplied with, and then capped at, softly.
        image_size: Pixels of an image's side, or (height, width): the model is an encoder of images, and of no tokens.
        patch_size: Pixels of a patch's side, or (height, width) (ViT: 16).
        num_channels: Of an image.
        patch_embedding: Further options of `PatchEmbedding`: class_token, use_bias.
        mask_zero: Token 0 is padding wherever no padding_mask is given.
        initializer_range: Standard deviation of initial weights (normal, cut at two of them).
        metadata: What a checkpoint's config.json says beside the model, such as token ids; written back with it.
        family: The published family whose format `save_pretrained` writes; None: the first that can express the model.

    Raises:
        ValueError: for sizes and options that do not fit each other, naming the field, its value and what would do.
    """

    kind: str
    vocabulary_size: int | None
    hidden_dim: int
    num_layers: int
    num_heads: int
    intermediate_dim: int
    num_decoder_layers: int | None = None
    max_sequence_length: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    position: Any = "learned"
    attention_position: Any = None
    token_type_vocabulary_size: int = 0
    embedding_norm: bool = False
    embedding_scale: float | None = None
    norm: Any = "layer_norm"
    norm_placement: str | dict[str, str] = "pre"
    final_norm: bool | None = None
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float | None = None
    activation_dropout: float = 0.0
    drop_path: float = 0.0
    window: int | None = None
    parallel: bool | str = False
    attention: dict[str, Any] | None = None
    feed_forward: dict[str, Any] | None = None
    pooler: bool = False
    embedding_dim: int | None = None
    layer_pattern: list[dict[str, Any]] | None = None
    layer_groups: int | None = None
    tie_embeddings: bool = True
    head_bias: bool = False
    logit_scale: float | None = None
    logit_softcap: float | None = None
    image_size: Any = None
    patch_size: Any = None
    num_channels: int = 3
    patch_embedding: dict[str, Any] | None = None
    mask_zero: bool = False
    initializer_range: float = 0.02
    metadata: dict[str, Any] | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}; got {self.kind!r}.")
        self._check_images()
        needed = ("hidden_dim", "num_layers", "num_heads", "intermediate_dim")
        for name in needed if self.image_size is not None else ("vocabulary_size", *needed):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer; got {value!r}.")
        optional = ("num_decoder_layers", "max_sequence_length", "num_key_value_heads", "head_dim", "window")
        for name in (*optional, "embedding_dim", "layer_groups"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be None or a positive integer; got {value!r}.")
        if self.head_dim is None and self.hidden_dim % self.num_heads:
            raise ValueError(
                f"hidden_dim={self.hidden_dim} is not divisible by num_heads={self.num_heads}. Choose a divisor, "
                "or give head_dim."
            )
        if self.num_key_value_heads is not None and self.num_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_heads={self.num_heads}; got {self.num_key_value_heads}."
            )
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1; got {value!r}.")
        if self.layer_groups is not None and self.num_layers % self.layer_groups:
            raise ValueError(f"layer_groups must divide num_layers={self.num_layers}; got {self.layer_groups}.")
        for options in self.layer_pattern or []:
            unknown = sorted(set(options) - set(PATTERN_FIELDS))
            if unknown:
                raise ValueError(f"layer_pattern takes {list(PATTERN_FIELDS)}; got {unknown}.")
        if self.layer_pattern is not None and self.layer_groups is not None:
            raise ValueError("layer_pattern makes blocks differ, layer_groups makes them one; give either.")
        if self.position_kind == "learned" and self.max_sequence_length is None and self.image_size is None:
            raise ValueError("position='learned' needs max_sequence_length, the number of positions in its table.")
        if self.attention_position is not None and self.position_kind not in (None, *EMBEDDING_POSITIONS):
            raise ValueError(
                f"position={self.position!r} acts in attention, as attention_position={self.attention_position!r} does; "
                "give either."
            )
        if kind_of(self.attention_position) in EMBEDDING_POSITIONS:
            raise ValueError(
                f"attention_position={self.attention_position!r} is added to embeddings; give it as position."
            )
        if self.num_decoder_layers is not None and self.kind != "encoder_decoder":
            raise ValueError(
                f"num_decoder_layers belongs to kind='encoder_decoder'; this is {self.kind!r}, whose blocks are num_layers."
            )
        if self.pooler and self.kind != "encoder":
            raise ValueError(f"pooler belongs to kind='encoder'; this is {self.kind!r}.")
        if self.token_type_vocabulary_size and self.kind != "encoder":
            raise ValueError(f"token_type_vocabulary_size belongs to kind='encoder'; this is {self.kind!r}.")

    def _check_images(self) -> None:
        """Raise ValueError unless the fields are those of a model of images, or of one of tokens."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)} | {"vocabulary_size": None}
        foreign = ("patch_size", "num_channels", "patch_embedding") if self.image_size is None else OF_TOKENS
        given = [name for name in foreign if getattr(self, name) != defaults[name]]
        if given:
            reason = (
                "which needs image_size" if self.image_size is None else "and this one, with image_size, reads none"
            )
            of = "images" if self.image_size is None else "tokens"
            raise ValueError(f"{', '.join(given)} belong to a model of {of}, {reason}.")
        if self.image_size is None:
            return
        if self.kind != "encoder":
            raise ValueError(f"image_size belongs to kind='encoder'; this is {self.kind!r}.")
        if type(self.num_channels) is not int or self.num_channels < 1:
            raise ValueError(f"num_channels must be a positive integer; got {self.num_channels!r}.")
        for name in ("image_size", "patch_size"):  # one spelling for each meaning
            height, width = sides(name, getattr(self, name))
            object.__setattr__(self, name, height if height == width else [height, width])
        (height, width), (patch_height, patch_width) = self._pixels
        if height % patch_height or width % patch_width:
            raise ValueError(f"image_size={self.image_size} does not divide into patches of {self.patch_size}.")

    @property
    def _pixels(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) of an image and of a patch."""
        return sides("image_size", self.image_size), sides("patch_size", self.patch_size)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of an image; None of a model of tokens."""
        return None if self.image_size is None else (*self._pixels[0], self.num_channels)

    @property
    def patch_shape(self) -> tuple[int, int, int] | None:
        """(height, width, channels) of a patch; None of a model of tokens."""
        return None if self.image_size is None else (*self._pixels[1], self.num_channels)

    @property
    def num_positions(self) -> int | None:
        """Rows of a learned position table: `max_sequence_length`, or an image's patches and its class token."""
        if self.image_size is None:
            return self.max_sequence_length
        (height, width), (patch_height, patch_width) = self._pixels
        patches = (height // patch_height) * (width // patch_width)
        return patches + int((self.patch_embedding or {}).get("class_token", True))

    @property
    def position_kind(self) -> str | None:
        """The kind of `position`, whether it is given as a name or as a dict."""
        return kind_of(self.position)

    def block(self, index: int) -> dict[str, Any]:
        """What `layer_pattern` says of a block; "attention" and "feed_forward" add to the fields of these names."""
        if not self.layer_pattern:
            return {}
        options = dict(self.layer_pattern[index % len(self.layer_pattern)])
        for part in ("attention", "feed_forward"):
            if part in options:
                options[part] = {**(getattr(self, part) or {}), **options[part]}
        return options

    @property
    def has_final_norm(self) -> bool:
        """`final_norm`, or what the placement calls for."""
        if self.final_norm is not None:
            return self.final_norm
        last = self.norm_placement
        last = last.get("feed_forward", "pre") if isinstance(last, dict) else last
        return last in ("pre", "sandwich", "residual")

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> TransformerConfig:
        """The inverse of `to_dict`; fields left out take their defaults, unknown ones raise ValueError."""
        check_fields(fields)
        return cls(**fields)

    def replace(self, **changes: Any) -> TransformerConfig:
        """A copy with some fields changed."""
        check_fields(changes)
        return dataclasses.replace(self, **changes)


def sides(name: str, value: Any) -> tuple[int, int]:
    """(height, width) of what may be given as one number for both."""
    pair = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or any(type(side) is not int or side < 1 for side in pair):
        raise ValueError(f"{name} must be a positive integer, or (height, width) of them; got {value!r}.")
    return pair


def kind_of(position: Any) -> str | None:
    """The kind of a position scheme, whether it is given as a name or as a dict."""
    return position.get("kind") if isinstance(position, dict) else position


def check_fields(fields: dict[str, Any]) -> None:
    """Raise ValueError if a key of `fields` is no field of `TransformerConfig`; the nearest is suggested."""
    known = [field.name for field in dataclasses.fields(TransformerConfig)]
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" It has {known}."
            raise ValueError(f"TransformerConfig has no field {name!r}.{hint}")
