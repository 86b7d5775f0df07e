"""Set-up that all tests share: the backend, seeds, the dtype policy, hypothesis."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
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
BACKEND = keras.backend.backend()
if os.environ["KERAS_BACKEND"] == "jax" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # For the processes that tests start, some of them many times. (pytest's workers find it too; see below.)
    CACHE = tempfile.mkdtemp(prefix="keras_tfm-compiled-")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

settings.register_profile(
    "keras_tfm", deadline=None, derandomize=True, max_examples=12, suppress_health_check=list(HealthCheck)
)
settings.load_profile("keras_tfm")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
    )  # Keras on torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if BACKEND != "tensorflow" and not os.environ.get("KERAS_TFM_ALL_TESTS"):
        reason = "the same on every backend, and seen on TensorFlow; KERAS_TFM_ALL_TESTS=1 runs it here too"
        for item in items:
            if item.get_closest_marker("once"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _same_start():
    """Every test starts from the same seeds and leaves the global dtype policy as it was."""
    policy = keras.config.dtype_policy()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy(policy)


@pytest.fixture(scope="session", autouse=True)
def _many_tiny_programs() -> Iterator[None]:
    """JAX compiles each eager operation: quickly rather than well, here. torch gains nothing from threads at this size."""
    gc.freeze()
    if BACKEND == "jax":
        import jax

        jax.config.update("jax_disable_most_optimizations", True)
        jax.config.update("jax_enable_compilation_cache", False)  # thousands of tiny files
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    elif BACKEND == "torch":
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
    else:
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True, scope="module")
def _nothing_left_behind():
    """JAX keeps every program it compiled; a thousand tests' worth of them ends the process.

    Keras collects garbage whenever a layer loses a weight, as in `quantize`: what other modules left is passed over.
    """
    yield
    if BACKEND == "jax":
        import jax

        jax.clear_caches()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def several_blocks() -> Iterator[None]:
    """Blocks of attention so small that sequences of some six tokens have several."""
    from keras_tfm.ops.kernels import blockwise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "QUERIES", 3)
        patch.setattr(blockwise, "KEYS", 2)
        yield


@pytest.fixture
def flex_with_gradients() -> Iterator[None]:
    """FlexAttention on a CPU has a dense backward pass that torch refuses to run: good enough to compare with."""
    with pytest.MonkeyPatch.context() as patch:
        if BACKEND == "torch":
            from torch.nn.attention import flex_attention

            from keras_tfm.ops.kernels import flex

            patch.setattr(flex_attention, "_validate_device", lambda *tensors: None)
            patch.setattr(flex, "_refused_by_cpu", lambda request: None)
        yield
