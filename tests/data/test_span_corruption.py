"""Source and target of T5's objective restore the text together, and are as long as the published preprocessor's."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data.word_piece import SENTENCES
from keras_tfm.data import SpanCorruption, Tokenizer, train_tokenizer

pytestmark = pytest.mark.once

SENTINELS = [f"<extra_id_{i}>" for i in range(20)]
TOKENIZER = train_tokenizer(SENTENCES, 90, "unigram", special_tokens=SENTINELS)
FIRST, SIZE = TOKENIZER.tokenizer.token_to_id(SENTINELS[0]), TOKENIZER.vocabulary_size
PAD, EOS = 0, 1
ORDINARY = [i for i in range(SIZE) if not (i in (PAD, EOS) or FIRST <= i < FIRST + 20)]


def restored(source, target):
    """The text, with each sentinel of the source replaced by what stands behind it in the target."""
    assert source[-1] == target[-1] == EOS
    sentinels = range(FIRST, FIRST + 20)
    spans, current = {}, None
    for token in target[:-1]:
        if token in sentinels:
            current = token
            assert current not in spans
            spans[current] = []
        else:
            spans[current].append(token)
    used = [token for token in source if token in sentinels]
    assert used == list(spans) == list(range(FIRST, FIRST + len(used)))  # in order, from the first
    return [x for token in source[:-1] for x in (spans[token] if token in sentinels else [token])], spans


@given(
    st.lists(st.sampled_from(ORDINARY), min_size=1, max_size=60),
    st.sampled_from([0.05, 0.15, 0.5, 0.9]),
    st.sampled_from([2.0, 3.0, 10.0]),
    st.booleans(),
    st.integers(0, 20),
)
def test_source_and_target_restore_the_text(ids, rate, span_length, end, seed):
    corrupt = SpanCorruption(TOKENIZER, rate, span_length)
    given_ids = np.array(ids + [EOS] * end)
    example = corrupt({"token_ids": given_ids} if end else ids, np.random.default_rng(seed))
    assert {name: array.dtype for name, array in example.items()} == dict.fromkeys(
        ("token_ids", "decoder_token_ids", "labels"), np.int32
    )
    text, spans = restored(example["token_ids"].tolist(), example["labels"].tolist())
    assert text == ids
    lost = min(max(round(len(ids) * rate), 1), max(len(ids) - 1, 1))
    assert sum(map(len, spans.values())) == lost
    assert all(spans.values())
    assert len(spans) == min(max(round(lost / span_length), 1), max(len(ids) - lost, 1))
    np.testing.assert_array_equal(example["decoder_token_ids"], [PAD, *example["labels"][:-1]])


def test_the_default_is_the_papers():
    """Raffel et al.: 512 tokens; here 100 for want of sentinels: 15 tokens in 5 spans, 90 + 1 and 20 + 1."""
    example = SpanCorruption(TOKENIZER)(np.full(100, ORDINARY[0]), np.random.default_rng(0))
    assert len(example["token_ids"]) == 85 + 5 + 1
    assert len(example["labels"]) == 15 + 5 + 1


def test_every_cut_is_as_likely_as_any_other():
    corrupt = SpanCorruption(TOKENIZER, 0.5, 2.0)
    ids = ORDINARY[:10]  # 5 tokens lost in 2 spans; round(2.5) is 2
    rng, seen = np.random.default_rng(0), collections.Counter()
    for _ in range(3200):
        source = corrupt(ids, rng)["token_ids"].tolist()
        seen[tuple(token in ids for token in source)] += 1
    kept = [parts for parts in itertools.product(range(1, 5), repeat=2) if sum(parts) == 5]
    assert len(seen) == len(kept)  # the source shows what is kept
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_lengths_of_spans_are_even_too():
    corrupt = SpanCorruption(TOKENIZER, 0.5, 2.0)
    rng, seen = np.random.default_rng(0), collections.Counter()
    for _ in range(2000):
        labels = corrupt(ORDINARY[:10], rng)["labels"].tolist()
        seen[labels.index(FIRST + 1)] += 1
    assert sorted(seen) == [2, 3, 4, 5]
    assert stats.chisquare(list(seen.values())).pvalue > 1e-4


def test_a_start_token_may_be_chosen():
    example = SpanCorruption(TOKENIZER, start_id=7)(ORDINARY[:5], np.random.default_rng(0))
    assert example["decoder_token_ids"][0] == 7


def without(role):
    settings = {name: value for name, value in TOKENIZER.settings.items() if name != f"{role}_token"}
    data = TOKENIZER.to_json()
    return Tokenizer.from_json({**data, "settings": settings})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SpanCorruption(TOKENIZER, 0.0), "rate.*0.0"),
        (lambda: SpanCorruption(TOKENIZER, 1.0), "rate.*1.0"),
        (lambda: SpanCorruption(TOKENIZER, span_length=0.9), "span_length.*0.9"),
        (lambda: SpanCorruption(without("eos")), "no end token.*eos_token"),
        (lambda: SpanCorruption(train_tokenizer(SENTENCES, 90, "unigram")), "no sentinels"),
    ],
)
def test_what_it_cannot_work_with_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "ids, message",
    [
        ([], "no tokens"),
        ([EOS], "no tokens"),
        ([[5]], "tokens"),
        ([0.5], "integers"),
        ([ORDINARY[0], FIRST], "holds sentinels"),
        ([ORDINARY[0], EOS, PAD], "holds padding"),
        ([ORDINARY[0]] * 500, "500 tokens has 25 spans.*20 sentinels"),
    ],
)
def test_rows_that_cannot_be_corrupted_are_named(ids, message):
    with pytest.raises(ValueError, match=message):
        SpanCorruption(TOKENIZER)(ids, np.random.default_rng(0))
