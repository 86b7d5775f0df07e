"""What a model makes of a few texts, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def predictions(model: Any, texts: Sequence[Any]) -> str:
    """The classes that a `TextClassifier` gives texts, or the numbers, as a table."""
    logits = np.asarray(model.predict(list(texts)), "float64")
    shown = [text if isinstance(text, str) else " / ".join(text) for text in texts]
    if model.num_classes == 1:
        rows = [(text, f"{row[0]:.4g}") for text, row in zip(shown, logits, strict=True)]
        return _table(("text", "prediction"), rows)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    names = model.labels or [str(number) for number in range(model.num_classes)]
    best = probabilities.argmax(axis=1)
    return _table(
        ("text", "prediction", "probability"),
        [(text, names[k], f"{row[k]:.3f}") for text, k, row in zip(shown, best, probabilities, strict=True)],
    )


def written(model: Any, prompts: Sequence[str], max_new_tokens: int) -> str:
    """How a language model goes on from prompts, taking the most likely tokens, as a table."""
    found = model.generate(list(prompts), max_new_tokens=max_new_tokens, temperature=0.0)
    return _table(("prompt", "generated"), list(zip(prompts, found, strict=True)))


def token_names(tokenizer: Any, token_ids: Iterable[int]) -> list[str]:
    """Tokens as the tokenizer writes them; their ids without one."""
    pieces = getattr(getattr(tokenizer, "tokenizer", None), "id_to_token", None)
    names = []
    for token_id in token_ids:
        name = None
        if pieces is not None:
            name = pieces(int(token_id))
        elif tokenizer is not None:
            name = tokenizer.decode([int(token_id)], skip_special_tokens=False)
        names.append(name or str(int(token_id)))
    return names


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(map(_cell, row)) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(text: str) -> str:
    """Text as Markdown shows it, in one line of a table."""
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]|~" else letter for letter in text)
    shown = escaped.replace("&", "&amp;").replace("<", "&lt;").replace("\r", "").replace("\n", "⏎")
    return shown.strip() or shown.replace(" ", "␣") or "(nothing)"
