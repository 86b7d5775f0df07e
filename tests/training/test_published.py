"""Scores of papers: those of seqeval, sacrebleu and SQuAD's script on the model's own predictions; in the logs of `fit`."""

import random

import keras
import numpy as np
import pytest
import sacrebleu
import seqeval.metrics
import seqeval.scheme
from helpers import fill_weights, numpy

import keras_tfm
from keras_tfm.training import AnswerScores, Distiller, EntityScores, TranslationScores
from training.models import SIZES, quickly, writer

WORDS = [
    ["anna", "met", "bob", "in", "paris"],
    ["bob"],
    ["the", "river", "runs", "through", "old", "paris", "and", "rome"],
    ["anna", "lives", "in", "rome"],
]
TAGS = [
    ["B-PER", "O", "B-PER", "O", "B-LOC"],
    ["B-PER"],
    ["O", "B-LOC", "O", "O", "B-LOC", "I-LOC", "O", "B-LOC"],
    ["B-PER", "O", "O", "B-LOC"],
]
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = [" ".join(row) for row in WORDS]
TOKENIZER = keras_tfm.data.train_tokenizer(TEXTS, 90, kind="wordpiece", lowercase=True, max_length=32)
TEXT_SIZES = {**SIZES, "vocabulary_size": TOKENIZER.vocabulary_size, "max_sequence_length": 32}
TO_LEFT = keras_tfm.data.Tokenizer(TOKENIZER.tokenizer, 32, "left")


def encoder(**options):
    return keras_tfm.models.bert(num_layers=1, pooler=False, **{**TEXT_SIZES, **options})


def tagger(tokenizer=TOKENIZER, labels=NAMES):
    """One that gives every tag somewhere."""
    model = fill_weights(keras_tfm.TokenClassifier(encoder(), labels=labels, tokenizer=tokenizer), 0.6)
    logits = numpy(model(TOKENIZER(TEXTS[:1])["token_ids"]))
    (bias,) = [variable for variable in model.head.weights if variable.shape == (len(labels),)]
    bias.assign(numpy(bias) - np.median(logits, axis=(0, 1)))
    return model


def answerer(tokenizer=TOKENIZER):
    return fill_weights(keras_tfm.QuestionAnswerer(encoder(), tokenizer=tokenizer), 0.6)


def tags_alone(model, max_length=32):
    """Each row by itself, the words as the tokenizer counts them."""
    found = []
    for row in WORDS:
        encoding = TOKENIZER.encode([" ".join(row)], max_length)[0]
        chosen = numpy(model(np.array([encoding.ids], "int32")))[0].argmax(-1)
        tags = ["O"] * len(row)
        for token in reversed(range(len(encoding.ids))):
            if encoding.word_ids[token] is not None:
                tags[encoding.word_ids[token]] = NAMES[chosen[token]]
        found.append(tags)
    return found


@pytest.mark.parametrize("tokenizer", [pytest.param(TOKENIZER, marks=quickly), TO_LEFT])
def test_entities_are_those_of_seqeval(tokenizer):
    model = tagger(tokenizer)
    callback = EntityScores(WORDS, TAGS, batch_size=3)
    alone = tags_alone(model)
    state = random.getstate()
    assert callback.predictions(model) == alone
    assert random.getstate() == state  # which shuffles the rows of `fit`
    assert callback.cut_words == 0
    assert len({tag for row in alone for tag in row}) > 2
    assert callback.scores(model) == {
        "precision": seqeval.metrics.precision_score(TAGS, alone),
        "recall": seqeval.metrics.recall_score(TAGS, alone),
        "f1": seqeval.metrics.f1_score(TAGS, alone),
    }


