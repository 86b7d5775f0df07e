"""Language models: the token table, read backwards, on a backbone."""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np

from keras_tfm.data import Masking, seq2seq_examples
from keras_tfm.layers import MaskedLMHead
from keras_tfm.layers.base import check_options, register
from keras_tfm.models.backbone import Backbone
from keras_tfm.models.generative import Generative
from keras_tfm.models.objectives import LinearCrossentropy, TokenAccuracy, TokenCrossentropy
from keras_tfm.models.raw_data import is_text
from keras_tfm.models.task import Task

IGNORED = -100


class LanguageModel(Task):
    """Logits over the vocabulary for every token; tokens labelled -100 (or any negative) do not count.

    Subclasses say what the projection to the vocabulary is given, `_states`, and what it adds to the token embedding's.
    """

    _gives_states = False  # instead of logits, to a loss that projects them itself

    def _states(self, hidden: Any) -> Any:
        """What the token table multiplies, (batch, length, width)."""
        raise self._not_implemented_error(self._states)

    def _logits(self, states: Any) -> Any:
        return self.backbone.token_embedding(states, reverse=True)

    def _output_bias(self) -> Any:
        """Of the logits, beside the token embedding's; None where there is none."""
        return None

    def _apply_head(self, hidden, inputs, training):
        states = self._states(hidden)
        return states if self._gives_states else self._logits(states)

    def compile(self, optimizer=None, loss="auto", *, metrics="auto", **options):
        """As `Task.compile`; loss="linear_crossentropy" is `LinearCrossentropy`."""
        if isinstance(loss, str) and loss == "linear_crossentropy":
            loss = LinearCrossentropy()
        if isinstance(loss, LinearCrossentropy):
            metrics = None if isinstance(metrics, str) and metrics == "auto" else metrics
            if metrics or options.get("weighted_metrics"):
                raise ValueError(
                    f"metrics need logits, which {type(loss).__name__} never has as a whole; got {metrics or options}. "
                    "Take metrics=None: the exponential of the loss is the perplexity."
                )
        super().compile(optimizer, loss, metrics=metrics, **options)

    @contextlib.contextmanager
    def _as_the_loss_takes_it(self):
        """Within: calling the model gives states where the loss is to project them."""
        self._gives_states = isinstance(self.loss, LinearCrossentropy)
        try:
            yield
        finally:
            self._gives_states = False

    def train_step(self, *args, **kwargs):
        with self._as_the_loss_takes_it():
            return super().train_step(*args, **kwargs)

    def test_step(self, *args, **kwargs):
        with self._as_the_loss_takes_it():
            return super().test_step(*args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        arguments = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight, "training": training}
        if not self._gives_states:
            return super().compute_loss(**arguments)
        projection = self.backbone.token_embedding.projection(self._output_bias())
        with self.loss.of_states(**projection, differentiable=training):
            return super().compute_loss(**arguments)

    def _default_loss(self):
        return TokenCrossentropy()

    def _default_metrics(self):
        return [TokenAccuracy()]


