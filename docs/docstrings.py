"""Reads two headings of this library's docstrings as the documentation generator knows them.

"Call arguments" document a layer's `call`, which is not in the constructor's signature; "Example" holds a doctest.
"""

from __future__ import annotations

import re

import griffe

HEADINGS = (
    (re.compile(r"^( *)Call arguments([^:\n]*):[ ]*$", re.MULTILINE), r"\1Other Args: Call arguments\2:"),
    (re.compile(r"^( *)Example:[ ]*$", re.MULTILINE), r"\1Examples:"),
)


class Headings(griffe.Extension):
    """Rewrites the headings before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """For every module, class and function."""
        if obj.docstring is not None:
            for pattern, replacement in HEADINGS:
                obj.docstring.value = pattern.sub(replacement, obj.docstring.value)
