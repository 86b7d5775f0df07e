"""Schedules: the published formulas, the values of `transformers`, and files."""

import keras
import numpy as np
import pytest
from helpers import BACKEND, numpy
from hypothesis import given
from hypothesis import strategies as st

from keras_tfm.training import WarmupSchedule, noam
from training.models import quickly

STEPS = 60


def rates(schedule, steps=STEPS):
    return numpy(schedule(np.arange(steps)))  # element-wise: the same formula, compiled once


@pytest.mark.parametrize(
    "options, theirs",
    [
        ({"decay": "linear", "total_steps": 50}, ("linear_schedule_with_warmup", {"num_training_steps": 50})),
        ({"decay": "cosine", "total_steps": 50}, ("cosine_schedule_with_warmup", {"num_training_steps": 50})),
        ({"decay": "constant"}, ("constant_schedule_with_warmup", {})),
        ({"decay": "inverse_sqrt"}, ("inverse_sqrt_schedule", {})),
        *(
            (
                {"decay": "wsd", "total_steps": 50, "decay_steps": 13, "end": 0.1, "cooldown": ours},
                (
                    "wsd_schedule",
                    {"num_training_steps": 50, "num_decay_steps": 13, "decay_type": kind, "min_lr_ratio": 0.05},
                ),
            )
            for ours, kind in (("linear", "linear"), ("cosine", "cosine"), ("sqrt", "1-sqrt"))
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
@pytest.mark.parametrize("warmup", [1, 7])
@quickly
def test_equals_transformers(options, theirs, warmup):
    torch = pytest.importorskip("torch")
    optimization = pytest.importorskip("transformers.optimization")
    name, arguments = theirs
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    scheduler = getattr(optimization, f"get_{name}")(optimizer, num_warmup_steps=warmup, **arguments)
    expected = []
    for _ in range(STEPS):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    # Behind its end, theirs of cosine rises again; the warmup of theirs of wsd begins at its end's rate.
    compared = slice(warmup if "end" in options else 0, 51 if options["decay"] == "cosine" else None)
    actual = rates(WarmupSchedule(2.0, warmup, **options))
    np.testing.assert_allclose(actual[compared], expected[compared], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("warmup", [1, 5])
def test_noam_is_the_papers_formula(warmup):
    step = np.arange(1, STEPS + 1)
    expected = 3.0 * 512**-0.5 * np.minimum(step**-0.5, step * warmup**-1.5)
    np.testing.assert_allclose(rates(noam(512, warmup, factor=3.0)), expected, rtol=1e-6)


@pytest.mark.once
@given(
    peak=st.floats(1e-6, 1.0),
    warmup=st.integers(0, 20),
    rest=st.integers(1, 30),
    end=st.floats(0.0, 1.0),
    decay=st.sampled_from(["linear", "cosine", "wsd"]),
    first=st.integers(0, 1),
)
def test_rises_falls_and_ends(peak, warmup, rest, end, decay, first):
    extra = {"decay_steps": (rest + 1) // 2} if decay == "wsd" else {}
    total = warmup + rest
    schedule = WarmupSchedule(peak, warmup, total, decay, end=end * peak, first_step=first, **extra)
    values = rates(schedule, total + 5)
    top = max(warmup - first, 0)
    assert (np.diff(values[: top + 1]) > 0).all()
    assert (np.diff(values[top:]) <= 1e-7 * peak).all()
    if warmup >= first:
        np.testing.assert_allclose(values[top], peak, rtol=1e-6)
    np.testing.assert_allclose(values[total - first :], end * peak, rtol=1e-5, atol=1e-6 * peak)
    assert values[0] == pytest.approx(0.0) or first or warmup == 0


def test_float32_under_another_policy():
    keras.config.set_dtype_policy("bfloat16")
    schedule = WarmupSchedule(1.0, 1000, decay="constant")
    assert numpy(schedule(keras.ops.convert_to_tensor(999))) == np.float32(0.999)


def test_trains_and_survives_a_file(tmp_path):
    schedule = WarmupSchedule(0.5, 2, 6, "wsd", decay_steps=3, end=0.1, cooldown="sqrt", first_step=1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(schedule), "mean_absolute_error")
    x, y = np.ones((1, 1), "float32"), np.full((1, 1), -50.0, "float32")
    seen = []
    for _ in range(3):  # the gradient is 1
        before = numpy(model.weights[0]).item()
        model.train_on_batch(x, y)
        seen.append(before - numpy(model.weights[0]).item())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    for _ in range(4):
        before = numpy(again.weights[0]).item()
        again.train_on_batch(x, y)
        seen.append(before - numpy(again.weights[0]).item())
    np.testing.assert_allclose(seen, rates(schedule, 7), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="the other backends trace it in fit, above")
def test_is_traced_by_jax():
    import jax

    schedule = WarmupSchedule(1.0, 4, 20, "cosine")
    np.testing.assert_allclose(jax.jit(schedule)(7), schedule(7), rtol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(warmup_steps=5), "needs total_steps"),
        (dict(warmup_steps=5, decay="cosin", total_steps=9), "Did you mean 'cosine'"),
        (dict(warmup_steps=-1, total_steps=9), "warmup_steps must be an integer from 0"),
        (dict(warmup_steps=9, total_steps=9), "must leave room"),
        (dict(warmup_steps=5, total_steps=9, decay="wsd", decay_steps=6), "must leave room"),
        (dict(warmup_steps=5, total_steps=9, decay="wsd"), "needs decay_steps"),
        (dict(warmup_steps=5, total_steps=9, decay_steps=2), "decay_steps has no effect"),
        (dict(warmup_steps=5, total_steps=9, cooldown="sqrt"), "cooldown has no effect"),
        (dict(warmup_steps=5, total_steps=9, decay="wsd", decay_steps=2, cooldown="root"), "cooldown must be one of"),
        (dict(warmup_steps=5, total_steps=9, decay="constant"), "total_steps has no effect"),
        (dict(warmup_steps=5, end=0.1, decay="inverse_sqrt"), "end has no effect"),
        (dict(warmup_steps=0, decay="inverse_sqrt"), "at least 1"),
        (dict(warmup_steps=5, total_steps=9, end=2.0), "end must be from 0 to peak"),
        (dict(peak=0.0, warmup_steps=5, total_steps=9), "peak must be a positive"),
    ],
)
def test_refuses(arguments, says):
    with pytest.raises(ValueError, match=says):
        WarmupSchedule(**{"peak": 1.0, **arguments})


@pytest.mark.once
def test_noam_refuses():
    with pytest.raises(ValueError, match="factor must be positive"):
        noam(512, factor=-1.0)
    with pytest.raises(ValueError, match="hidden_dim must be a positive integer"):
        noam(0)
