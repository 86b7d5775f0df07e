"""What `import keras_tfm` needs and brings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers import BACKEND


def run(code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "KERAS_BACKEND": BACKEND}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)


def test_a_missing_backend_is_named_with_the_way_to_it():
    found = run(f"import sys; sys.modules[{BACKEND!r}] = None\nimport keras_tfm")
    assert found.returncode == 1
    assert f"Keras is set to compute with {BACKEND}, which is not installed" in found.stderr
    assert f"keras_tfm[{BACKEND}]" in found.stderr


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it is the backend")
def test_tensorflow_is_imported_only_where_it_computes():
    code = "import sys, keras_tfm, keras_tfm.training as t; t.load_adapter; print('tensorflow' in sys.modules)"
    found = run(code)
    assert found.stdout.split() == ["False"], found.stderr
