"""Questions on long contexts as windows for a question answerer, and its answers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_tfm.data.examples import UNCUT, Examples, chunks, strings
from keras_tfm.data.tagged_words import with_offsets


def question_examples(
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Any] | None = None,
    *,
    tokenizer: Any,
    max_length: int = 384,
    stride: int = 128,
) -> Examples:
    """Examples for a question answerer: windows over each context, behind its question (Devlin et al. 2019, 4.2, 4.3).

    Args:
        questions: Strings.
        contexts: Strings, one for each question.
        answers: For each question {"text", "answer_start"}, as in SQuAD: the answer and the place of its first character
            in the context. Of lists of them, the first is taken. None, or empty lists, for a question without an answer.
        tokenizer: What `as_tokenizer` takes, but for KerasHub's: it must say where in the text a piece lies.
        max_length: Longest window, in tokens, with the question and special tokens.
        stride: How many of its context's tokens a window has in common with the one before.

    Returns:
        `Examples` of {"token_ids", "token_type_ids" (tokens,) int32, "offsets" (tokens, 2) int32, the characters of the
        context that a token stands for, (-1, -1) for other tokens, "row", which question}. With answers there are
        "start" and "end", the first and last token of the answer, both 0, the place of [CLS], where the window does not
        hold all of it. No context is cut; `cut_labels` counts answers of which no window holds all.

    Raises:
        ValueError: for a tokenizer of KerasHub, numbers of rows that differ, a question that leaves no room for
            `stride` tokens and one more, and answers that are not where they are said to be.
    """
    ours = with_offsets(tokenizer, "question_examples")
    questions, contexts = list(strings("questions", questions)), list(strings("contexts", contexts))
    counts = {"questions": len(questions), "contexts": len(contexts)}
    if answers is not None:
        answers = list(answers)
        counts["answers"] = len(answers)
    if len(set(counts.values())) > 1 or not questions:
        raise ValueError(f"There must be one context, and answer, for each question; got {counts}.")
    if stride < 0:
        raise ValueError(f"stride must be at least 0; got {stride}.")
    spans = None if answers is None else [_span(answers[row], contexts[row], row) for row in range(len(answers))]
    found = Examples()
    row = 0
    for pairs in chunks(zip(questions, contexts, strict=True)):
        for encoding in ours.encode(pairs, UNCUT):
            windows, starts = _windows(encoding, row, max_length, stride)
            if spans is not None:
                held = _label(windows, starts, encoding, spans[row])
                found.cut_labels += spans[row] is not None and not held
            found += windows
            row += 1
    return found


def _windows(encoding: Any, row: int, max_length: int, stride: int) -> tuple[list[dict[str, Any]], list[int]]:
    """The question and the special tokens around each stretch of the context, and which token of it comes first."""
    offsets = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    context = np.array([part == 1 for part in encoding.sequence_ids], bool)
    offsets[~context] = -1
    places = np.flatnonzero(context)
    first = int(places[0]) if places.size else len(context)
    end = int(places[-1]) + 1 if places.size else first
    room = max_length - (len(context) - (end - first))
    if room <= stride:
        raise ValueError(
            f"questions[{row}] and special tokens are {max_length - room} tokens, which leaves {max(room, 0)} of "
            f"max_length={max_length} for the context; it must be more than stride={stride}."
        )
    fields = {
        "token_ids": np.array(encoding.ids, np.int32),
        "token_type_ids": np.array(encoding.type_ids, np.int32),
        "offsets": offsets,
    }
    starts = list(range(first, max(end - stride, first + 1), room - stride))
    windows = []
    for start in starts:
        stretch = np.r_[0:first, start : min(start + room, end), end : len(context)]
        windows.append({**{name: array[stretch] for name, array in fields.items()}, "row": row})
    return windows, starts


def _span(answer: Any, context: str, row: int) -> tuple[int, int] | None:
    """An answer's first character and the one behind its last; None without an answer."""
    if answer is None:
        return None
    if not isinstance(answer, Mapping) or not {"text", "answer_start"} <= set(answer):
        raise ValueError(f"answers[{row}] must be None or have 'text' and 'answer_start'; got {answer!r}.")
    text, start = answer["text"], answer["answer_start"]
    if not isinstance(text, str):
        if len(text) != len(start):
            raise ValueError(f"answers[{row}] has {len(text)} texts and {len(start)} places.")
        if not len(text):
            return None
        text, start = text[0], start[0]
    start = int(start)
    if not text or start < 0 or context[start : start + len(text)] != text:
        there = context[max(start, 0) : max(start, 0) + len(text)]
        raise ValueError(f"answers[{row}] is {text!r} at character {start}, where the context has {there!r}.")
    return start, start + len(text)


