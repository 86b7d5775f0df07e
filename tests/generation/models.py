"""Small models with weights that leave no doubt about the likeliest token, and the slow way to write with them."""

from __future__ import annotations

import numpy as np
from helpers import fill_weights, numpy

import keras_tfm as tfm

VOCABULARY = 61
SIZES = dict(
    num_layers=2, hidden_dim=32, num_heads=4, intermediate_dim=48, vocabulary_size=VOCABULARY, max_sequence_length=400
)
RELATIVE = {"kind": "relative", "num_buckets": 8, "max_distance": 20, "bidirectional": False}
MODELS = {
    "learned": {},
    "rotary, grouped": {"position": "rotary", "num_key_value_heads": 2},
    "alibi, window": {"position": "alibi", "window": 5},
    "relative, sinks": {"position": RELATIVE, "attention": {"sinks": "learned"}},
    "windows in turn": {"position": "rotary", "layer_pattern": [{"window": 4}, {}]},
    "experts": {
        "position": "rotary",
        "gated": True,
        "feed_forward": {"kind": "mixture_of_experts", "num_experts": 3, "top_k": 2},
    },
}
PROMPTS = [np.random.default_rng(n).integers(1, VOCABULARY, n).tolist() for n in (3, 17, 9)]
_made: dict[str, tfm.CausalLM] = {}


def model_of(name: str) -> tfm.CausalLM:
    """The model of this name, the same one each time."""
    if name not in _made:
        _made[name] = fill_weights(tfm.CausalLM(tfm.models.gpt(**SIZES, **MODELS[name])), 0.3)
    return _made[name]


def like(model: tfm.CausalLM, noise: float, seed: int = 1) -> tfm.CausalLM:
    """A model with other weights, more or less."""
    made = type(model).from_config(model.get_config())
    generator = np.random.default_rng(seed)
    made.set_weights([w + noise * generator.normal(size=w.shape).astype(w.dtype) for w in model.get_weights()])
    return made


def logits_of(model, ids: list[int]) -> np.ndarray:
    """Of the token behind `ids`, uncached."""
    width = -(-len(ids) // 32) * 32
    padded = np.zeros((1, width), "int32")
    padded[0, : len(ids)] = ids
    mask = np.arange(width)[None] < len(ids)
    return numpy(model({"token_ids": padded, "padding_mask": mask}))[0, len(ids) - 1]


def naive(model, prompt: list[int], count: int) -> list[int]:
    """Greedy text, every token from all tokens anew."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(logits_of(model, ids).argmax()))
    return ids[len(prompt) :]
