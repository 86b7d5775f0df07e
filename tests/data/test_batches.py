"""Texts in batches of like length: every row once an epoch, in orders that a seed fixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.word_piece import train_word_piece
from keras_tfm.data import TextBatches

TOKENIZER = train_word_piece()


def texts_of(lengths):
    """A text of about so many tokens for each length, no two alike."""
    return [" ".join(["soup"] * length + [f"{i}"]) for i, length in enumerate(lengths)]


def ragged(rows=200, seed=0):
    return texts_of(np.random.default_rng(seed).integers(0, 40, rows))


def epoch_of(batches):
    return [batches[i] for i in range(len(batches))]


def padding(batches):
    return sum((~batch["padding_mask"]).sum() for batch in epoch_of(batches))


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=70),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
    st.integers(0, 5),
)
def test_every_row_is_in_an_epoch_once(lengths, batch_size, shuffle, group_by_length, seed):
    texts = texts_of(lengths)
    batches = TextBatches(texts, TOKENIZER, batch_size, shuffle=shuffle, group_by_length=group_by_length, seed=seed)
    alone = [TOKENIZER([text])["token_ids"][0] for text in texts]
    for _ in range(2):
        rows = np.concatenate([batches.rows(i) for i in range(len(batches))])
        np.testing.assert_array_equal(np.sort(rows), np.arange(len(texts)))
        np.testing.assert_array_equal(rows, batches.order)
        assert len(batches) == -(-len(texts) // batch_size)
        sizes = sorted((len(batches.rows(i)) for i in range(len(batches))), reverse=True)
        assert all(size == batch_size for size in sizes[:-1])
        for i, batch in enumerate(epoch_of(batches)):
            for row, ids, mask in zip(batches.rows(i), batch["token_ids"], batch["padding_mask"], strict=True):
                np.testing.assert_array_equal(ids[mask], alone[row])
        batches.next_epoch()


def test_epochs_differ_and_a_seed_fixes_them():
    def orders(seed):
        batches = TextBatches(ragged(), TOKENIZER, 16, shuffle=True, seed=seed)
        found = []
        for _ in range(3):
            found.append(batches.order.tolist())
            batches.next_epoch()
        return found

    first = orders(1)
    assert first[0] != first[1] != first[2] != first[0]
    assert orders(1) == first
    assert orders(2)[0] != first[0]


def test_without_shuffling_epochs_are_alike():
    batches = TextBatches(ragged(), TOKENIZER, 16)
    before = batches.order.tolist()
    batches.next_epoch()
    assert batches.order.tolist() == before
    in_order = TextBatches(ragged(), TOKENIZER, 16, group_by_length=False)
    np.testing.assert_array_equal(in_order.order, np.arange(200))


@pytest.mark.parametrize("shuffle", [False, True])
def test_grouping_saves_padding(shuffle):
    options = dict(batch_size=16, shuffle=shuffle)
    grouped = padding(TextBatches(ragged(), TOKENIZER, **options))
    apart = padding(TextBatches(ragged(), TOKENIZER, group_by_length=False, **options))
    assert grouped < 0.2 * apart


def test_grouping_leaves_the_order_of_lengths_random():
    batches = TextBatches(ragged(1000), TOKENIZER, 8, shuffle=True)
    widths = [batch["token_ids"].shape[1] for batch in epoch_of(batches)]
    assert widths != sorted(widths)
    assert abs(np.corrcoef(np.arange(len(widths)), widths)[0, 1]) < 0.3


def test_a_batch_is_as_wide_as_its_longest_row():
    for batch in epoch_of(TextBatches(ragged(), TOKENIZER, 16, shuffle=True)):
        assert batch["padding_mask"].sum(1).max() == batch["token_ids"].shape[1]


def test_length_multiple():
    batches = TextBatches(ragged(), TOKENIZER, 16, shuffle=True, length_multiple=8)
    for i, batch in enumerate(epoch_of(batches)):
        width, longest = batch["token_ids"].shape[1], batches.lengths[batches.rows(i)].max()
        assert width % 8 == 0
        assert longest <= width < longest + 8
    limited = TextBatches(ragged(), train_word_piece(max_length=21), 16, length_multiple=8)
    assert max(batch["token_ids"].shape[1] for batch in epoch_of(limited)) == 21  # not 24, past the limit


def test_length_multiple_keeps_to_max_length():
    batches = TextBatches(ragged(), TOKENIZER, 16, max_length=21, length_multiple=8)
    assert max(batch["token_ids"].shape[1] for batch in epoch_of(batches)) == 21


def test_max_length_cuts_and_counts():
    tokenizer = train_word_piece()
    batches = TextBatches(ragged(), tokenizer, 16, max_length=9)
    assert batches.lengths.max() == 9
    assert tokenizer.truncated == sum(len(encoding.ids) > 9 for encoding in TOKENIZER.encode(ragged()))


def test_pairs_as_tuples_or_lists():
    pairs = [("the soup", "cold"), ["the film", "not a dull minute"], ("", "")]
    batch = TextBatches(pairs, TOKENIZER, 3, group_by_length=False)[0]
    expected = TOKENIZER([tuple(pair) for pair in pairs])
    for name, array in expected.items():
        np.testing.assert_array_equal(batch[name], array)
    assert batch["token_type_ids"].any()


def test_left_padding():
    batches = TextBatches(ragged(), train_word_piece(padding_side="left"), 16)
    for batch in epoch_of(batches):
        assert batch["padding_mask"][:, -1].all()


@pytest.mark.parametrize(
    "texts, options, message",
    [
        ([], {}, "no texts"),
        (["a", None], {}, r"texts\[1\].*None"),
        (["a", 3.5], {}, r"texts\[1\].*3\.5"),
        ([("a", 1)], {}, r"texts\[0\]"),
        ([("a", "b", "c")], {}, r"texts\[0\]"),
        (["a"], {"batch_size": 0}, "batch_size.*0"),
        (["a"], {"length_multiple": 0}, "length_multiple.*0"),
    ],
)
def test_what_cannot_be_batched_is_named(texts, options, message):
    with pytest.raises(ValueError, match=message):
        TextBatches(texts, TOKENIZER, **options)
