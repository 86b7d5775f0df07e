"""Callbacks that compute what papers report, by the tools that papers use, at the end of epochs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import keras
import numpy as np

from keras_tfm.data import best_answers, question_examples, token_examples
from keras_tfm.layers.base import check_choice, check_positive
from keras_tfm.models.generative import Generative
from keras_tfm.models.token_classifiers import QuestionAnswerer, TokenClassifier
from keras_tfm.training.distillation import Distiller
from keras_tfm.training.squad import answer_texts, check_rows, squad_scores


class _Scores(keras.callbacks.Callback, ABC):
    """Scores of held-out rows, put into the logs of an epoch.

    Args:
        every: Epochs from one computation to the next.
        log_prefix: Of the names in the logs.
    """

    kind: Any
    kind_name: str

    def __init__(self, every: int, log_prefix: str):
        super().__init__()
        check_positive(every=every)
        self.every = every
        self.log_prefix = log_prefix

    def scores(self, model: Any) -> dict[str, float]:
        """The scores of a model, without `fit`, by their names without prefix."""
        return self._scores(self._task(model))

    @abstractmethod
    def _scores(self, model: Any) -> dict[str, float]:
        """Those of a task model of this kind."""

    def _task(self, model: Any) -> Any:
        """The task model, which may be a distiller's student; ValueError for another."""
        task = model.student if isinstance(model, Distiller) else model
        if not isinstance(task, self.kind):
            raise ValueError(f"{type(self).__name__} needs a {self.kind_name}; got a {type(task).__name__}.")
        task._require_tokenizer()
        return task

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Check the model."""
        self._task(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the scores into the logs."""
        if (epoch + 1) % self.every or logs is None:
            return
        found = {f"{self.log_prefix}{name}": value for name, value in self.scores(self.model).items()}
        if taken := sorted(found.keys() & logs.keys()):
            raise ValueError(f"The logs have {taken} already: give {type(self).__name__} another log_prefix.")
        logs.update(found)


class EntityScores(_Scores):
    """Precision, recall and F1 of the entities that a token classifier finds, by seqeval (the extra `metrics`).

    An entity counts if its words and its type are all right (Tjong Kim Sang and De Meulder 2003, section 2.4). As
    fractions, "precision", "recall" and "f1" go into the logs of an epoch; as "val_f1" and so on they can be monitored by
    `EarlyStopping` and `ModelCheckpoint` that stand *behind* this callback in `callbacks`, and are in the history.

    Args:
        words: Held-out rows, lists of words.
        tags: A list of tags for each, names of the model's `labels` such as "B-PER".
        batch_size: Rows at once.
        average: "micro" over all entities, "macro" or "weighted" over their types.
        scheme: How tags make entities: None as CoNLL's script, which forgives an I- without a B-; a class of
            `seqeval.scheme` or its name, such as "IOB2", strictly, so that tags against it are no entity.
        suffix: The part that begins an entity stands behind its type, "PER-B".
        max_length: Longest row in tokens. Default: the tokenizer's and the model's limit.
        every: Epochs from one computation to the next; in between, the names are not in the logs.
        log_prefix: Of the names in the logs.

    Attributes:
        cut_words: How many words had no prediction the last time, since the row was cut before them or the tokenizer
            leaves nothing of them. They count as "O": their entities are missed.

    Raises:
        ImportError: without seqeval.
        ValueError: for rows that do not fit each other, words without a tag, tags that the model does not know, and
            another model.

    Example:
        >>> entities = keras_tfm.training.EntityScores(words, tags, scheme="IOB2")
        >>> best = keras.callbacks.ModelCheckpoint("best.keras", monitor="val_f1", mode="max", save_best_only=True)
        >>> tagger.fit(train_words, train_tags, callbacks=[entities, best])
    """

    kind, kind_name = TokenClassifier, "TokenClassifier"

    def __init__(
        self,
        words: Sequence[Sequence[str]],
        tags: Sequence[Sequence[str]],
        *,
        batch_size: int = 32,
        average: str = "micro",
        scheme: Any = None,
        suffix: bool = False,
        max_length: int | None = None,
        every: int = 1,
        log_prefix: str = "val_",
    ):
        super().__init__(every, log_prefix)
        check_positive(batch_size=batch_size, max_length=max_length)
        check_choice("average", average, ("micro", "macro", "weighted"))
        metrics = _imported("seqeval.metrics")
        self.words = [list(row) for row in words]
        self.tags = [list(row) for row in tags]
        check_rows(words=self.words, tags=self.tags)
        for index, (row, row_tags) in enumerate(zip(self.words, self.tags, strict=True)):
            if len(row) != len(row_tags) or not all(isinstance(tag, str) for tag in row_tags):
                raise ValueError(f"tags[{index}] must name a tag for each of {len(row)} words; got {row_tags!r}.")
        self.batch_size = batch_size
        self.max_length = max_length
        self.cut_words = 0
        self.options: dict[str, Any] = {"average": average, "suffix": suffix, "zero_division": 0}
        if scheme is not None:
            if isinstance(scheme, str):
                schemes = _imported("seqeval.scheme")
                check_choice("scheme", scheme, ("IOB1", "IOB2", "IOE1", "IOE2", "IOBES", "BILOU"))
                scheme = getattr(schemes, scheme)
            self.options |= {"scheme": scheme, "mode": "strict"}
        self._functions = {
            name: getattr(metrics, f"{name}_score" if name != "f1" else "f1_score")
            for name in ("precision", "recall", "f1")
        }

    def predictions(self, model: Any) -> list[list[str]]:
        """The model's tag for each word, "O" for those without a prediction."""
        if model.labels is None:
            raise ValueError(f"{model.name} has no names of tags: TokenClassifier(..., labels=[...]).")
        limit = model._longest(self.max_length)
        examples = token_examples(
            self.words, self.tags, model._require_tokenizer(), labels=model.labels, max_length=limit
        )
        found = [["O"] * len(row) for row in self.words]
        self.cut_words = sum(map(len, self.words))
        for tags, example, logits in zip(found, examples, _of_tokens(model, examples, self.batch_size), strict=True):
            word_ids, first = np.unique(example["word_ids"], return_index=True)
            for word, token in zip(word_ids, first, strict=True):
                if word >= 0:
                    tags[word] = model.labels[int(logits[token].argmax())]
                    self.cut_words -= 1
        return found

    def _scores(self, model):
        predicted = self.predictions(model)
        return {
            name: float(function(self.tags, predicted, **self.options)) for name, function in self._functions.items()
        }