@quickly
def test_entities_under_options_of_seqeval():
    model = tagger()
    alone = tags_alone(model)
    different = set()
    for options in ({"average": "macro"}, {"average": "weighted"}, {"scheme": "IOB2"}, {"scheme": seqeval.scheme.IOB1}):
        scheme = {"IOB2": seqeval.scheme.IOB2}.get(options.get("scheme"), options.get("scheme"))
        direct = {"zero_division": 0, **options, **({"scheme": scheme, "mode": "strict"} if scheme else {})}
        scores = EntityScores(WORDS, TAGS, **options).scores(model)
        assert scores["f1"] == pytest.approx(seqeval.metrics.f1_score(TAGS, alone, **direct))
        assert scores["recall"] == pytest.approx(seqeval.metrics.recall_score(TAGS, alone, **direct))
        different.add(scores["recall"])
    assert len(different) > 1
    backwards = [[tag if tag == "O" else "-".join(reversed(tag.split("-"))) for tag in row] for row in TAGS]
    model.labels = [name if name == "O" else "-".join(reversed(name.split("-"))) for name in NAMES]
    suffix = EntityScores(WORDS, backwards, suffix=True).scores(model)
    assert suffix["f1"] == pytest.approx(seqeval.metrics.f1_score(TAGS, alone))


@quickly
def test_words_that_are_cut_count_as_missed():
    model = tagger()
    callback = EntityScores(WORDS, TAGS, max_length=6)
    found = callback.predictions(model)
    assert found == tags_alone(model, 6)
    kept = sum(len({w for w in TOKENIZER.encode([text], 6)[0].word_ids if w is not None}) for text in TEXTS)
    assert callback.cut_words == sum(map(len, WORDS)) - kept > 0


def greedy(model, sources, **options):
    return [model.generate(source, **options) for source in sources]


def test_translations_are_scored_as_by_sacrebleu():
    model = writer(0.5, vocabulary_size=TOKENIZER.vocabulary_size, max_sequence_length=32)
    model.tokenizer = TOKENIZER
    references = [["anna met bob", "bob met anna in rome"], "bob", ["paris", "old paris", "rome"], "anna lives"]
    callback = TranslationScores(TEXTS, references, batch_size=3, max_new_tokens=6)
    texts = greedy(model, TEXTS, max_new_tokens=6)
    assert callback.predictions(model) == texts
    streams = [
        ["anna met bob", "bob", "paris", "anna lives"],
        ["bob met anna in rome", None, "old paris", None],
        [None, None, "rome", None],
    ]
    assert callback.scores(model) == {
        "bleu": sacrebleu.corpus_bleu(texts, streams).score,
        "chrf": sacrebleu.corpus_chrf(texts, streams).score,
    }
    references[0] = texts[0]
    assert callback.scores(model)["chrf"] < TranslationScores(TEXTS, texts, max_new_tokens=6).scores(model)["chrf"]
    assert TranslationScores(TEXTS, texts, max_new_tokens=6).scores(model)["chrf"] == pytest.approx(100.0)
    assert "nrefs:var" in callback.bleu.get_signature().format(short=False)


@quickly
def test_translations_of_an_encoder_decoder_under_options():
    backbone = keras_tfm.models.transformer(
        num_layers=1, num_decoder_layers=1, **TEXT_SIZES, metadata={"decoder_start_token_id": 1}
    )
    model = fill_weights(keras_tfm.Seq2SeqLM(backbone, tokenizer=TOKENIZER), 0.5)
    options = {"bleu": {"tokenize": "char"}, "chrf": {"word_order": 2}}
    callback = TranslationScores(TEXTS, TEXTS, max_new_tokens=8, num_beams=2, **options)
    texts = greedy(model, TEXTS, max_new_tokens=8, num_beams=2)
    assert callback.scores(model) == {
        "bleu": sacrebleu.corpus_bleu(texts, [TEXTS], tokenize="char").score,
        "chrf": sacrebleu.corpus_chrf(texts, [TEXTS], word_order=2).score,
    }


QUESTIONS = [("who", TEXTS[0]), ("where", TEXTS[2]), ("who lives", TEXTS[3]), ("what", TEXTS[1])]


