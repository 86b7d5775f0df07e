"""Paragraphs of the standard library's docstrings, whose words the parsed code tags: names of what it defines.

What would give a name away is taken out: back quotes, asterisks, reStructuredText's roles and the parentheses of calls.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from _stdlib_code import Definition, Source, is_property, parameters_of, sources

TYPES = ("CLASS", "EXCEPTION", "FUNCTION", "MODULE", "PARAMETER")
MIN_WORDS, MAX_WORDS = 6, 40
ARTICLES = frozenset(("a", "an", "the", "this", "that", "its", "their", "your", "each", "every", "no", "any"))
BEFORE_MODULE, AFTER_MODULE = frozenset(("module", "package", "import")), frozenset(("module", "package"))
ENDS = frozenset(".:!?")
ROLE = re.compile(r":(?:py:)?(?:class|func|meth|mod|exc|data|attr|ref|const|term):(?=`)")
PIECE = re.compile(
    r"(?P<open>`+|(?<![\w*])\*{1,2}(?=\w))?~?(?:self\.|cls\.)?(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)"
    r"(?P<close>`+|\*{1,2}(?!\w))?(?P<call>\(\))?|\w+|[^\w\s`]"
)
SPELT_AS_NAME = re.compile(r"[a-z][A-Z]|[A-Z][A-Z][a-z]|[^_]_|_[^_]")  # no word of English looks so


class Row(NamedTuple):
    """A paragraph: its words, their tags, and the module and the part of the library that it is from."""

    words: list[str]
    tags: list[str]
    module: str
    part: str


class Mention(NamedTuple):
    """A word, or a dotted name, of a paragraph, and whether its markup says that it is code."""

    text: str
    is_name: bool
    is_code: bool


def entity_rows() -> list[Row]:
    """All paragraphs of docstrings, each once, even where only numbers differ.

    Raises:
        ValueError: if this Python has no sources of its library.
    """
    files = sources()
    paragraphs = [(mentions(text), given, file) for file in files for text, given in paragraphs_of(file)]
    names = Names(files, plain_words(found for found, *_ in paragraphs))
    rows: dict[str, Row] = {}
    for found, parameters, file in paragraphs:
        words, tags = names.tagged(found, parameters, file.module)
        if len(words) >= MIN_WORDS:
            rows.setdefault(re.sub(r"\w*\d\w*", "0", " ".join(words)), Row(words, tags, file.module, file.part))
    return list(rows.values())


def paragraphs_of(file: Source) -> Iterator[tuple[str, frozenset[str]]]:
    """Paragraphs of prose in docstrings, and the names of the parameters of what they document."""
    documented: list[tuple[Definition | ast.Module, frozenset[str]]] = [(file.tree, frozenset())]
    for node in file.definitions:
        documented.append((node, frozenset(part.arg for part in parameters_of(node))))
    for node, parameters in documented:
        for text in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
            if ">>>" not in text and "::" not in text:
                yield text, parameters


def mentions(text: str) -> list[Mention]:
    """The words of a paragraph, without the marks of code."""
    found = []
    for match in PIECE.finditer(ROLE.sub("", text)):
        name = match["name"]
        is_code = bool(match["call"] or (match["open"] and match["close"]))
        found.append(Mention(name or match[0], name is not None, is_code))
    return found


def plain_words(paragraphs: Iterable[list[Mention]]) -> frozenset[str]:
    """Words that more than once follow an article: they are English too."""
    counts: Counter[str] = Counter()
    for found in paragraphs:
        for before, word in pairwise(found):
            if before.text.lower() in ARTICLES and not word.is_code:
                counts[word.text.lower()] += 1
    return frozenset(word for word, count in counts.items() if count > 1)


class Names:
    """What the library's names stand for.

    Args:
        files: All of them.
        plain: Words of English.
    """

    def __init__(self, files: Sequence[Source], plain: frozenset[str]):
        self.plain = plain
        self.modules = {*(file.module for file in files), *sys.stdlib_module_names, "os.path"} - ARTICLES
        self.exceptions = exceptions(files)
        self.scopes = {file.module: self.defined(file.definitions) for file in files}
        types: dict[str, set[str]] = defaultdict(set)
        for scope in self.scopes.values():
            for name, kind in scope.items():
                types[name].add(kind)
        for name, value in vars(builtins).items():
            if callable(value):
                is_class = isinstance(value, type)
                types[name].add("EXCEPTION" if name in self.exceptions else "CLASS" if is_class else "FUNCTION")
        self.owners = {file.module.partition(".")[0] for file in files} | types.keys()  # not `sys`, which has no source
        self.everywhere = {name: next(iter(kinds)) for name, kinds in types.items() if len(kinds) == 1}

    def defined(self, definitions: list[Definition]) -> dict[str, str]:
        """The type of each name that a file defines; a class goes before a function of its name."""
        found = {}
        for node in sorted(definitions, key=lambda node: isinstance(node, ast.ClassDef)):
            if isinstance(node, ast.ClassDef):
                found[node.name] = "EXCEPTION" if node.name in self.exceptions else "CLASS"
            elif not is_property(node):
                found[node.name] = "FUNCTION"
        return found

    def tagged(self, found: list[Mention], parameters: frozenset[str], module: str) -> tuple[list[str], list[str]]:
        """Words and their tags; a dotted name becomes several words."""
        words: list[str] = []
        tags: list[str] = []
        texts = [".", *(mention.text.lower() for mention in found), "."]
        for mention, before, after in zip(found, texts, texts[2:], strict=False):
            kind = self.type_of(mention, before, after, parameters, module) if mention.is_name else None
            parts = re.findall(r"\w+|[^\w\s]", mention.text)
            words += parts
            tags += ["O"] * len(parts) if kind is None else [f"B-{kind}"] + [f"I-{kind}"] * (len(parts) - 1)
        return words[:MAX_WORDS], tags[:MAX_WORDS]

    def type_of(self, mention: Mention, before: str, after: str, parameters: frozenset[str], module: str) -> str | None:
        """What a name stands for between its neighbours; None for a word.

        A parameter is meant by its name but after an article; what is spelt as English is meant only where it is marked as
        code, or written in upper case within a sentence, as classes are.
        """
        name, scope = mention.text, self.scopes[module]
        if name in parameters and name != "a":
            return "PARAMETER" if mention.is_code or before not in ARTICLES else None
        owner, _, last = name.rpartition(".")
        is_marked = mention.is_code and len(name) > 1
        if name in self.modules:
            is_beside = before in BEFORE_MODULE or after in AFTER_MODULE
            is_free = name not in self.plain and name not in scope and name not in self.everywhere
            if owner or is_beside or (is_free and len(name) > 2):
                return "MODULE"
        if owner and owner.partition(".")[0] not in self.owners | scope.keys():
            return None
        if is_marked or owner or SPELT_AS_NAME.search(name):
            return scope.get(last) or self.everywhere.get(last)
        is_capitalized = name[0].isupper() and not name.isupper()
        is_first = before in ENDS and name.lower() in self.plain
        kind = scope.get(name) if is_capitalized and not is_first else None
        return None if kind == "FUNCTION" else kind


def exceptions(files: Sequence[Source]) -> set[str]:
    """Names of classes that are derived from exceptions."""
    bases: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for node in file.definitions:
            if isinstance(node, ast.ClassDef):
                bases[node.name] |= {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    found = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    while new := {name for name, above in bases.items() if above & found} - found:
        found |= new
    return found
