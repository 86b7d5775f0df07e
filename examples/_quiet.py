"""Keeps TensorFlow's start-up notes off the screen."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What is written to standard error within, by C++ libraries too, is shown only if an exception leaves the block."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            notes.seek(0)
            os.write(shown, notes.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