class TranslationScores(_Scores):
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of generated texts, by sacrebleu (the extra `metrics`).

    From 0 to 100, "bleu" and "chrf" go into the logs of an epoch; as "val_bleu" and "val_chrf" they can be monitored by
    `EarlyStopping` and `ModelCheckpoint` that stand *behind* this callback in `callbacks`, and are in the history.

    Args:
        sources: Source texts of a `Seq2SeqLM`, prompts of a `CausalLM`.
        references: For each source what should be written, a string or a list of several.
        batch_size: Sources at once.
        bleu: Options of `sacrebleu.metrics.BLEU`, such as {"tokenize": "ja-mecab"}, a dict.
        chrf: Options of `sacrebleu.metrics.CHRF`, such as {"word_order": 2} for chrF++, a dict.
        every: Epochs from one computation to the next; in between, the names are not in the logs.
        log_prefix: Of the names in the logs.
        generate: Options of `generate`, such as `max_new_tokens` and `num_beams`.

    Attributes:
        bleu, chrf: sacrebleu's objects; `bleu.get_signature()`, after the first computation, is what a paper quotes.

    Raises:
        ImportError: without sacrebleu.
        ValueError: for no rows, rows without a reference, options that `generate` does not take or that change what it
            returns, and another model.

    Example:
        >>> scores = keras_tfm.training.TranslationScores(sources, references, num_beams=4, max_new_tokens=64)
        >>> scores.scores(translator)
        {'bleu': 27.3, 'chrf': 55.1}
    """

    kind, kind_name = Generative, "Seq2SeqLM or CausalLM"

    def __init__(
        self,
        sources: Sequence[str],
        references: Sequence[str | Sequence[str]],
        *,
        batch_size: int = 16,
        bleu: dict[str, Any] | None = None,
        chrf: dict[str, Any] | None = None,
        every: int = 1,
        log_prefix: str = "val_",
        **generate: Any,
    ):
        super().__init__(every, log_prefix)
        check_positive(batch_size=batch_size)
        metrics = _imported("sacrebleu.metrics")
        self.sources = list(sources)
        given = [[texts] if isinstance(texts, str) else list(texts) for texts in references]
        check_rows(sources=self.sources, references=given)
        for index, texts in enumerate(given):
            if not texts or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"references[{index}] must be a string, or several; got {texts!r}.")
        for option in ("num_return_sequences", "return_details"):
            if option in generate:
                raise ValueError(f"One text is scored for each source; got {option}={generate[option]!r}.")
        self.references = [list(texts) for texts in zip_longest(*given)]  # (references, sources), None for none
        self.bleu, self.chrf = metrics.BLEU(**(bleu or {})), metrics.CHRF(**(chrf or {}))
        self.batch_size = batch_size
        self.generate_options = generate

    def predictions(self, model: Any) -> list[str]:
        """What the model writes for each source."""
        found: list[str] = []
        for start in range(0, len(self.sources), self.batch_size):
            found += model.generate(self.sources[start : start + self.batch_size], **self.generate_options)
        return found

    def _scores(self, model):
        texts = self.predictions(model)
        metrics = {"bleu": self.bleu, "chrf": self.chrf}
        return {name: metric.corpus_score(texts, self.references).score for name, metric in metrics.items()}


class AnswerScores(_Scores):
    """Exact match and F1 of the answers that a question answerer finds, as SQuAD's script computes them.

    (Rajpurkar et al. 2016, section 6.1; Rajpurkar et al. 2018 where some questions have no answer.) From 0 to 100,
    "exact_match" and "f1" go into the logs of an epoch; as "val_exact_match" and "val_f1" they can be monitored by
    `EarlyStopping` and `ModelCheckpoint` that stand *behind* this callback in `callbacks`, and are in the history.

    Args:
        rows: Held-out (question, context) pairs.
        answers: For each, what counts as right: a string, several, or SQuAD's {"text", ...}; None or [] for a question
            without an answer.
        batch_size: Windows at once.
        max_length: Longest window in tokens. Default: the tokenizer's and the model's limit, else 384.
        max_answer_length: Most tokens of an answer.
        null_threshold: By how much no answer must be better, as of `keras_tfm.data.best_answers`; None to always give
            one. "auto" is 0 where a question has no answer (SQuAD 2), else None (SQuAD 1.1).
        every: Epochs from one computation to the next; in between, the names are not in the logs.
        log_prefix: Of the names in the logs.

    Raises:
        ValueError: for rows and answers that do not fit each other, and another model.

    Example:
        >>> scores = keras_tfm.training.AnswerScores(rows, answers)
        >>> answerer.fit(train_rows, train_answers, callbacks=[scores])
    """

    kind, kind_name = QuestionAnswerer, "QuestionAnswerer"

    def __init__(
        self,
        rows: Sequence[tuple[str, str]],
        answers: Sequence[Any],
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        max_answer_length: int = 30,
        null_threshold: float | str | None = "auto",
        every: int = 1,
        log_prefix: str = "val_",
    ):
        super().__init__(every, log_prefix)
        check_positive(batch_size=batch_size, max_length=max_length, max_answer_length=max_answer_length)
        self.rows = [tuple(row) for row in rows]
        for index, row in enumerate(self.rows):
            if len(row) != 2 or not all(isinstance(part, str) for part in row):
                raise ValueError(f"rows[{index}] must be (question, context); got {row!r}.")
        self.answers = [answer_texts(answer, index) for index, answer in enumerate(answers)]
        check_rows(rows=self.rows, answers=self.answers)
        if null_threshold == "auto":
            null_threshold = None if all(map(any, self.answers)) else 0.0
        if isinstance(null_threshold, str):
            raise ValueError(f"null_threshold must be a number, None or 'auto'; got {null_threshold!r}.")
        self.batch_size = batch_size
        self.max_length = max_length
        self.options: dict[str, Any] = {"max_answer_length": max_answer_length, "null_threshold": null_threshold}

    def predictions(self, model: Any) -> list[str]:
        """The model's answer to each question, "" for none."""
        limit = model._longest(self.max_length)
        window = {} if limit is None else {"max_length": limit, "stride": min(128, limit // 4)}
        questions, contexts = zip(*self.rows, strict=True)
        examples = question_examples(questions, contexts, tokenizer=model._require_tokenizer(), **window)
        found = _of_tokens(model, examples, self.batch_size)
        starts, ends = ([logits[name] for logits in found] for name in ("start_logits", "end_logits"))
        return best_answers(examples, contexts, starts, ends, **self.options)

    def _scores(self, model):
        return squad_scores(self.predictions(model), self.answers)


def _of_tokens(model: Any, examples: Any, batch_size: int) -> list[Any]:
    """A model's outputs for each example, (tokens, ...), without what its batch padded."""
    data = model.dataset(examples, batch_size=batch_size, seed=0)
    found: list[Any] = [None] * len(examples)
    for index in range(len(data)):
        batch = data[index][0]
        outputs = model.predict_on_batch(batch)
        for place, row in enumerate(data.batches.rows(index)):
            real = np.asarray(batch["padding_mask"][place], bool)
            found[row] = keras.tree.map_structure(lambda x, i=place, kept=real: np.asarray(x[i])[kept], outputs)
    return found


def _imported(name: str) -> Any:
    """A module of the extra `metrics`."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(f"{package} is not installed: pip install 'keras_tfm[metrics]'.") from error
