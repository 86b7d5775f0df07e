"""Penalties, bans and draws against their definitions, and against `transformers`."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import numpy
from keras import ops

from keras_tfm.generation import Choosing, choosing
from keras_tfm.generation.settings import uniforms

LOGITS = np.random.default_rng(0).normal(0, 2, (3, 17)).astype("float32")
EVERY = [
    {"top_p": 0.7},
    {"top_k": 4},
    {"min_p": 0.1},
    {"typical_p": 0.6},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 8, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.05, "typical_p": 0.8},
]


def test_the_most_likely_is_the_first_of_the_highest():
    logits = np.random.default_rng(1).integers(-3, 3, (40, 11)).astype("float32")  # with many equal ones
    logits[1], logits[2, 4:] = -np.inf, np.inf
    assert numpy(choosing.most_likely(ops.convert_to_tensor(logits))).tolist() == logits.argmax(-1).tolist()
    logits[3, 5] = np.nan
    (found,) = numpy(choosing.most_likely(ops.convert_to_tensor(logits[3:4])))
    assert 0 <= found < 11


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def fewest(order: np.ndarray, probabilities: np.ndarray, share: float) -> np.ndarray:
    """The fewest, highest order first, that have a share of the probability: by sorting."""
    keep = np.zeros_like(probabilities, bool)
    for row in range(len(order)):
        total, wanted = 0.0, share * probabilities[row].sum()
        for index in np.argsort(-order[row], kind="stable"):
            keep[row, index] = True
            total += probabilities[row, index]
            if total >= wanted:
                break
    return keep


def defined(logits: np.ndarray, settings: dict) -> np.ndarray:
    """The probabilities of a draw, step by step."""
    logits = logits / settings.get("temperature", 1.0)
    if "top_k" in settings:
        least = np.sort(logits, axis=-1)[:, -settings["top_k"]][:, None]
        logits = np.where(logits >= least, logits, -1e30)
    p = softmax(logits)
    if "top_p" in settings:
        p = np.where(fewest(p, p, settings["top_p"]), p, 0)
    if "min_p" in settings:
        p = np.where(p >= settings["min_p"] * p.max(-1, keepdims=True), p, 0)
    if "typical_p" in settings:
        shares = p / p.sum(-1, keepdims=True)
        information = -np.log(np.where(shares > 0, shares, 1))
        expected = (shares * information).sum(-1, keepdims=True)
        nearness = np.where(shares > 0, -np.abs(information - expected), -np.inf)
        p = np.where(fewest(nearness, p, settings["typical_p"]), p, 0)
    return p / p.sum(-1, keepdims=True)


def tensors(given: Choosing, rows: int, vocabulary: int, steps: int = 1) -> tuple[dict, tuple]:
    arrays = given.arrays(rows, vocabulary)
    arrays["ends"] = np.zeros((vocabulary,), bool)
    arrays["uniform"] = uniforms(0, range(rows), steps)
    return {name: ops.convert_to_tensor(value) for name, value in arrays.items()}, given.static(arrays)


@pytest.mark.parametrize("settings", EVERY, ids=str)
def test_draws_follow_the_definition(settings):
    """Drawn often enough that a wrong probability would show: chi-square over the whole vocabulary."""
    stats = pytest.importorskip("scipy.stats")
    draws = 4000
    for row in range(len(LOGITS)):
        logits = np.repeat(LOGITS[row : row + 1], draws, axis=0)
        arrays, static = tensors(Choosing(**settings), draws, LOGITS.shape[1])
        tokens = numpy(choosing.choose(ops.convert_to_tensor(logits), arrays, ops.convert_to_tensor(0), static))
        expected = defined(LOGITS[row : row + 1], settings)[0]
        found = np.bincount(tokens, minlength=LOGITS.shape[1])
        assert not found[expected == 0].any(), "a token that the settings rule out was drawn"
        possible = expected > 0
        if possible.sum() > 1:
            assert stats.chisquare(found[possible], draws * expected[possible]).pvalue > 1e-4


def test_greedy_rows_and_drawing_rows_share_a_batch():
    arrays, static = tensors(Choosing(temperature=[0, 1.0, 0], top_k=3), 3, 17)
    tokens = numpy(choosing.choose(ops.convert_to_tensor(LOGITS), arrays, ops.convert_to_tensor(0), static))
    assert tokens[0] == LOGITS[0].argmax()
    assert tokens[2] == LOGITS[2].argmax()


def test_streams_do_not_depend_on_the_batch():
    every = uniforms(7, range(5), 20)
    np.testing.assert_array_equal(uniforms(7, [3], 50)[0, :20], every[3])
    assert len(np.unique(every)) == every.size
    assert np.abs(uniforms(8, range(5), 20) - every).min() > 0


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_sequence_comes_twice(size):
    rows = [[1, 2, 3, 1, 2], [4, 4, 4, 4, 4], [5, 6], [0, 1, 0, 1, 0]]
    sequence = np.full((4, 8), -1, "int32")
    for index, row in enumerate(rows):
        sequence[index, 6 - len(row) : 6] = row
    found = numpy(choosing.repeats(ops.convert_to_tensor(sequence), ops.convert_to_tensor(np.int32(6)), size, 9))
    for index, row in enumerate(rows):
        before = {tuple(row[i : i + size]) for i in range(len(row) - size + 1)}
        tail = row[len(row) - size + 1 :] if len(row) >= size - 1 else None
        banned = [token for token in range(9) if tail is not None and (*tail, token) in before]
        assert np.flatnonzero(found[index]).tolist() == banned


def test_penalties_and_bans_are_transformers():
    torch, process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation.logits_process")
    ids = np.array([[1, 2, 3, 1], [4, 4, 4, 4], [0, 1, 2, 1]])
    given = Choosing(repetition_penalty=1.7, no_repeat_ngram=2, forbidden_tokens=[5, 6], min_new_tokens=3)
    arrays, static = tensors(given, 3, 17)
    arrays["ends"] = ops.convert_to_tensor(np.arange(17) == 9)
    state = {
        "sequence": ops.convert_to_tensor(ids.astype("int32")),
        "filled": ops.convert_to_tensor(np.int32(4)),
        "seen": ops.convert_to_tensor(np.stack([np.bincount(row, minlength=17) for row in ids]).astype("float32")),
    }
    found = numpy(choosing.penalized(ops.convert_to_tensor(LOGITS), arrays, state, ops.convert_to_tensor(2), static))
    expected = torch.from_numpy(LOGITS)
    for processor in (
        process.RepetitionPenaltyLogitsProcessor(1.7),
        process.NoRepeatNGramLogitsProcessor(2),
        process.NoBadWordsLogitsProcessor([[5], [6]], eos_token_id=torch.tensor([9])),
        process.MinNewTokensLengthLogitsProcessor(2, 3, eos_token_id=torch.tensor([9]), device="cpu"),
    ):
        expected = processor(torch.from_numpy(ids), expected)
    banned = ~np.isfinite(expected.numpy())
    np.testing.assert_array_equal(found <= choosing.NEVER, banned)
    np.testing.assert_allclose(found[~banned], expected.numpy()[~banned], rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_p": 0.0}, "top_p must be a number above 0"),
        ({"top_p": 1.2}, "at most 1"),
        ({"temperature": -1.0}, "temperature must be a number at least 0"),
        ({"temperature": "hot"}, "temperature.*'hot'"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 2.5}, "whole number"),
        ({"temperature": 0, "top_k": 4}, r"temperature=0.*\['top_k'\]"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram": 0}, "no_repeat_ngram"),
        ({"forbidden_tokens": range(17)}, "leaves no token"),
        ({"forbidden_tokens": [17]}, "vocabulary_size=17"),
        ({"forbidden_tokens": [3], "forced_tokens": [3]}, "both forbidden and forced"),
        ({"processors": ["no"]}, "processors must be callables"),
    ],
    ids=str,
)
def test_what_cannot_be_meant(settings, words):
    with pytest.raises(ValueError, match=words):
        Choosing(**settings).check(17)


def test_a_value_for_each_row():
    with pytest.raises(ValueError, match="top_k has 2 values for 3 rows"):
        Choosing(top_k=[1, 2]).arrays(3, 17)
    np.testing.assert_array_equal(Choosing(top_k=[1, None, 30]).arrays(3, 17)["top_k"], [1, 17, 17])
