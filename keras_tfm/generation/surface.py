"""`generate`, `stream` and `score`, as the models have them: see `keras_tfm.models.generative`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_tfm.generation import beam, buckets
from keras_tfm.generation.batch import Prefix, mark_of, padded
from keras_tfm.generation.decoder import decoder_of
from keras_tfm.generation.request import (
    Request,
    arranged,
    checked_dtype,
    text_of,
    token_rows,
    trimmed,
    without_end,
)
from keras_tfm.generation.samplers import options_of
from keras_tfm.generation.settings import SAMPLING
from keras_tfm.models.generative import Generated
from keras_tfm.ops import processes

OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")
CHUNK = 16  # tokens between two looks at the text for stop strings
PACE = 0.03  # seconds between two pieces of a stream


def generate(model: Any, prompts: Any, *, return_details: bool = False, **options: Any) -> Any:
    """See `Generative.generate`."""
    options = with_sampler(options)
    if options.get("num_beams") is not None:
        return beam.generate(model, prompts, return_details=return_details, **options)
    options.pop("num_beams", None)
    lonely = [name for name in OF_BEAMS if name in options]
    if lonely:
        raise ValueError(f"{', '.join(lonely)} belong to beam search: give num_beams too.")
    request = Request(model, prompts, **options)
    batch = request.batch(log_probs=return_details)
    streams = request.streams() if request.stops else []
    fed = 0
    more = batch.limit > 0
    while more:
        more = batch.advance(CHUNK if streams else batch.limit)
        if streams:
            tokens = batch.tokens()
            for row, stream in enumerate(streams):
                stream.feed(trimmed(tokens[row], request.ends, int(request.max_new_tokens[row]))[fed:])
            fed = tokens.shape[1]
            batch.end(np.array([stream.stopped for stream in streams]))
            more = more and not batch.finished()
    tokens, rounds = batch.tokens(), batch.rounds()
    log_probs = batch.log_probs() if return_details else np.zeros((len(tokens), 0), np.float32)  # which nobody is given
    results = []
    for row in range(len(request.prompts)):
        ids = trimmed(tokens[row], request.ends, int(request.max_new_tokens[row]))
        reason = "end" if len(ids) and ids[-1] in request.ends else "length"
        if streams and streams[row].stopped:
            ids, reason = ids[: streams[row].used], "stop"
        text = text_of(request, row, ids)
        results.append(Generated(text, ids, log_probs[row, : len(ids)], reason, rounds=rounds[row]))
    return arranged(request, results, return_details)


def with_sampler(options: dict[str, Any]) -> dict[str, Any]:
    """Options with what a sampler says in their words."""
    if options.get("sampler") is None:
        return options
    found = options_of(options["sampler"])
    others = {name: value for name, value in options.items() if name != "sampler"}
    seeded = "temperature" in found and found.get("seed") is None  # a seed is no other choice
    choices = {*SAMPLING, "temperature", "num_beams", "penalty_alpha", *found} | (set() if seeded else {"seed"})
    both = [name for name in sorted(choices) if others.get(name) is not None]
    if both:
        raise ValueError(f"The sampler says {found}; {both} cannot be given beside it.")
    return others | found


def stream(model: Any, prompt: Any, **options: Any) -> Iterator[str]:
    """See `Generative.stream`."""
    foreign = [name for name in (*OF_BEAMS, "return_details") if name in options]
    if foreign:
        raise ValueError(f"stream gives text as it is written and takes no {', '.join(foreign)}; generate does.")
    request = Request(model, prompt, **with_sampler(options))
    if not request.single or request.returned > 1:
        raise ValueError("stream takes one prompt and gives one text; generate takes many.")
    if model.tokenizer is None:
        raise ValueError("stream gives text, and the model has no tokenizer; give it one, or call generate with ids.")
    return _pieces(request)


def _pieces(request: Request) -> Iterator[str]:
    batch, (text,) = request.batch(log_probs=False), request.streams()
    limit, fed, steps, more = int(request.max_new_tokens[0]), 0, 1, request.max_new_tokens[0] > 0
    while more:
        began = time.perf_counter()
        more = batch.advance(steps)
        taken = time.perf_counter() - began
        ids = without_end(trimmed(batch.tokens()[0], request.ends, limit), request.ends)
        piece = text.feed(ids[fed:], last=not more)
        fed = len(ids)
        if piece:
            yield piece
        if text.stopped:
            return
        # As many tokens at once as pass unnoticed: each call has a cost of its own.
        steps = min(max(1, int(steps * PACE / max(taken, 1e-6))), 2 * steps, 32)


def score(model: Any, texts: Any, *, batch_size: int = 16) -> Any:
    """See `Generative.score`."""
    rows, single, _ = token_rows(model, texts)
    short = [index for index, row in enumerate(rows) if len(row) < 2]
    if short:
        raise ValueError(f"Text {short[0]} has fewer than two tokens: there is nothing that its beginning predicts.")
    decoder = decoder_of(model)
    if decoder.is_seq2seq:
        raise ValueError("score is of causal language models; give a Seq2SeqLM labels and call evaluate.")
    limit = model.backbone.config.max_sequence_length
    longest = max(map(len, rows))
    if limit is not None and longest > limit:
        raise ValueError(f"A text has {longest} tokens; the model reads at most max_sequence_length={limit}.")

    def gather(token_ids, padding_mask):
        hidden = decoder.backbone({"token_ids": token_ids, "padding_mask": padding_mask}, training=False)
        log_probs = ops.log_softmax(decoder.logits(hidden[:, :-1]), axis=-1)
        return ops.take_along_axis(log_probs, token_ids[:, 1:, None], axis=2)[:, :, 0]

    results: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for begin in range(0, len(order), batch_size):
        some = order[begin : begin + batch_size]
        width = buckets.prompt(max(len(rows[index]) for index in some))
        width = width if limit is None else min(width, limit)
        ids, mask = padded([rows[index] for index in some], width)
        scores = processes.whole(decoder.program("score", gather, ids.shape)(ids, mask))
        for row, index in enumerate(some):
            results[index] = Generated.scored(np.array(rows[index]), scores[row, : len(rows[index]) - 1])
    return results[0] if single else results


def read(model: Any, text: Any, *, cache_dtype: str | None = None) -> Prefix:
    """See `Generative.prefix`."""
    (row,), single, _ = token_rows(model, [text] if isinstance(text, str) else text)
    del single
    decoder = decoder_of(model)
    if decoder.is_seq2seq:
        raise ValueError("A prefix is read by a decoder; this model's prompts are read by its encoder.")
    if not row:
        raise ValueError("A prefix must have a token at least.")
    known = row[:-1] or row
    ids, mask = padded([known], buckets.prompt(len(known)))
    if len(row) == 1:
        mask[:] = False
    cache, _ = decoder.prefill(decoder.empty_cache(1, ids.shape[1], dtype=checked_dtype(cache_dtype)), ids, mask)
    return Prefix(np.array(row, np.int32), cache, mark_of(model))
