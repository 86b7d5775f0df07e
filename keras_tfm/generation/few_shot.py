"""Classification by examples in the prompt (Brown et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FewShot:
    """A classifier that is a language model, a few examples and a way of writing them down.

    Attributes:
        model: A `CausalLM` with a tokenizer.
        examples: (text, label) pairs that the prompt begins with.
        labels: What there is to choose from. Default: those of the examples, in the order in which they come.
        template: Of one example, with {text} and {label}; the label comes last.
        separator: Between examples.
        instruction: In front of all.

    Example:
        >>> few = FewShot(model, [("great film", "positive"), ("a bore", "negative")])
        >>> few.predict(["I loved it"])  # doctest: +SKIP
        ['positive']
    """

    model: Any
    examples: Sequence[tuple[str, str]]
    labels: Sequence[str] | None = None
    template: str = "Text: {text}\nLabel: {label}"
    separator: str = "\n\n"
    instruction: str = ""

    def __post_init__(self) -> None:
        if getattr(self.model, "tokenizer", None) is None:
            raise ValueError("model must be a CausalLM with a tokenizer: FewShot writes a prompt of text.")
        if "{text}" not in self.template or not self.template.endswith("{label}"):
            raise ValueError(f"template must have {{text}} and end in {{label}}; got {self.template!r}.")
        if len(self.classes) < 2:
            raise ValueError(f"There must be two labels at least to choose from; got {self.classes}.")

    @property
    def classes(self) -> list[str]:
        """The labels."""
        return list(dict.fromkeys(label for _, label in self.examples) if self.labels is None else self.labels)

    def prompt(self, text: str, label: str) -> str:
        """What the model reads to judge one label for one text."""
        parts = [self.instruction] if self.instruction else []
        parts += [self.template.format(text=given, label=name) for given, name in [*self.examples, (text, label)]]
        return self.separator.join(parts)

    def scores(self, texts: Sequence[str], batch_size: int = 16) -> np.ndarray:
        """Log-probabilities of every label for every text, (texts, labels) float64, normalized over the labels.

        A label's is the sum over its tokens: those behind what its prompt shares with that of every other label.
        """
        rows = []
        for text in texts:
            encoded = [self.model.tokenizer.encode([self.prompt(text, label)])[0].ids for label in self.classes]
            shared = 0
            while all(shared < len(ids) and ids[shared] == encoded[0][shared] for ids in encoded):
                shared += 1
            rows.append((encoded, max(shared, 1)))
        scored = self.model.score([ids for encoded, _ in rows for ids in encoded], batch_size=batch_size)
        count, result = len(self.classes), np.zeros((len(rows), len(self.classes)))
        for index, (_, shared) in enumerate(rows):
            for label in range(count):
                result[index, label] = scored[index * count + label].log_probs[shared - 1 :].sum(dtype=np.float64)
        return result - np.logaddexp.reduce(result, axis=1, keepdims=True)

    def predict(self, texts: Sequence[str], batch_size: int = 16) -> list[str]:
        """The likeliest label of every text."""
        return [self.classes[index] for index in self.scores(texts, batch_size).argmax(axis=1)]