@pytest.mark.parametrize("tokenizer", [pytest.param(TOKENIZER, marks=quickly), TO_LEFT])
def test_answers_are_those_of_each_question_alone(tokenizer):
    model = answerer(tokenizer)
    alone = []
    for question, context in QUESTIONS:
        encoding = TOKENIZER.encode([(question, context)])[0]
        inputs = {"token_ids": encoding.ids, "token_type_ids": encoding.type_ids}
        logits = numpy(model({name: np.array([ids], "int32") for name, ids in inputs.items()}))
        start, end = (logits[name][0].astype("float64") for name in ("start_logits", "end_logits"))
        best = (-np.inf, "")
        for first, part in enumerate(encoding.sequence_ids):
            for last in range(first, min(first + 30, len(encoding.ids))):
                if part == 1 and encoding.sequence_ids[last] == 1:
                    text = context[encoding.offsets[first][0] : encoding.offsets[last][1]]
                    best = max(best, (start[first] + end[last], text))
        alone.append(best[1])
    callback = AnswerScores(QUESTIONS, alone, batch_size=3)
    assert callback.predictions(model) == alone
    assert callback.scores(model) == {"exact_match": 100.0, "f1": 100.0}
    wrong = AnswerScores(QUESTIONS, [alone[0], "x", {"text": ["x", alone[2]], "answer_start": [0, 0]}, "x y"])
    assert wrong.scores(model) == {"exact_match": 50.0, "f1": 50.0}


@quickly
def test_no_answer_is_given_where_some_have_none():
    model = answerer()
    callback = AnswerScores(QUESTIONS, ["anna", None, [], {"text": [], "answer_start": []}])
    assert callback.options["null_threshold"] == 0.0
    assert AnswerScores(QUESTIONS, ["anna"] * 4).options["null_threshold"] is None
    never = AnswerScores(QUESTIONS, [None] * 4, null_threshold=-1e9)
    assert never.predictions(model) == [""] * 4
    assert never.scores(model) == {"exact_match": 100.0, "f1": 100.0}
    assert "" not in AnswerScores(QUESTIONS, [None] * 4, null_threshold=None).predictions(model)
    short = AnswerScores(QUESTIONS, ["anna"] * 4, max_length=12, max_answer_length=1)
    assert all(len(text.split()) <= 1 for text in short.predictions(model))


class Seen(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.logs = []

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def test_the_logs_of_fit(tmp_path):
    """What stands behind the callback sees the scores, what stands before does not; training is as without it."""
    plain, model = tagger(), tagger()
    options = dict(epochs=2, batch_size=2, verbose=0)
    for each in (plain, model):
        each.compile(keras.optimizers.SGD(0.5))
    keras.utils.set_random_seed(5)
    plain.fit(WORDS, TAGS, **options)
    before, behind, scores = Seen(), Seen(), EntityScores(WORDS, TAGS, every=2)
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "{val_f1:.4f}.weights.h5", save_weights_only=True, save_freq="epoch"
    )
    keras.utils.set_random_seed(5)
    history = model.fit(WORDS, TAGS, callbacks=[before, EntityScores(WORDS, TAGS), best, behind], **options).history
    for left, right in zip(plain.variables, model.variables, strict=True):
        np.testing.assert_array_equal(numpy(left), numpy(right))
    assert "val_f1" not in before.logs[-1]
    assert behind.logs[-1]["val_f1"] == history["val_f1"][-1] == scores.scores(model)["f1"]
    assert {path.name for path in tmp_path.iterdir()} == {f"{f1:.4f}.weights.h5" for f1 in history["val_f1"]}
    logs = [{}, {}]
    scores.set_model(model)
    for epoch in range(2):
        scores.on_epoch_end(epoch, logs[epoch])
    assert [sorted(found) for found in logs] == [[], ["val_f1", "val_precision", "val_recall"]]


@quickly
def test_the_student_of_a_distiller_is_scored():
    student = tagger()
    distiller = Distiller(student, tagger())
    callback = EntityScores(WORDS, TAGS, log_prefix="held_out_")
    history = distiller.fit(WORDS, TAGS, callbacks=[callback], verbose=0).history
    assert history["held_out_recall"] == [callback.scores(student)["recall"]]


