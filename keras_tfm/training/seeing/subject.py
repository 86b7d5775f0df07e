"""What `diagnose` looks at: a model, a batch, and what can be measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_tfm.models.classifiers import Classifier
from keras_tfm.models.language_models import LanguageModel
from keras_tfm.models.objectives import TokenCrossentropy
from keras_tfm.models.token_classifiers import QuestionAnswerer
from keras_tfm.training.parts import check_model
from keras_tfm.training.seeing.given_batch import as_batch, holds_names, is_raw, parts_of, to_numpy
from keras_tfm.training.seeing.named_parts import layer_groups
from keras_tfm.training.seeing.probing import Probe


class Subject:
    """A model and a batch as arrays; measurements are made when first asked for.

    Raises:
        ValueError: for a batch that cannot be read, such as names that are no labels.
    """

    def __init__(self, model: Any, batch: Any):
        self.model, self.backbone = model, check_model(model)
        # `rows`: places of the batch's rows among the raw ones.
        self.x, self.y, self.sample_weight, self.rows = _arrays(model, batch)
        self.inputs = self.x if isinstance(self.x, dict) else {model._input_keys[0]: self.x}
        self.inputs = {name: to_numpy(value) for name, value in self.inputs.items() if value is not None}
        optimizer = model.optimizer
        self.optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        self.updates = int(to_numpy(self.optimizer.iterations)) if self.optimizer.built else 0
        self._measured: dict[str, Any] = {}

    def measured(self, what: str) -> Any:
        """`Probe`'s measurements, each made once."""
        if "probe" not in self._measured:
            self._measured["probe"] = Probe(self.model, (self.x, self.y, self.sample_weight))
        if what not in self._measured:
            self._measured[what] = getattr(self._measured["probe"], what)()
        return self._measured[what]

    def row(self, index: Any) -> str:
        """A row as the caller counts them."""
        return f"row {int(index if self.rows is None else self.rows[index])}"

    def labels(self) -> Iterator[tuple[str, np.ndarray, int | None]]:
        """Integer labels by output, and how many classes there are."""
        for name, y in self.y.items() if isinstance(self.y, dict) else [("labels", self.y)]:
            y = None if y is None else to_numpy(y)
            if y is not None and y.dtype.kind in "iub":
                yield name, y, self.classes()

    def classes(self) -> int | None:
        """How many classes the loss is over; None for a number, or a loss that is not ours."""
        loss = self.model.loss
        losses = loss.values() if isinstance(loss, dict) else [loss]
        if not all(isinstance(part, TokenCrossentropy) for part in losses):
            return None
        if isinstance(self.model, QuestionAnswerer):
            return self.inputs["token_ids"].shape[1]
        if isinstance(self.model, LanguageModel):
            return self.model.vocabulary_size
        return getattr(self.model, "num_classes", None)

    def blocks(self) -> dict[str, list[str]]:
        """Paths of the trainable variables of each block's branches."""
        trained = {variable.path for variable in self.model.trainable_variables}
        groups = layer_groups(self.model).items()
        named = {name: [v.path for v in group if v.path in trained] for name, group in groups if "blocks." in name}
        return {name: paths for name, paths in named.items() if paths}


def _arrays(model: Any, batch: Any) -> tuple[Any, Any, Any, np.ndarray | None]:
    """A batch as (x, y, sample_weight, places of raw rows). A classifier's numbers pass unchecked."""
    x, y, weights = parts_of(batch)
    if not is_raw(x):
        return (*as_batch(model, batch), None)
    rows = [x] if isinstance(x, str) else list(x)
    unchecked = y is not None and isinstance(model, Classifier) and not holds_names(y)
    given = (None, None) if unchecked else (y, weights)
    data = model.dataset(rows, given[0], batch_size=len(rows), sample_weight=given[1], seed=0)
    inputs, labels, sample_weight = parts_of(data)
    order = data.batches.rows(0)
    if len(data.batches.lengths) != len(rows):  # a long context is several examples
        return inputs, labels, sample_weight, None
    if unchecked:
        labels, sample_weight = to_numpy(y)[order], None if weights is None else to_numpy(weights)[order]
    return inputs, labels, sample_weight, order
