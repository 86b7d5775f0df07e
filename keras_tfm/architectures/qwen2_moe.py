"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024), as `transformers` stores them: Qwen2 with experts, one for every token."""

from collections.abc import Callable, Mapping
from typing import Any

from keras_tfm.architectures import llama
from keras_tfm.architectures.architecture import Architecture, Rule
from keras_tfm.architectures.layer_types import FULL, SLIDING, pattern, read_types, window, windows, write_types
from keras_tfm.architectures.mixtral import TRAINING
from keras_tfm.architectures.rotary import rope
from keras_tfm.architectures.stored import LINEAR, experts
from keras_tfm.config import TransformerConfig

Config = Mapping[str, Any]
KEYS = {  # of config.json to options of the layer; and what is meant where nothing is said
    "num_experts": ("num_experts", 60),
    "num_experts_per_tok": ("top_k", 4),
    "norm_topk_prob": ("normalize", False),
    "moe_intermediate_size": ("intermediate_dim", 1408),
    "shared_expert_intermediate_size": ("shared_dim", 5632),
}


OLDER = {"num_local_experts": "num_experts"}


def is_sparse(config: Config, index: int) -> bool:
    """Whether a block has experts."""
    step = config.get("decoder_sparse_step") or 1
    dense = config.get("mlp_only_layers") or []
    return index not in dense and config.get("num_experts", 1) > 0 and (index + 1) % step == 0


def blocks(keys: Mapping[str, tuple[str, Any]], slides: Callable[[Config, int], bool], **fixed: Any) -> Rule:
    """The rule of families whose blocks have experts or not, and a window or not.

    Args:
        keys: As `KEYS`.
        slides: Whether a block has a window, where layer_types does not say.
        fixed: Further options of `MixtureOfExperts`.
    """

    def read(config: Config) -> dict[str, Any]:
        size = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
        types = read_types(config, size, lambda index: SLIDING if size and slides(config, index) else FULL)
        options = {ours: config.get(theirs, default) for theirs, (ours, default) in keys.items()}
        sparse = {
            "intermediate_dim": options.pop("intermediate_dim"),
            "feed_forward": {"kind": "mixture_of_experts", "use_bias": False, **options, **fixed},
        }
        return pattern(
            [
                ({"window": size} if kind == SLIDING else {}) | (sparse if is_sparse(config, index) else {})
                for index, kind in enumerate(types)
            ]
        )

    def write(config: TransformerConfig) -> dict[str, Any]:
        every = [config.block(index) for index in range(config.num_layers)]
        dense = [index for index, block in enumerate(every) if not _has_experts(block)]
        sparse = next(filter(_has_experts, every), {})
        options = {name: sparse[name] for name in ("intermediate_dim",) if name in sparse} | sparse.get(
            "feed_forward", {}
        )
        return {
            **{theirs: options.get(ours, default) for theirs, (ours, default) in keys.items()},
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
            "layer_types": write_types(config),
            "use_sliding_window": any(windows(config)),
            "sliding_window": window(config),
            "max_window_layers": config.num_layers,
        }

    others = ("mlp_only_layers", "decoder_sparse_step", "layer_types", "use_sliding_window", "sliding_window")
    return Rule((*keys, *others, "max_window_layers"), read, write)


def _has_experts(block: Mapping[str, Any]) -> bool:
    return (block.get("feed_forward") or {}).get("kind") == "mixture_of_experts"


def _qkv_bias(config: Config) -> dict[str, Any]:
    bias = bool(config.get("qkv_bias", True))
    return {"attention": {"use_bias": {"query": bias, "key": bias, "value": bias, "output": False}}}


def _write_qkv_bias(config: TransformerConfig) -> dict[str, Any]:
    bias = (config.attention or {}).get("use_bias", config.use_bias)
    return {"qkv_bias": bool(bias["query"] if isinstance(bias, dict) else bias)}


WEIGHTS = {
    **llama.WEIGHTS,
    "blocks.{i}.feed_forward": ("layers.{i}.mlp", experts("gate_proj", "up_proj", "down_proj")),
}
SHARED = {
    **{
        f"blocks.{{i}}.feed_forward.shared.{part}": (f"layers.{{i}}.mlp.shared_expert.{part}_proj", LINEAR)
        for part in ("gate", "up", "down")
    },
    "blocks.{i}.feed_forward.shared_gate_projection": ("layers.{i}.mlp.shared_expert_gate", LINEAR),
}


def _slides(config: Config, index: int) -> bool:
    return index % 2 == 0 and index < config.get("max_window_layers", 28)


QWEN2_MOE = Architecture(
    model_type="qwen2_moe",
    base="Qwen2MoeModel",
    prefix="model.",
    options={**llama.OPTIONS, "feed_forward": {"use_bias": False}},
    sizes=llama.SIZES,
    defaults={**llama.DEFAULTS, "num_key_value_heads": 16, "max_position_embeddings": 32768},
    rules=(
        rope(),
        llama.head_dim(),
        Rule(("qkv_bias",), _qkv_bias, _write_qkv_bias),
        blocks(KEYS, _slides, shared_gate=True),
    ),
    weights=WEIGHTS | SHARED,
    output=llama.OUTPUT,
    heads=llama.heads("Qwen2Moe"),
    unused=llama.UNUSED,
    older=OLDER,
    without_effect=TRAINING,
)