@register
class MaskedLM(LanguageModel):
    """BERT's pretraining task: which token was masked (Devlin et al. 2019, section 3.1).

    Args:
        backbone: An encoder.
        head: Further options of `MaskedLMHead`, a dict.
        tokenizer: For raw strings, whose tokens `fit` and `evaluate` hide anew in each epoch.
        masking: Options of `keras_tfm.data.Masking` for that, a dict, such as {"whole_words": True}.

    Calling it gives logits, (batch, length, vocabulary_size). Labels are (batch, length) int, -100 where nothing was
    masked.
    """

    kinds = ("encoder",)

    def __init__(
        self,
        backbone: Backbone,
        *,
        head: dict[str, Any] | None = None,
        tokenizer: Any = None,
        masking: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        check_options("head", head or {}, MaskedLMHead)
        check_options("masking", masking or {}, Masking)
        self.head_options = head
        self.masking = masking
        super().__init__(backbone, tokenizer=tokenizer, **kwargs)

    def _head_parts(self, backbone, dtype):
        config = backbone.config
        options = {
            "activation": config.activation,
            "norm": config.norm,
            "hidden_dim": config.embedding_dim,
            "kernel_initializer": keras.initializers.TruncatedNormal(stddev=config.initializer_range),
            **(self.head_options or {}),
        }
        return {"head": MaskedLMHead(config.vocabulary_size, **options, name="head", dtype=dtype)}

    def _states(self, hidden):
        return self.head.states(hidden["sequence_output"])

    def _apply_head(self, hidden, inputs, training):
        if self._gives_states:
            return self._states(hidden)
        return self.head(hidden["sequence_output"], token_embedding=self.backbone.token_embedding)

    def _output_bias(self):
        return self.head.bias

    def _transform(self):
        return Masking(self._require_tokenizer(), **(self.masking or {}))

    def _text_labels(self, batch, labels):
        if labels is not None:
            raise ValueError(f"{self.name} hides tokens of raw texts and makes the labels itself; give texts alone.")
        return batch["labels"]

    def predict(self, x, batch_size=None, **options):
        """As `Task.predict`; of raw strings nothing is hidden."""
        if is_text(x):
            x = self._require_tokenizer()([x] if isinstance(x, str) else list(x), self._longest())
            x = {name: x[name] for name in self._input_keys if name in x}
        return super().predict(x, batch_size=batch_size, **options)

    def get_config(self):
        return {**super().get_config(), "head": self.head_options, "masking": self.masking}


@register
class CausalLM(Generative, LanguageModel):
    """The next token for every token (Radford et al. 2018).

    Args:
        backbone: A decoder.
        tokenizer: For raw strings.

    Calling it gives logits, (batch, length, vocabulary_size): row t predicts token t + 1. `fit` and `evaluate` without
    labels make them from the tokens, shifted, with padding and the last place left out.

    Example:
        >>> model = keras_tfm.CausalLM(keras_tfm.models.gpt(num_layers=2, hidden_dim=32, num_heads=2, vocabulary_size=100))
        >>> model(np.ones((2, 16), "int32")).shape
        (2, 16, 100)
    """

    kinds = ("decoder",)

    def _head_parts(self, backbone, dtype):
        return {}  # the token table, tied or with a table of its own for this: the layer knows

    def _states(self, hidden):
        return hidden

    def _text_labels(self, batch, labels):
        if labels is not None:
            return labels
        return shifted_labels(batch["token_ids"], batch["padding_mask"], batch.get("segment_ids"))

    def _array_labels(self, x, y):
        if y is not None:
            return y
        if isinstance(x, dict) and isinstance(x.get("token_ids"), np.ndarray):
            return shifted_labels(x["token_ids"], x.get("padding_mask"), x.get("segment_ids"))
        return shifted_labels(x) if isinstance(x, np.ndarray) else None


def shifted_labels(
    token_ids: np.ndarray, padding_mask: np.ndarray | None = None, segment_ids: np.ndarray | None = None
) -> np.ndarray:
    """Each token's successor as its label, (batch, length) int32; -100 for the last, for padding, and across segments."""
    labels = np.full(token_ids.shape, IGNORED, np.int32)
    labels[:, :-1] = token_ids[:, 1:]
    if padding_mask is not None:
        real = np.asarray(padding_mask, bool)
        labels[:, :-1][~(real[:, 1:] & real[:, :-1])] = IGNORED
    if segment_ids is not None:
        labels[:, :-1][segment_ids[:, 1:] != segment_ids[:, :-1]] = IGNORED
    return labels


@register
class Seq2SeqLM(Generative, LanguageModel):
    """The next target token, given a source text (Vaswani et al. 2017).

    Args:
        backbone: An encoder-decoder.
        tokenizer: Of both sides.

    Calling it gives logits of the decoder, (batch, target_length, vocabulary_size). Inputs are "token_ids" and
    "decoder_token_ids"; labels (batch, target_length) int, the decoder's tokens shifted by one, -100 for none. Raw rows
    are source texts, and as labels target texts, whose decoder begins with the config's "decoder_start_token_id".
    """

    kinds = ("encoder_decoder",)

    def _examples(self, rows, labels, max_length):
        if labels is None:
            raise ValueError(f"{self.name} needs target texts beside the sources: fit(sources, targets).")
        tokenizer, metadata = self._require_tokenizer(), self.backbone.config.metadata or {}
        start = metadata.get("decoder_start_token_id", tokenizer.special_id("bos"))
        if start is None:
            raise ValueError(
                "The model's config names no decoder_start_token_id, which the decoder begins with. "
                "Put it into the config's metadata."
            )
        limits = {"max_length": max_length, "max_target_length": max_length}
        return seq2seq_examples(rows, list(labels), tokenizer, start_id=start, **limits)

    def _head_parts(self, backbone, dtype):
        return {}

    def _states(self, hidden):
        return hidden["sequence_output"]


__all__ = ["Backbone", "CausalLM", "MaskedLM", "Seq2SeqLM", "shifted_labels"]
