"""Windows over contexts, the places of answers in them, and answers as text again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.word_piece import SENTENCES, train_word_piece
from keras_tfm.data import best_answers, question_examples, train_tokenizer

pytestmark = pytest.mark.once

TOKENIZER = train_word_piece()
BYTES = train_tokenizer(SENTENCES, 300, "byte_bpe")
CONTEXT = " ".join(SENTENCES)


def answer(text, context=CONTEXT):
    return {"text": text, "answer_start": context.index(text)}


def logits_of(examples, names=("start", "end"), size=0.0):
    """Logits that are highest where the labels are."""
    width = max(len(example["token_ids"]) for example in examples)
    made = np.zeros((2, len(examples), width))
    for row, example in enumerate(examples):
        for side, name in enumerate(names):
            made[side, row, example[name]] = 5 + size
    return made


@given(
    st.text("ab c", max_size=8),
    st.lists(st.sampled_from(["soup", "the", "waiter", "Straße", "😀", "\n", "tomorrow!"]), max_size=25).map(" ".join),
    st.integers(0, 5),
    st.integers(0, 12),
    st.data(),
)
def test_windows_cover_the_context_and_hold_the_answer(question, context, stride, more, data):
    whole = TOKENIZER.encode([(question, context)])[0]
    around = sum(part != 1 for part in whole.sequence_ids)
    max_length = around + stride + 1 + more
    start = data.draw(st.integers(0, max(len(context) - 1, 0)))
    end = data.draw(st.integers(start, len(context)))
    given_answer = {"text": context[start:end], "answer_start": start} if end > start else None
    examples = question_examples(
        [question], [context], [given_answer], tokenizer=TOKENIZER, max_length=max_length, stride=stride
    )
    context_ids = [i for i, part in zip(whole.ids, whole.sequence_ids, strict=True) if part == 1]
    seen, held = [], False
    for number, example in enumerate(examples):
        place = np.flatnonzero(example["offsets"][:, 0] >= 0)
        window = example["token_ids"][place].tolist()
        assert example["token_ids"][np.delete(np.arange(len(example["token_ids"])), place)].tolist() == [
            i for i, part in zip(whole.ids, whole.sequence_ids, strict=True) if part != 1
        ]
        assert (example["token_type_ids"][place] == 1).all()
        assert len(example["token_ids"]) <= max_length
        assert example["row"] == 0
        if number < len(examples) - 1:
            assert len(example["token_ids"]) == max_length
        common = stride if seen else 0
        assert seen[len(seen) - common :] == window[:common]
        assert not number or len(window) > common
        seen += window[common:]
        for token, (first, last) in zip(window, example["offsets"][place], strict=True):
            piece = TOKENIZER.tokenizer.id_to_token(token).removeprefix("##")
            assert piece in ("[UNK]", context[first:last].lower().replace("ß", "ss"), context[first:last].lower())
        inside = [i for i in place if example["offsets"][i, 1] > start and example["offsets"][i, 0] < end]
        if (example["start"], example["end"]) != (0, 0):
            held = True
            assert [inside[0], inside[-1]] == [example["start"], example["end"]]
    assert seen == context_ids
    offsets = np.array([o for o, part in zip(whole.offsets, whole.sequence_ids, strict=True) if part == 1]).reshape(
        -1, 2
    )
    of_answer = int(((offsets[:, 1] > start) & (offsets[:, 0] < end)).sum()) if given_answer else 0
    if 0 < of_answer <= stride + 1:  # so short, one window holds all of it
        assert held
    assert examples.cut_labels == (given_answer is not None and not held)


def test_windows_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(TOKENIZER.tokenizer).from_str(TOKENIZER.to_json()["tokenizer"]), pad_token="[PAD]"
    )
    questions = ["Was the soup cold?", "Who laughed?"]
    contexts = [CONTEXT, CONTEXT[:40]]
    ours = question_examples(questions, contexts, tokenizer=TOKENIZER, max_length=20, stride=4)
    expected = theirs(
        questions,
        contexts,
        max_length=20,
        stride=4,
        truncation="only_second",
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert [example["token_ids"].tolist() for example in ours] == expected["input_ids"]
    assert [example["token_type_ids"].tolist() for example in ours] == expected["token_type_ids"]
    assert [example["row"] for example in ours] == expected["overflow_to_sample_mapping"]
    for i, example in enumerate(ours):
        part = np.array([p == 1 for p in expected.sequence_ids(i)])
        np.testing.assert_array_equal(example["offsets"][part], np.array(expected["offset_mapping"][i])[part])
    assert "start" not in ours[0]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BYTES])
@pytest.mark.parametrize("text", ["cold", "the waiter.", "I would go back", "all laughed."])
def test_a_labelled_answer_is_found_again(tokenizer, text):
    examples = question_examples(["What?"], [CONTEXT], [answer(text)], tokenizer=tokenizer, max_length=30, stride=12)
    assert len(examples) > 1
    assert best_answers(examples, [CONTEXT], *logits_of(examples)) == [text]


def test_answers_in_squads_lists_and_none():
    found = answer("cold")
    lists = {"text": ["cold", "The soup"], "answer_start": [found["answer_start"], 0]}
    nothing = {"text": [], "answer_start": []}
    examples = question_examples(["What?"] * 4, [CONTEXT] * 4, [found, lists, nothing, None], tokenizer=TOKENIZER)
    labels = [(example["start"], example["end"]) for example in examples]
    assert labels[0] == labels[1] != (0, 0)
    assert labels[2] == labels[3] == (0, 0)
    assert examples.cut_labels == 0
    assert best_answers(examples, [CONTEXT] * 4, *logits_of(examples)) == ["cold", "cold", "", ""]


def test_the_best_of_all_windows_is_the_answer():
    examples = question_examples(
        ["What?"], [CONTEXT], [answer("laughed;")], tokenizer=TOKENIZER, max_length=16, stride=4
    )
    starts, ends = logits_of(examples)
    other = next(i for i, example in enumerate(examples) if example["start"] == 0)
    starts[other, 8] = ends[other, 8] = 4.9
    starts[other, 4] = ends[other, 4] = 99.0  # of the question
    assert best_answers(examples, [CONTEXT], starts, ends) == ["laughed;"]
    starts[other, 0] = ends[other, 0] = 50.0  # one window of several lacks it, and is sure of that
    assert best_answers(examples, [CONTEXT], starts, ends) == ["laughed;"]
    starts[other, 8] = ends[other, 8] = 6.0
    first, last = examples[other]["offsets"][8]
    assert best_answers(examples, [CONTEXT], starts, ends) == [CONTEXT[first:last]]


def one_window():
    (example,) = question_examples(["What?"], ["the soup was cold"], tokenizer=TOKENIZER)
    size = len(example["token_ids"])
    return example, np.zeros((1, size)), np.zeros((1, size)), int(np.flatnonzero(example["offsets"][:, 0] == 0)[0])


def test_no_answer_must_be_better_by_the_threshold():
    example, starts, ends, first = one_window()
    starts[0, first] = ends[0, first] = 2.0
    starts[0, 0] = ends[0, 0] = 2.5

    def found(threshold):
        return best_answers([example], ["the soup was cold"], starts, ends, null_threshold=threshold)

    assert found(0.0) == [""]
    assert found(1.0) == found(None) == ["the"]
    assert found(0.9) == [""]


def test_answers_are_no_longer_than_allowed_and_run_forwards():
    example, starts, ends, first = one_window()
    starts[0, first], ends[0, first + 3] = 9.0, 9.0
    context = ["the soup was cold"]
    assert best_answers([example], context, starts, ends) == ["the soup was cold"]
    short = best_answers([example], context, starts, ends, max_answer_length=3)
    assert len(short[0].split()) in (1, 2, 3)
    assert best_answers([example], context, starts, ends, max_answer_length=4) == ["the soup was cold"]
    starts[0, first], starts[0, first + 3], ends[0, first + 3], ends[0, first] = 0.0, 9.0, 0.0, 9.0
    assert best_answers([example], context, starts, ends, n_best=1) == [""]  # only backwards
    assert best_answers([example], context, starts, ends) in (["the"], ["cold"])
    starts[0, 1] = ends[0, 1] = 99.0  # the question's own tokens are no answers
    assert best_answers([example], context, starts, ends) in (["the"], ["cold"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"questions": []}, "one context, and answer, for each question"),
        ({"contexts": ["a", "b"]}, "'contexts': 2"),
        ({"answers": []}, "'answers': 0"),
        ({"questions": "What?"}, "questions.*one string"),
        ({"contexts": [None]}, r"contexts\[0\].*None"),
        ({"stride": -1}, "stride.*-1"),
        ({"max_length": 12}, r"questions\[0\].*leaves [0-9]+ of max_length=12.*stride=8"),
        ({"questions": ["the soup " * 40], "max_length": 50}, r"questions\[0\].*leaves 0"),
        ({"answers": ["cold"]}, r"answers\[0\].*'text'"),
        ({"answers": [{"text": "cold", "answer_start": 0}]}, r"answers\[0\] is 'cold' at character 0.*'The '"),
        ({"answers": [{"text": "", "answer_start": 0}]}, r"answers\[0\] is ''"),
        ({"answers": [{"text": "cold", "answer_start": -4}]}, "character -4"),
        ({"answers": [{"text": ["cold"], "answer_start": []}]}, "1 texts and 0 places"),
    ],
)
def test_questions_that_make_no_examples_are_named(options, message):
    options = {"questions": ["What?"], "contexts": [CONTEXT], "tokenizer": TOKENIZER, "stride": 8, **options}
    with pytest.raises(ValueError, match=message):
        question_examples(**options)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_best": 0}, "n_best.*0"),
        ({"max_answer_length": 0}, "max_answer_length.*0"),
        ({"start_logits": np.zeros((2, 30))}, "2 rows"),
        ({"end_logits": np.zeros((1, 3))}, r"end_logits\[0\]"),
        ({"contexts": []}, "row 0.*0 contexts"),
    ],
)
def test_logits_that_do_not_fit_are_named(change, message):
    example, starts, ends, _ = one_window()
    arguments = {"examples": [example], "contexts": [""], "start_logits": starts, "end_logits": ends}
    with pytest.raises(ValueError, match=message):
        best_answers(**{**arguments, **change})
