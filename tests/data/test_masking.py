"""Tokens chosen and hidden at the rates asked for, special ones never; by words and by spans."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from data.word_piece import SENTENCES, train_word_piece
from keras_tfm.data import Masking, Tokenizer, train_tokenizer

pytestmark = pytest.mark.once

TOKENIZER = train_word_piece()
PAD, UNK, CLS, SEP, MASK = range(5)
SIZE = TOKENIZER.vocabulary_size
P = 1e-4  # a true null hypothesis fails so rarely, and seeds are fixed


def plain(rows, width, seed=0):
    """Ordinary tokens alone."""
    return np.random.default_rng(seed).integers(5, SIZE, (rows, width)).astype("int32")


def chi_square(observed, shares):
    observed = np.asarray(observed)
    return stats.chisquare(observed, np.asarray(shares) / np.sum(shares) * observed.sum()).pvalue


def runs_of(chosen):
    """Lengths of the runs of true values, by row."""
    padded = np.pad(chosen.astype(int), ((0, 0), (1, 1)))
    steps = np.diff(padded, axis=1)
    return np.argwhere(steps == -1)[:, 1] - np.argwhere(steps == 1)[:, 1]


OPTIONS = st.fixed_dictionaries(
    {"rate": st.sampled_from([0.01, 0.15, 0.5, 1.0]), "whole_words": st.booleans()},
    optional={"span_length": st.sampled_from([1.0, 3.8, 50.0])},
)


@given(
    st.integers(0, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, SIZE - 1), min_size=width, max_size=width), min_size=0 if width else 1, max_size=6
        )
    ),
    st.integers(0, 2**6 - 1),
    OPTIONS,
    st.integers(0, 3),
)
def test_what_is_hidden_can_be_told_from_what_is_not(rows, padded, options, seed):
    width = len(rows[0]) if rows else 0
    ids = np.array(rows, np.int32).reshape(len(rows), width)
    mask = np.ones(ids.shape, bool)
    mask[:, :1] = np.array([padded >> row & 1 for row in range(len(rows))], bool)[:, None]
    before = ids.copy()
    batch, labels = Masking(TOKENIZER, **options)(
        {"token_ids": ids, "padding_mask": mask, "other": mask}, np.random.default_rng(seed)
    )
    np.testing.assert_array_equal(ids, before)
    assert batch["other"] is mask
    assert (labels.dtype, batch["token_ids"].dtype) == (np.int32, np.int32)
    ordinary = (ids > MASK) & mask
    chosen = labels != -100
    assert not (chosen & ~ordinary).any()
    np.testing.assert_array_equal(labels[chosen], ids[chosen])
    np.testing.assert_array_equal(batch["token_ids"][~chosen], ids[~chosen])
    assert (batch["token_ids"][chosen] >= MASK).all()  # the mask, or what is not special
    np.testing.assert_array_equal(chosen.any(1), ordinary.any(1))
    if options["rate"] == 1:
        np.testing.assert_array_equal(chosen, ordinary)


@pytest.mark.parametrize("options", [{}, {"whole_words": True}, {"span_length": 3.0}])
def test_the_same_state_gives_the_same_batch(options):
    masking, batch = Masking(TOKENIZER, **options), TOKENIZER(SENTENCES)
    first, again = (masking(batch, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first[0]["token_ids"], again[0]["token_ids"])
    np.testing.assert_array_equal(first[1], again[1])
    assert (masking(batch, np.random.default_rng(4))[1] != first[1]).any()


@pytest.mark.parametrize("width", [11, 64])
def test_every_token_is_chosen_at_the_rate(width):
    rows = 4000
    _, labels = Masking(TOKENIZER, 0.15)({"token_ids": plain(rows, width)}, np.random.default_rng(0))
    chosen = (labels >= 0).sum(0)  # by place
    assert stats.binomtest(int(chosen.sum()), rows * width, 0.15).pvalue > P  # rounding only narrows it
    assert chi_square(chosen, np.ones(width)) > P
    per_row = (labels >= 0).sum(1)
    low = int(0.15 * width)
    assert set(per_row) <= {low, low + 1}
    assert stats.binomtest(int((per_row > low).sum()), rows, 0.15 * width - low).pvalue > P


@pytest.mark.parametrize("mask_rate, random_rate", [(0.8, 0.1), (0.3, 0.3), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
@pytest.mark.parametrize("options", [{}, {"span_length": 4.0}])
def test_the_chosen_are_masked_replaced_and_kept_at_their_rates(mask_rate, random_rate, options):
    masking = Masking(TOKENIZER, 0.2, mask_rate=mask_rate, random_rate=random_rate, **options)
    ids = plain(2000, 30)
    batch, labels = masking({"token_ids": ids}, np.random.default_rng(1))
    if options:  # spans are drawn for as one: look at each row's first chosen token
        rows = np.arange(len(ids))
        first = (labels >= 0).argmax(1)
        hidden, label = batch["token_ids"][rows, first], labels[rows, first]
    else:
        hidden, label = batch["token_ids"][labels >= 0], labels[labels >= 0]
    masked, kept = (hidden == MASK).sum(), (hidden == label).sum()
    same = random_rate / (SIZE - 5)  # a random token may be the token
    shares = np.array([mask_rate, random_rate - same, 1 - mask_rate - random_rate + same])
    observed = np.array([masked, len(hidden) - masked - kept, kept])
    assert (observed[shares == 0] == 0).all()
    assert (shares > 0).sum() == 1 or chi_square(observed[shares > 0], shares[shares > 0]) > P


def test_random_tokens_are_all_the_ordinary_ones_alike():
    masking = Masking(TOKENIZER, 1.0, mask_rate=0.0, random_rate=1.0)
    batch, _ = masking({"token_ids": plain(500, 100)}, np.random.default_rng(0))
    counts = np.bincount(batch["token_ids"].ravel(), minlength=SIZE)
    assert (counts[:5] == 0).all()
    assert chi_square(counts[5:], np.ones(SIZE - 5)) > P


def test_pieces_of_a_word_are_chosen_together():
    rng = np.random.default_rng(0)
    pieces = np.array([TOKENIZER.tokenizer.id_to_token(i).startswith("##") for i in range(SIZE)])
    ids = plain(3000, 20)
    ids[:, 7] = SEP
    batch, labels = Masking(TOKENIZER, 0.15, whole_words=True)({"token_ids": ids}, rng)
    chosen = labels >= 0
    same = pieces[ids[:, 1:]] & (ids[:, :-1] != SEP) & (ids[:, 1:] != SEP)
    assert same.mean() > 0.2
    np.testing.assert_array_equal(chosen[:, 1:][same], chosen[:, :-1][same])
    words = (~pieces[ids] & (ids != SEP)) | ((np.arange(20) == 0) | (np.arange(20) == 8))
    assert stats.binomtest(int(chosen[words].sum()), int(words.sum()), 0.15).pvalue > P
    behind = pieces[ids[:, 8]]  # a piece behind a special token is no part of the word before
    assert 0 < (chosen[behind, 8] & chosen[behind, 6]).sum() < 0.5 * chosen[behind, 8].sum()
    hidden = batch["token_ids"][:, 1:][same & chosen[:, 1:]] == MASK  # each piece by itself
    before = batch["token_ids"][:, :-1][same & chosen[:, 1:]] == MASK
    assert stats.chi2_contingency(np.histogram2d(hidden, before, 2)[0]).pvalue > P


def test_word_ids_go_before_marks():
    word_ids = np.tile([-1, 0, 0, 0, 1, 2, 2, 2, 2, -1], (400, 1))
    ids = plain(400, 10)
    ids[:, [0, 9]] = CLS, SEP
    batch = {"token_ids": ids, "word_ids": word_ids}
    masked, labels = Masking(TOKENIZER, 0.34, whole_words=True)(batch, np.random.default_rng(0))
    assert "word_ids" not in masked
    chosen = [tuple(np.unique(word_ids[row][labels[row] >= 0])) for row in range(400)]
    for row, words in enumerate(chosen):
        np.testing.assert_array_equal(labels[row] >= 0, np.isin(word_ids[row], words))
    counts = [sum(word in words for words in chosen) for word in range(3)]
    assert sum(counts) in range(400, 430)  # one word of three, a second in 2 % of rows
    assert chi_square(counts, [1, 1, 1]) > P


@pytest.mark.parametrize(
    "kind, words",
    [
        ("wordpiece", [["Not"], ["a"], ["single"], ["dull"], ["minute"]]),
        ("byte_bpe", [["Not"], ["Ġa"], ["Ġsingle"], ["Ġdull"], ["Ġminute"]]),
        ("unigram", [["▁Not"], ["▁a"], ["▁single"], ["▁dull"], ["▁minute"]]),
    ],
)
def test_each_kind_of_mark_tells_words(kind, words):
    extra = () if kind == "wordpiece" else ("<mask>",)
    tokenizer = train_tokenizer(SENTENCES, 300, kind, special_tokens=extra)
    text = "Not a single dull minute"
    encoding = tokenizer.encode([text])[0]
    ids = np.repeat([encoding.ids], 200, 0)
    _, labels = Masking(tokenizer, 0.2, whole_words=True)({"token_ids": ids}, np.random.default_rng(0))
    found = {"".join(encoding.tokens[i].removeprefix("##") for i in np.flatnonzero(row >= 0)) for row in labels}
    assert found == {word for (word,) in words}


def test_a_line_break_ends_a_word_of_bytes():
    tokenizer = train_tokenizer(["one\ntwo"] * 5, 280, "byte_bpe", special_tokens=["<mask>"])
    encoding = tokenizer.encode(["one\ntwo"])[0]
    _, labels = Masking(tokenizer, 0.01, whole_words=True)({"token_ids": [encoding.ids] * 50}, np.random.default_rng(0))
    found = {"".join(encoding.tokens[i] for i in np.flatnonzero(row >= 0)) for row in labels}
    assert found == {"one", "Ċ", "two"}


def test_spans_have_the_lengths_of_the_paper():
    ids = plain(200, 2000)
    _, labels = Masking(TOKENIZER, 0.05, span_length=5.0)({"token_ids": ids}, np.random.default_rng(0))
    assert ((labels >= 0).sum(1) == 100).all()
    lengths = runs_of(labels >= 0)
    # At 5 % few spans touch. Lengths up to 9, for those past 10 are two spans, and 1 in 26 is a row's last, cut, one.
    chances = 0.2 * 0.8 ** np.arange(10)
    assert abs(np.mean(lengths) - 3.8) < 0.2
    assert np.mean(lengths > 10) < 0.03
    observed = np.bincount(lengths, minlength=11)[1:11] / len(lengths)
    np.testing.assert_allclose(observed, chances / chances.sum(), atol=0.02)


def test_drawn_span_lengths_are_geometric_and_cut():
    masking = Masking(TOKENIZER, 0.15, span_length=2.0, max_span=4)
    units, counts = np.full(3000, 100), np.full(3000, 15)
    spans = masking._chosen_spans(units, counts, 100, np.random.default_rng(0))
    np.testing.assert_array_equal((spans >= 0).sum(1), 15)
    first = (spans == 0).sum(1)  # the first span drawn is never cut
    assert chi_square(np.bincount(first, minlength=5)[1:], [8, 4, 2, 1]) > P
    for row in spans[:50]:
        for number in range(row.max() + 1):
            assert (np.diff(np.flatnonzero(row == number)) == 1).all()
    places = np.array([np.flatnonzero(row == 0)[0] for row in spans if (row == 0).sum() == 1])
    assert chi_square(np.bincount(places // 10, minlength=10), np.ones(10)) > P


def test_a_span_is_hidden_as_one():
    masking = Masking(TOKENIZER, 0.3, mask_rate=0.5, random_rate=0.0, span_length=4.0)
    batch, labels = masking({"token_ids": plain(300, 10)}, np.random.default_rng(0))
    chosen = labels >= 0
    spans = runs_of(chosen)
    one_span = runs_of(chosen & (batch["token_ids"] == MASK))
    assert spans.mean() > 1.7
    assert one_span.mean() > 0.8 * spans.mean()  # by itself each token would make it 1.3


def test_spans_of_words():
    word_ids = np.repeat(np.arange(50), 2)[None].repeat(100, 0)
    masking = Masking(TOKENIZER, 0.2, whole_words=True, span_length=3.0)
    _, labels = masking({"token_ids": plain(100, 100), "word_ids": word_ids}, np.random.default_rng(0))
    assert (runs_of(labels >= 0) % 2 == 0).all()
    np.testing.assert_array_equal((labels >= 0).sum(1), 20)


def test_kerashub_tokenizers_are_taken():
    pytest.importorskip("keras_hub")
    import keras_hub

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "so", "##up", "##s"]
    masking = Masking(keras_hub.tokenizers.BertTokenizer(vocabulary=words), 0.5, whole_words=True)
    _, labels = masking({"token_ids": np.array([[2, 6, 7, 8, 3]] * 9)}, np.random.default_rng(0))
    np.testing.assert_array_equal(labels, [[-100, 6, 7, 8, -100]] * 9)


def bare():
    from tokenizers import Tokenizer as Base
    from tokenizers import models

    return Tokenizer(Base(models.WordLevel({"a": 0, "[MASK]": 1}, unk_token="a")))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 0.0}, "rate.*0.0"),
        ({"rate": 1.5}, "rate.*1.5"),
        ({"mask_rate": -0.1}, "mask_rate.*-0.1"),
        ({"mask_rate": 0.8, "random_rate": 0.3}, "at most 1.*0.8"),
        ({"max_span": 5}, "max_span=5 has no effect"),
        ({"span_length": 0.5}, "span_length.*0.5"),
        ({"span_length": 3, "max_span": 0}, "max_span.*0"),
        ({"tokenizer": train_tokenizer(SENTENCES, 300, "bpe")}, "no mask token"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Masking(**{"tokenizer": TOKENIZER, **options})


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"token_ids": [1, 2]}, "batch, length"),
        ({"token_ids": [[0.5]]}, "integers"),
        ({"token_ids": [[1, SIZE]]}, r"from 0 to \d+, the tokenizer's; got 1 to \d+"),
        ({"token_ids": [[-1, 2]]}, "from 0"),
        ({"token_ids": [[1, 2]], "padding_mask": [[True]]}, "padding_mask"),
        ({"token_ids": [[1, 2]], "word_ids": [[0]]}, "word_ids"),
    ],
)
def test_batches_that_do_not_fit_are_named(batch, message):
    with pytest.raises(ValueError, match=message):
        Masking(TOKENIZER)(batch, np.random.default_rng(0))


def test_whole_words_need_marks():
    batch = {"token_ids": [[0, 0]]}
    with pytest.raises(ValueError, match=r"does not mark words.*word_ids"):
        Masking(bare(), whole_words=True)(batch, np.random.default_rng(0))
    Masking(bare(), whole_words=True)({**batch, "word_ids": [[0, 0]]}, np.random.default_rng(0))
