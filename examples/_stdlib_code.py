"""The running Python's standard library as syntax trees: parsed, never imported."""

from __future__ import annotations

import ast
import functools
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from _stdlib_docstrings import PARTS, source_files

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function


class Source(NamedTuple):
    """A file: the part of the library that it belongs to, the module's name, its tree and all that it defines."""

    part: str
    module: str
    tree: ast.Module
    definitions: list[Definition]


@functools.cache
def sources() -> tuple[Source, ...]:
    """All files of the library but for tests, and for those that are for other versions of Python; read once.

    Raises:
        ValueError: if this Python has no sources of its library.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for part, names in PARTS.items():
        for name in names.split():
            for path in source_files(library, name):
                if (tree := _parsed(path)) is not None:
                    module = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
                    found.append(Source(part, module, tree, list(_definitions(tree))))
    if not found:
        raise ValueError(f"{library} holds no sources of the standard library to read docstrings from.")
    return tuple(found)


def _parsed(path: Path) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in old files
        try:
            return ast.parse(path.read_bytes())
        except SyntaxError:
            return None


def _definitions(node: ast.AST) -> Iterator[Definition]:
    """Classes and functions within, at any depth of statements."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            if isinstance(child, Definition):
                yield child
            yield from _definitions(child)


def parameters_of(node: Definition) -> list[ast.arg]:
    """A function's parameters but for `self` and `cls`; a class has those of its `__init__`."""
    if isinstance(node, ast.ClassDef):
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        return parameters_of(made[0]) if made else []
    given = node.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    return [part for part in every if part is not None and part.arg not in ("self", "cls")]


def is_property(node: Definition) -> bool:
    """Whether a decorator makes it an attribute, which is read, not called."""
    for decorator in node.decorator_list:
        name = decorator.attr if isinstance(decorator, ast.Attribute) else getattr(decorator, "id", None)
        if name in ("property", "cached_property", "setter", "getter", "deleter", "DynamicClassAttribute"):
            return True
    return False


def by_package(modules: list[str]) -> list[str]:
    """The package of each module, or the module if it is in none: what is held out is whole packages."""
    return [module.partition(".")[0] for module in modules]
