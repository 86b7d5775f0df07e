"""What may be wrong with a model and its optimizer, as one batch shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import keras
import numpy as np

from keras_tfm.layers import FeedForward, RMSNormalization
from keras_tfm.training.rates import LayerRates
from keras_tfm.training.seeing.given_batch import to_numpy
from keras_tfm.training.seeing.named_parts import blocks, layer_groups, named_parts
from keras_tfm.training.seeing.subject import Subject
from keras_tfm.training.seeing.symptoms_of_batches import Check, Finding

# A layer this far from the others is out of proportion. Published models stay within about 10**3: their residual stream
# grows by 500 in one block where a few elements are massive (Sun et al. 2024), and a gradient of 10**-4 of the others'
# is lost beside them in a clipped norm.
PROPORTION = 1e4
DEAD = 0.9  # of a feed-forward layer's units; by chance a relu unit sleeps through 8 tokens once in 256
SATURATED = 1e-3  # entropy, of a uniform distribution's; heads that copy one token each stay above it somewhere
# Adam and its relatives move every weight by about the rate in each update: five times what a weight was drawn from.
STEADY = ("Adam", "AdamW", "Adamax", "Nadam", "Lion", "RMSprop")
RATE_OVER_RANGE = 5.0
LARGEST_RATE = 10.0  # of other optimizers
WORSE_THAN_UNIFORM = 1.25  # times ln(classes), and 0.5 nats: small initial logits cost less


# The optimizer ------------------------------------------------------------------------------------------------------------


def _learning_rate(subject: Subject) -> Iterator[Finding]:
    optimizer = subject.optimizer
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        steps = sorted({*(10**power for power in range(6)), 0, subject.updates, subject.updates + 1})
        rates = [float(to_numpy(keras.ops.convert_to_tensor(rate(step)))) for step in steps]
    else:
        rates = [float(to_numpy(keras.ops.convert_to_tensor(rate)))]
    if isinstance(optimizer, LayerRates):
        largest = max(to_numpy(optimizer._rate_factors) if optimizer.built else [f for f, _ in optimizer.rate_groups])
        rates = [value * float(largest) for value in rates]
    names = {base.__name__ for base in type(optimizer).__mro__}
    steady = bool(names & set(STEADY))
    limit = RATE_OVER_RANGE * subject.backbone.config.initializer_range if steady else LARGEST_RATE
    where = type(optimizer).__name__
    if not any(rates):
        yield Finding("learning_rate", where, "the learning rate is 0: nothing will change.", 0.0)
    elif not max(rates) <= limit:
        message = f"a learning rate of {max(rates):g} is above {limit:g}: the weights will be overwritten, not trained."
        yield Finding("learning_rate", where, f"{message} Try {'1e-3' if steady else '0.1'} or less.", max(rates))


def _frozen(subject: Subject) -> Iterator[Finding]:
    if not subject.model.trainable_variables:
        message = "no weight is trainable. keras_tfm.training.unfreeze what is to learn, and compile."
        yield Finding("frozen", "the model", message, 0)


# Finite numbers -----------------------------------------------------------------------------------------------------------


def _finite_weights(subject: Subject) -> Iterator[Finding]:
    for name, variables in layer_groups(subject.model).items():
        for variable in variables:
            values = to_numpy(variable.value)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                count = int((~np.isfinite(values)).sum())
                message = f"{variable.path} has {count} values that are not finite. Go back to weights from before."
                yield Finding("not_finite", name, message, count)
                return


def _finite_outputs(subject: Subject) -> Iterator[Finding]:
    for name, found in subject.measured("activations").items():
        if not found.finite:
            message = (
                "its output is the first that is not finite. Is its input, a weight or the dtype's range too large?"
            )
            yield Finding("not_finite", name, message, found.rms)
            return


def _finite_loss(subject: Subject) -> Iterator[Finding]:
    if not subject.measured("activations") or not all(a.finite for a in subject.measured("activations").values()):
        return
    loss, gradients = subject.measured("loss_and_gradients")
    if not math.isfinite(loss):
        message = "the loss is not finite, though every layer's output is. Are labels or sample weights finite?"
        yield Finding("not_finite", "the loss", message, loss)
        return
    for name, variables in layer_groups(subject.model).items():
        for variable in variables:
            if variable.path in gradients and not np.isfinite(gradients[variable.path]).all():
                message = f"the gradient of {variable.path} is not finite, though the loss is."
                yield Finding("not_finite", name, message, loss)
                return


# The model ----------------------------------------------------------------------------------------------------------------


def _gradients(subject: Subject) -> Iterator[Finding]:
    """No gradient at all, or one out of proportion."""
    _, gradients = subject.measured("loss_and_gradients")
    if not gradients:
        return
    norms = {path: float(np.linalg.norm(gradient.astype("float64"))) for path, gradient in gradients.items()}
    if not any(norms.values()):
        message = "no gradient arrives anywhere. Does any row have a label, and does the loss depend on the model?"
        yield Finding("no_gradient", "the model", message, 0.0)
        return
    branches = {name: math.hypot(*(norms[path] for path in paths)) for name, paths in subject.blocks().items()}
    if len(branches) < 2:
        return
    middle = float(np.median(list(branches.values())))
    for name, norm in branches.items():
        if norm * PROPORTION < middle or norm == 0:
            message = (
                f"its gradient's norm is {norm:.2g}, where the blocks' median is {middle:.2g}: it will hardly learn."
            )
            yield Finding("vanishing_gradient", name, f"{message} Look at the norms and weights around it.", norm)
        elif norm > PROPORTION * middle:
            message = f"its gradient's norm is {norm:.2g}, where the blocks' median is {middle:.2g}."
            yield Finding("exploding_gradient", name, f"{message} Are its weights too large?", norm)


def _activations(subject: Subject) -> Iterator[Finding]:
    """A layer whose output dwarfs all before it, or vanishes."""
    largest: float | None = None
    inner = blocks(subject.model)
    for name, found in subject.measured("activations").items():
        if name in inner and found.rms == 0:
            message = "its output is 0 for every token. Is the scale of a norm, or a projection, 0?"
            yield Finding("vanishing_activation", name, message, 0.0)
            return
        if name.startswith(("blocks.", "decoder_blocks.")) and largest and found.rms > PROPORTION * largest:
            message = f"the root mean square of its output is {found.rms:.2g}, after {largest:.2g} at most."
            yield Finding("exploding_activation", name, f"{message} Are its weights too large?", found.rms)
            return
        largest = max(largest or 0.0, found.rms)


def _norm_scales(subject: Subject) -> Iterator[Finding]:
    inner = blocks(subject.model)
    for name, part in named_parts(subject.model).items():
        for layer in part._flatten_layers() if name in inner or "." not in name else ():
            scale = getattr(layer, "gamma", None)
            if scale is None and isinstance(layer, RMSNormalization):
                scale = layer.scale
            if scale is None:
                continue
            values = to_numpy(scale.value) + getattr(layer, "offset", 0.0)
            if not values.any():
                yield Finding("dead_norm", name, f"{scale.path} is 0: nothing passes. Begin with 1.", 0.0)
                break


def _dead_units(subject: Subject) -> Iterator[Finding]:
    parts = named_parts(subject.model)
    mask = subject.inputs.get("padding_mask")
    ids = subject.inputs.get("token_ids")
    tokens = ids.size if mask is None and ids is not None else None if mask is None else int(mask.sum())
    if tokens is not None and tokens < 8:
        return
    for name, found in subject.measured("activations").items():
        if isinstance(parts[name], FeedForward) and found.dead is not None and found.dead >= DEAD:
            message = f"{found.dead:.0%} of its units are 0 for every token. Lower the rate, or take gelu."
            yield Finding("dead_units", name, message, found.dead)


def _heads(subject: Subject) -> Iterator[Finding]:
    for name, found in subject.measured("attention").items():
        if found.entropy.shape[1] < 8:
            continue
        peaks, lows = found.entropy.max(1), found.entropy.min(1)
        for head in np.flatnonzero(peaks < SATURATED):
            message = (
                "every query looks at one key alone, and no gradient passes the softmax. Are its scores too large?"
            )
            yield Finding("saturated_attention", f"{name}, head {head}", message, float(peaks[head]))
        others = found.entropy.mean(1)
        for head in np.flatnonzero(lows > 1 - 1e-6):
            if (others < 0.9).any():  # else they all are, as at the beginning
                message = "it looks everywhere alike, where other heads of the layer do not. Are its queries or keys 0?"
                yield Finding("uniform_attention", f"{name}, head {head}", message, float(lows[head]))


def _head(subject: Subject) -> Iterator[Finding]:
    """A head that is as it was made. Its biases begin with 0 and no update leaves all of them there."""
    layer = getattr(subject.model, "head", None)
    biases = [v for v in getattr(layer, "weights", ()) if v.path.endswith("logits/bias")]
    if not biases or to_numpy(biases[0].value).any():
        return
    frozen = not biases[0].trainable
    if frozen or subject.updates > 0:
        why = "it is frozen" if frozen else f"{subject.updates} updates did not change it"
        message = f"its biases are all 0, as at the beginning, and {why}: it was not trained. Unfreeze it, and compile."
        yield Finding("untrained_head", "head", message, 0.0)


def _loss(subject: Subject) -> Iterator[Finding]:
    """A loss that says that training began badly, or did not begin."""
    classes = subject.classes()
    labels = list(subject.labels())
    if classes is None or classes < 2 or not any((y >= 0).any() for _, y, _ in labels):
        return
    loss, _ = subject.measured("loss_and_gradients")
    uniform = math.log(classes) * len(labels)
    if subject.updates == 0 and loss > WORSE_THAN_UNIFORM * uniform + 0.5:
        message = (
            f"the loss is {loss:.3g} before the first update, where equal probabilities have {uniform:.3g}. Are initial "
            "weights too large, or the labels not those that the head was trained on?"
        )
        yield Finding("initial_loss", "the loss", message, loss)
    elif subject.updates >= 100 and abs(loss - uniform) < 0.01 * uniform:
        message = f"after {subject.updates} updates the loss is that of equal probabilities, {uniform:.3g}."
        yield Finding("no_progress", "the loss", f"{message} Do the inputs say anything of the labels?", loss)


OF_THE_OPTIMIZER: tuple[Check, ...] = (_learning_rate, _frozen)
OF_FINITENESS: tuple[Check, ...] = (_finite_weights, _finite_outputs, _finite_loss)
OF_THE_MODEL: tuple[Check, ...] = (_gradients, _activations, _norm_scales, _dead_units, _heads, _head, _loss)
