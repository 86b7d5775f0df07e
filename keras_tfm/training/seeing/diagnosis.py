"""What is wrong with a training, as far as one batch shows it."""

from __future__ import annotations

from typing import Any

from keras_tfm.training.parts import check_model
from keras_tfm.training.seeing.subject import Subject
from keras_tfm.training.seeing.symptoms_of_batches import OF_THE_BATCH, Finding
from keras_tfm.training.seeing.symptoms_of_models import OF_FINITENESS, OF_THE_MODEL, OF_THE_OPTIMIZER

FATAL = ("labels", "token_ids", "not_finite")  # what the checks behind cannot run on


class Diagnosis(list):
    """Findings, the gravest first; printed, they are sentences.

    Attributes:
        checks: How many checks were made; fewer where one of the first found something that the others cannot run on.
    """

    def __init__(self, findings: Any = (), checks: int = 0):
        super().__init__(findings)
        self.checks = checks

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or f"Nothing looks wrong in {self.checks} checks."

    __repr__ = __str__


def diagnose(model: Any, batch: Any) -> Diagnosis:
    """Look for what commonly keeps a model from learning, on one batch; the model is left as it is.

    Of the batch: labels out of range, of padding, or none at all; rows of padding alone; token ids outside the vocabulary.
    Of the compiled optimizer: a rate of 0, or one above 5 times the config's `initializer_range` with Adam and its like, 10
    with others. Of the model: weights or outputs that are not finite, with the first layer that has them; nothing to train,
    or no gradient; a layer whose gradient is 10**4 times the median of the blocks', or a 10**-4 part; a block whose output
    is 10**4 times all before it; norms with a scale of 0; feed-forward layers of which 90% of the units are 0 for all
    tokens; heads whose every query looks at one key alone, and uniform heads beside others that are not; a head whose
    biases are all 0 though it has been trained, or is frozen; a loss above 1.25 ln(classes) + 0.5 before the first update,
    or at ln(classes) after 100.

    Not everything found must be a fault, and none found is no proof.

    Args:
        model: A compiled task model.
        batch: As of `Probe`: (x, y), a `model.dataset(...)`, an element of one, or raw rows.

    Returns:
        A list of `Finding`, empty if all is well. What is wrong with the batch or the weights ends the search where the
        rest could not be computed.

    Raises:
        ValueError: for a model that is none of this library's, or is not compiled.

    Example:
        >>> print(keras_tfm.training.diagnose(classifier, (texts[:8], labels[:8])))
        Nothing looks wrong in 17 checks.
    """
    check_model(model)
    if not model.compiled:
        raise ValueError(f"{model.name} must be compiled: its loss and its optimizer are looked at too.")
    try:
        subject = Subject(model, batch)
    except ValueError as error:
        return Diagnosis([Finding("batch", "the batch", str(error), None)], 1)
    found = Diagnosis()
    for stage in (OF_THE_BATCH, OF_THE_OPTIMIZER, OF_FINITENESS, OF_THE_MODEL):
        for check in stage:
            found.extend(check(subject))
            found.checks += 1
            if any(finding.kind in FATAL for finding in found) and check not in OF_THE_BATCH:
                return found
        if any(finding.kind in FATAL for finding in found):
            return found
    return found