def _label(windows: list[dict[str, Any]], starts: list[int], encoding: Any, span: tuple[int, int] | None) -> bool:
    """Put the places of the answer into the windows; whether one holds it."""
    answer = np.empty(0, np.int64)
    if span is not None:
        begin, end = np.array(encoding.offsets).T
        context = np.array([part == 1 for part in encoding.sequence_ids])
        answer = np.flatnonzero(context & (end > span[0]) & (begin < span[1]) & (end > begin))
    held = False
    for window, start in zip(windows, starts, strict=True):
        window["start"] = window["end"] = 0
        places = np.flatnonzero(window["offsets"][:, 0] >= 0)
        if answer.size and start <= answer[0] and answer[-1] < start + len(places):
            window["start"], window["end"] = (int(places[0] + token - start) for token in answer[[0, -1]])
            held = True
    return held


def best_answers(
    examples: Sequence[Mapping[str, Any]],
    contexts: Sequence[str],
    start_logits: Sequence[Any],
    end_logits: Sequence[Any],
    *,
    max_answer_length: int = 30,
    n_best: int = 20,
    null_threshold: float | None = 0.0,
) -> list[str]:
    """The text that a question answerer finds in each context (Devlin et al. 2019, sections 4.2 and 4.3).

    A span's score is the sum of its first token's start logit and its last token's end logit. The best span of all
    windows is the answer, unless the sum at token 0, the least of all windows', is higher by more than the threshold.

    Args:
        examples: What `question_examples` gives: "offsets" and "row" are read.
        contexts: The contexts, in the order in which they were given.
        start_logits: (examples, length) float, or a sequence of (tokens,); the first tokens of a row are the example's.
        end_logits: Likewise.
        max_answer_length: Most tokens of an answer.
        n_best: How many of a window's best starts, and ends, are tried with each other.
        null_threshold: By how much no answer must be better. None: an answer is always given (SQuAD 1.1).

    Returns:
        A string for each context; "" for no answer, and where no start and end go together.

    Raises:
        ValueError: for numbers of rows that differ, logits of fewer tokens than the example, and limits below 1.
    """
    for name, value in (("max_answer_length", max_answer_length), ("n_best", n_best)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}.")
    if not len(examples) == len(start_logits) == len(end_logits):
        raise ValueError(
            f"There must be logits for each of {len(examples)} examples; got {len(start_logits)} rows of start_logits "
            f"and {len(end_logits)} of end_logits."
        )
    best = [(-np.inf, "")] * len(contexts)
    null = np.full(len(contexts), np.inf)
    for index, example in enumerate(examples):
        offsets, row = np.asarray(example["offsets"]), int(example["row"])
        if not 0 <= row < len(contexts):
            raise ValueError(f"examples[{index}] is of row {row}, where there are {len(contexts)} contexts.")
        size = len(offsets)
        scores = [np.asarray(logits[index], np.float64)[:size] for logits in (start_logits, end_logits)]
        for name, values in zip(("start_logits", "end_logits"), scores, strict=True):
            if values.shape != (size,):
                raise ValueError(f"{name}[{index}] must be of at least {size} tokens; got shape {values.shape}.")
        null[row] = min(null[row], scores[0][0] + scores[1][0])
        context = np.flatnonzero(offsets[:, 0] >= 0)
        starts, ends = (context[np.argsort(-values[context], kind="stable")[:n_best]] for values in scores)
        spans = ends[None, :] - starts[:, None]  # (starts, ends)
        sums = scores[0][starts][:, None] + scores[1][ends][None, :]
        sums = np.where((spans >= 0) & (spans < max_answer_length), sums, -np.inf)
        if sums.size and sums.max() > best[row][0]:
            start, end = np.unravel_index(int(sums.argmax()), sums.shape)
            place = slice(int(offsets[starts[start], 0]), int(offsets[ends[end], 1]))
            best[row] = (float(sums.max()), contexts[row][place].strip())
    if null_threshold is None:
        return [text for _, text in best]
    return ["" if missing - score > null_threshold else text for (score, text), missing in zip(best, null, strict=True)]
