"""Set-up that all tests share: the backend, seeds, the dtype policy, hypothesis."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
if os.environ["KERAS_BACKEND"] == "jax" and version("jaxlib").startswith("0.10."):
    # Halves the compile time of the many tiny programs. XLA aborts on a flag it does not know, hence the version.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false".strip()

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("helpers")

settings.register_profile(
    "keras_tfm", deadline=None, derandomize=True, max_examples=12, suppress_health_check=list(HealthCheck)
)
settings.load_profile("keras_tfm")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )  # Keras on torch


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seeds and leaves the global dtype policy as it was."""
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _fresh_compilations():
    """JAX keeps every program it compiled; a thousand tests' worth of them ends the process."""
    yield
    if keras.backend.backend() == "jax":
        import gc

        import jax

        jax.clear_caches()
        gc.collect()