@pytest.mark.once
def test_the_examples_of_squad():
    """Of https://huggingface.co/spaces/evaluate-metric/squad, and squad_v2's, which run SQuAD's scripts."""
    from keras_tfm.training.squad import squad_scores

    predictions = ["1976", "Beyonce", "climate change"]
    answers = [["1976"], ["Beyoncé and Bruno Mars"], ["climate change"]]
    assert squad_scores(predictions, answers) == pytest.approx({"exact_match": 200 / 3, "f1": 200 / 3})
    assert squad_scores(["1976"], [{"answer_start": [97], "text": ["1976"]}]) == {"exact_match": 100.0, "f1": 100.0}
    assert squad_scores([""], [[]]) == {"exact_match": 100.0, "f1": 100.0}
    assert squad_scores(["the"], [None]) == {"exact_match": 100.0, "f1": 100.0}
    assert squad_scores(["Rome"], [None]) == {"exact_match": 0.0, "f1": 0.0}
    assert squad_scores([""], ["Rome"]) == {"exact_match": 0.0, "f1": 0.0}
    assert squad_scores(["The  Eiffel-Tower!"], ["eiffeltower"])["exact_match"] == 100.0
    # Two of three words, and two of four, in common; the better of two answers.
    assert squad_scores(["an old red house"], [["the red brick house there", "house"]])["f1"] == pytest.approx(
        100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )
    assert squad_scores(["a house"], ["an house"])["exact_match"] == 100.0
    assert squad_scores(["red red"], ["red"])["f1"] == pytest.approx(100 * 2 / 3)


BAD = {
    "as many words as tags": lambda: EntityScores(WORDS, TAGS[:2]),
    "at least one": lambda: EntityScores([], []),
    r"tags\[1\] must name": lambda: EntityScores(WORDS, [TAGS[0], [None], *TAGS[2:]]),
    r"tags\[0\] has 'B-ORG'": lambda: EntityScores(WORDS[:1], [["B-ORG", *TAGS[0][1:]]]).scores(tagger()),
    "average must be": lambda: EntityScores(WORDS, TAGS, average="none"),
    "scheme must be": lambda: EntityScores(WORDS, TAGS, scheme="IOB3"),
    "every must be": lambda: EntityScores(WORDS, TAGS, every=0),
    "needs a TokenClassifier": lambda: EntityScores(WORDS, TAGS).scores(answerer()),
    "no names of tags": lambda: EntityScores(WORDS, TAGS).scores(
        keras_tfm.TokenClassifier(encoder(), 5, tokenizer=TOKENIZER)
    ),
    "has no tokenizer": lambda: EntityScores(WORDS, TAGS).scores(keras_tfm.TokenClassifier(encoder(), labels=NAMES)),
    "as many sources as references": lambda: TranslationScores(TEXTS, TEXTS[:2]),
    r"references\[1\] must be": lambda: TranslationScores(TEXTS, [TEXTS[0], [], *TEXTS[2:]]),
    "One text is scored": lambda: TranslationScores(TEXTS, TEXTS, num_return_sequences=2),
    "needs a Seq2SeqLM or CausalLM": lambda: TranslationScores(TEXTS, TEXTS).scores(tagger()),
    r"rows\[0\] must be": lambda: AnswerScores(TEXTS, TEXTS),
    "as many rows as answers": lambda: AnswerScores(QUESTIONS, ["x"]),
    r"answers\[0\] must be strings": lambda: AnswerScores(QUESTIONS, [{"answer": "x"}, "x", "x", "x"]),
    r"answers\[1\] must be strings": lambda: AnswerScores(QUESTIONS, ["x", [1], "x", "x"]),
    "null_threshold must be": lambda: AnswerScores(QUESTIONS, ["x"] * 4, null_threshold="never"),
}


@quickly
@pytest.mark.parametrize("message", BAD)
def test_refuses(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


@quickly
def test_refuses_before_training_and_twice_the_same_name():
    model = answerer()
    with pytest.raises(ValueError, match="needs a TokenClassifier"):
        model.fit(QUESTIONS, [None] * 4, callbacks=[EntityScores(WORDS, TAGS)], verbose=0)
    callback = EntityScores(WORDS, TAGS)
    callback.set_model(tagger())
    with pytest.raises(ValueError, match=r"val_f1.*log_prefix"):
        callback.on_epoch_end(0, {"val_f1": 0.5})


@quickly
@pytest.mark.parametrize("package", ["seqeval", "sacrebleu"])
def test_a_missing_package_is_named_with_its_extra(package, monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name, *args):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=rf"{package}.*keras_tfm\[metrics\]"):
        EntityScores(WORDS, TAGS) if package == "seqeval" else TranslationScores(TEXTS, TEXTS)
