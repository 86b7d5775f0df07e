"""`generate`, `stream` and `score` of language models.

Models know of no decode loop: `keras_tfm.generation` brings it by filling in the functions here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True)
class Generated:
    """What a model wrote, or how likely it finds what someone else wrote.

    Attributes:
        text: Without what ended it; None where the model has no tokenizer.
        token_ids: (tokens,) int32, the end of text included, if it came to that.
        log_probs: (tokens,) float32, natural logarithms of the tokens' probabilities under the model as it is, without
            temperature, penalties and bans. Of a scored text of the tokens behind the first, so one fewer.
        reason: Why it ends: "end" (of text), "stop" (a stop string), "length"; "" of a scored text.
        score: Of beam search: the sum of log_probs over length ** length_penalty.
        rounds: Of speculative decoding: how often the model was called behind the prompt, for len(token_ids) - 1 tokens.
    """

    text: str | None
    token_ids: np.ndarray
    log_probs: np.ndarray
    reason: str
    score: float | None = None
    rounds: int | None = None

    @classmethod
    def scored(cls, token_ids: np.ndarray, log_probs: np.ndarray) -> Generated:
        """Of a given text."""
        return cls(None, token_ids.astype(np.int32), log_probs, "")

    @property
    def log_prob(self) -> float:
        """Of all tokens together."""
        return float(self.log_probs.sum(dtype=np.float64))

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return float(np.exp(-self.log_probs.mean(dtype=np.float64)))


class Generative:
    """Mixin of language models that write."""

    functions: ClassVar[dict[str, Callable[..., Any]]] = {}

    def generate(
        self,
        prompts: Any,
        max_new_tokens: Any = None,
        *,
        stop: Any = (),
        temperature: Any = None,
        top_k: Any = None,
        top_p: Any = None,
        seed: int | None = None,
        return_details: bool = False,
        **options: Any,
    ) -> Any:
        """Write on from prompts; of an encoder-decoder, the target of sources.

        Compiled once for each bucket of lengths, cached, and stopped as soon as every row has ended. A batch of prompts of
        different lengths is written as each would be alone.

        Args:
            prompts: A string, a list of strings, ids (a list or array of ints; ragged lists or a (batch, length) array of
                several), {"token_ids", "padding_mask"}, or a conversation, [{"role": "user", "content": "..."}], for
                tokenizers with a chat template.
            max_new_tokens: At most so many; an int, or one for each prompt. Default: 128, or what the model has room for.
            stop: Strings or ids, or a list of both, that end a text, beside the model's own end of text.
            temperature: 0 takes the most likely token; above, draws. Default: 0, or 1 where top_k, top_p, min_p,
                typical_p or seed is given.
            top_k, top_p: Draw among so many of the most likely tokens; among the fewest with this probability together.
            seed: Reproduces the draws.
            return_details: Give `Generated` objects, with text, ids, log-probabilities and the reason of the end.
            options: `min_p`, `typical_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
                `no_repeat_ngram`, `min_new_tokens`, `forbidden_tokens`, `forced_tokens`, `processors` (see
                `keras_tfm.generation.Choosing`; most may be lists with a value for each prompt); `num_return_sequences`;
                `prefix`, from `prefix`; `cache_dtype`, of keys and values ("int8" takes little more than a quarter
                of float32's memory); `jit_compile`, on torch: True has the steps compiled by PyTorch's Inductor, which
                takes some ten seconds for each bucket of lengths and pays where much is written;
                `num_beams` with `length_penalty` and `early_stopping` (see `keras_tfm.generation.beam_search`);
                `penalty_alpha`, from 0 to 1, with `top_k` candidates (contrastive search, Su et al. 2022);
                `draft_model`, a smaller model with the same vocabulary, or "prompt_lookup", which proposes
                `num_speculative_tokens` tokens at once (Leviathan et al. 2023; rows are written one after another);
                `sampler`, a name or an object of KerasHub's.

        Returns:
            Strings for strings, arrays of ids for ids; one for one prompt, a list for many; of each a list with
            num_return_sequences.

        Raises:
            ValueError: for prompts that the model has no room for, and settings that cannot be meant.
        """
        chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        chosen = {name: value for name, value in chosen.items() if value is not None}
        return Generative.functions["generate"](
            self,
            prompts,
            max_new_tokens=max_new_tokens,
            stop=stop,
            return_details=return_details,
            **chosen,
            **options,
        )

    def stream(self, prompt: Any, max_new_tokens: int | None = None, **options: Any) -> Iterator[str]:
        """As `generate`, of one prompt, giving text piece by piece: whole characters, and nothing of a stop string.

        The iterator may be left at any time; the model stays usable.
        """
        return Generative.functions["stream"](self, prompt, max_new_tokens=max_new_tokens, **options)

    def score(self, texts: Any, *, batch_size: int = 16) -> Any:
        """How likely the model finds texts: `Generated` objects with `log_probs`, `log_prob` and `perplexity`.

        Args:
            texts: As prompts of `generate`, of two tokens at least.
            batch_size: Rows at once; texts of like length share a batch.
        """
        return Generative.functions["score"](self, texts, batch_size=batch_size)

    def prefix(self, text: Any, *, cache_dtype: str | None = None) -> Any:
        """Read what many prompts begin with once: pass the result to `generate(prompts, prefix=...)`."""
        return Generative.functions["prefix"](self, text, cache_dtype=cache_dtype)
