"""Docstrings of the running Python's standard library, labelled with the part of the library that they come from.

The files are parsed, never imported. Every Python carries this data set, so it needs no download; versions differ a
little (3.12 has no `distutils`, say), and so do their docstrings.
"""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MIN_WORDS = 6
PARTS = {
    "compiler tools": (
        "ast code codeop compileall copyreg dis imp importlib inspect keyword lib2to3 modulefinder opcode "
        "pickletools pkgutil py_compile pyclbr pydoc runpy symtable tabnanny token tokenize zipimport _pyrepl "
        "_opcode_metadata annotationlib"
    ),
    "concurrency": (
        "asyncio concurrent multiprocessing queue sched selectors signal subprocess threading "
        "_threading_local _weakrefset"
    ),
    "data formats": (
        "aifc base64 binhex chunk configparser csv dbm html imghdr json _markupbase pickle plistlib quopri "
        "shelve sndhdr sqlite3 sunau tomllib uu wave xdrlib xml"
    ),
    "data types": (
        "abc array bisect collections _collections_abc contextlib copy dataclasses enum functools graphlib "
        "heapq operator pprint _py_abc reprlib types typing uuid weakref"
    ),
    "debugging": (
        "bdb cProfile faulthandler linecache logging pdb profile profiling pstats rlcompleter timeit trace "
        "traceback tracemalloc warnings"
    ),
    "files": (
        "bz2 _compression compression filecmp fileinput fnmatch genericpath glob gzip io lzma ntpath os "
        "pathlib posixpath pty _pyio shutil stat tarfile tempfile tty zipfile"
    ),
    "graphics": "curses tkinter turtle turtledemo",
    "IDLE editor": "idlelib",
    "mail": "email imaplib mailbox mailcap mimetypes poplib smtpd smtplib",
    "network": (
        "asynchat asyncore cgi cgitb ftplib http ipaddress netrc nntplib nturl2path socket socketserver ssl "
        "telnetlib urllib webbrowser wsgiref xmlrpc"
    ),
    "numbers and time": (
        "calendar colorsys datetime _pydatetime decimal _pydecimal fractions _pylong numbers random secrets "
        "statistics _strptime zoneinfo"
    ),
    "packaging": (
        "distutils ensurepip _osx_support platform site sysconfig _sysconfigdata venv zipapp _aix_support "
        "_bootsubprocess"
    ),
    "testing": "doctest unittest",
    "text": (
        "argparse cmd codecs difflib encodings getopt gettext locale optparse re shlex string stringprep textwrap"
    ),
}


@cache
def docstrings() -> tuple[list[str], list[str], list[str]]:
    """Texts, the part of the library that each is from, and its module; no text twice.

    Raises:
        ValueError: if this Python has no sources of its library.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    rows: dict[str, tuple[str, str]] = {}
    for part, names in PARTS.items():
        for name in names.split():
            for path in source_files(library, name):
                module = ".".join(path.relative_to(library).with_suffix("").parts)
                for text in docstrings_of(path):
                    rows.setdefault(text, (part, module))
    if not rows:
        raise ValueError(f"{library} holds no sources of the standard library to read docstrings from.")
    return list(rows), [part for part, _ in rows.values()], [module for _, module in rows.values()]


def source_files(library: Path, name: str) -> Iterator[Path]:
    """The files of a module or package, but for its tests."""
    if (library / f"{name}.py").is_file():
        yield library / f"{name}.py"
    for path in sorted((library / name).rglob("*.py")):
        folders = path.relative_to(library).parts[1:]
        if not any(part in ("test", "tests", "idle_test") or part.startswith("test_") for part in folders):
            yield path


def docstrings_of(path: Path, min_words: int = MIN_WORDS) -> Iterator[str]:
    """Docstrings of a file's module, classes, functions and methods that have a few words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in old files
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:
            return  # lib2to3 and its like keep files for other versions
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text.split()) >= min_words:
                yield text
