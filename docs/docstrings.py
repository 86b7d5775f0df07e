"""Reads this library's docstrings as the documentation generator knows them.

"Call arguments" document a layer's `call`, which is not in the constructor's signature; "Example" holds a doctest; a line
of "Args" or "Attributes" may describe several names at once, "gated, use_bias: Of the blocks."; and the attributes of a
dataclass are its constructor's arguments, so they are shown with their defaults.
"""

from __future__ import annotations

import re

import griffe

HEADINGS = (
    (re.compile(r"^( *)Call arguments([^:\n]*):[ ]*$", re.MULTILINE), r"\1Other Args: Call arguments\2:"),
    (re.compile(r"^( *)Example:[ ]*$", re.MULTILINE), r"\1Examples:"),
)
SECTION = re.compile(r"^( *)(?:Args|Attributes|Other Args:[^\n]*):[ ]*$")
NAMES = re.compile(r"(\w+(?:, \w+)+): (.*)")


def split_names(docstring: str) -> str:
    """The docstring with a line for each name where one line describes several."""
    lines: list[str] = []
    indent: int | None = None  # of the section's heading, within one
    rest = docstring.split("\n")
    while rest:
        line = rest.pop(0)
        depth = len(line) - len(line.lstrip())
        heading = SECTION.match(line)
        if heading:
            indent = len(heading[1])
        elif line.strip() and indent is not None and depth <= indent:
            indent = None
        elif indent is not None and depth == indent + 4:
            while line.endswith(",") and ":" not in line and rest:  # names over several lines
                line = f"{line} {rest.pop(0).strip()}"
            several = NAMES.match(line.strip())
            if several:
                text = [several[2]]
                while rest and len(rest[0]) - len(rest[0].lstrip()) > depth:
                    text.append(rest.pop(0).strip())
                lines += [f"{' ' * depth}{name}: {' '.join(text)}" for name in several[1].split(", ")]
                continue
        lines.append(line)
    return "\n".join(lines)


class Headings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        """For every module, class and function."""
        if obj.docstring is None:
            return
        text = obj.docstring.value
        for pattern, replacement in HEADINGS:
            text = pattern.sub(replacement, text)
        if any("dataclass" in str(decorator.value) for decorator in getattr(obj, "decorators", ())):
            text = re.sub(r"^( *)Attributes:[ ]*$", r"\1Args:", text, count=1, flags=re.MULTILINE)
        obj.docstring.value = split_names(text)
