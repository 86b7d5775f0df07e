"""KerasHub's samplers, as options of `generate`."""

from __future__ import annotations

from typing import Any

# What each of its samplers says, in our words; `temperature` and `seed` where it has them.
OPTIONS: dict[str, dict[str, str]] = {
    "GreedySampler": {},
    "RandomSampler": {"temperature": "temperature", "seed": "seed"},
    "TopKSampler": {"temperature": "temperature", "seed": "seed", "top_k": "k"},
    "TopPSampler": {"temperature": "temperature", "seed": "seed", "top_p": "p", "top_k": "k"},
    "BeamSampler": {"num_beams": "num_beams"},
    "ContrastiveSampler": {"top_k": "k", "penalty_alpha": "alpha"},
}
# What their names stand for, with KerasHub's defaults.
NAMED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "random": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.1},
    "beam": {"num_beams": 5, "length_penalty": 0.0},
    "contrastive": {"top_k": 5, "penalty_alpha": 0.6},
}


def options_of(sampler: Any) -> dict[str, Any]:
    """Options of `generate` that do what a sampler does: a name, or an object of `keras_hub.samplers` (or keras_nlp's).

    A sampler of the user's own, with `get_next_token(probabilities)`, stays what chooses: {"sampler": it}.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(sampler, str):
        if sampler not in NAMED:
            raise ValueError(f"sampler must be one of {sorted(NAMED)}, or an object; got {sampler!r}.")
        return dict(NAMED[sampler])
    kind = type(sampler)
    if kind.__module__.split(".")[0] in ("keras_hub", "keras_nlp"):
        if kind.__name__ == "SpeculativeSampler":
            raise ValueError("For speculative decoding give draft_model and num_speculative_tokens, and no sampler.")
        if kind.__name__ in OPTIONS:
            found = {ours: getattr(sampler, theirs) for ours, theirs in OPTIONS[kind.__name__].items()}
            found = {name: value for name, value in found.items() if value is not None}
            if not found.keys() & {"temperature", "seed"} and found and sampler.temperature != 1.0:
                raise ValueError(
                    f"{kind.__name__} with temperature={sampler.temperature} has no equal here; leave it at 1."
                )
            return {**found, "length_penalty": 0.0} if "num_beams" in found else found
    parts = ("get_next_token", "temperature", "variables")
    if not all(hasattr(sampler, part) for part in parts) or not callable(sampler.get_next_token):
        raise ValueError(
            "sampler must be a name or have get_next_token(probabilities), temperature and variables, as those of "
            f"keras_hub.samplers; got {sampler!r}."
        )
    return {"sampler": sampler}
