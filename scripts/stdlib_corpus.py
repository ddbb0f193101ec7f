"""Owns which standard-library text the built-in tasks use and which is left for pretraining the tiny model."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Topic -> split -> top-level modules. A module is in one split of one topic, for all built-in data sets; `identifiers`
# takes its evaluation split out of the training modules.
# pdb is left out on purpose: its manual is part of pydoc_data, which the tiny model reads.
TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "internet": {
        "train": (
            "http",
            "urllib",
            "nturl2path",
            "ftplib",
            "smtplib",
            "poplib",
            "nntplib",
            "smtpd",
            "socket",
            "ssl",
            "xmlrpc",
            "ipaddress",
            "wsgiref",
            "netrc",
            "webbrowser",
        ),
        "test": ("imaplib", "socketserver", "telnetlib", "asyncore", "asynchat"),
    },
    "concurrency": {
        "train": ("asyncio", "multiprocessing", "subprocess", "sched"),
        "test": ("threading", "_threading_local", "concurrent", "queue", "selectors"),
    },
    "files": {
        "train": (
            "tarfile",
            "shutil",
            "bz2",
            "os",
            "posixpath",
            "ntpath",
            "genericpath",
            "_pyio",
            "io",
            "stat",
            "glob",
            "tempfile",
            "filecmp",
            "fileinput",
            "_compression",
            "zipapp",
            "fnmatch",
        ),
        "test": ("pathlib", "zipfile", "gzip", "lzma"),
    },
    "numbers": {
        "train": (
            "_pydecimal",
            "decimal",
            "datetime",
            "_pydatetime",
            "random",
            "numbers",
            "_strptime",
            "zoneinfo",
            "colorsys",
            "bisect",
            "heapq",
        ),
        "test": ("statistics", "fractions", "calendar"),
    },
    "messages": {
        "train": ("email", "xml", "html", "_markupbase", "mimetypes", "quopri", "base64", "uu"),
        "test": ("mailbox", "mailcap", "binhex"),
    },
    "windows": {
        "train": ("tkinter", "idlelib"),
        "test": ("turtle", "turtledemo", "curses"),
    },
    "language": {
        "train": (
            "importlib",
            "inspect",
            "typing",
            "pkgutil",
            "zipimport",
            "enum",
            "abc",
            "_py_abc",
            "functools",
            "weakref",
            "types",
            "traceback",
            "copyreg",
            "linecache",
            "tokenize",
        ),
        "test": ("ast", "dis", "symtable", "dataclasses", "contextlib", "runpy", "pyclbr", "modulefinder"),
    },
}
TASK_MARKER = "# Summary:"
# Tests of task modules whose file names do not begin with the module's name.
OTHER_TASK_TESTS = (
    "abstract_numbers",
    "bufio",
    "bytecode_helper",
    "cookie",
    "docxmlrpc",
    "file",
    "fork_wait",
    "idle",
    "import",
    "largefile",
    "lock_tests",
    "memoryio",
    "minidom",
    "mp_",
    "peepholer",
    "pkg",
    "popen",
    "pulldom",
    "pyexpat",
    "robotparser",
    "sax",
    "thread",
    "tix",
    "tk",
    "ttk",
    "univnewlines",
    "unparse",
)
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
# encodings are tables; data folders contain deliberately broken sources.
SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "lib-dynload", "encodings", "data"})
MIN_FILE_BYTES, MAX_FILE_BYTES = 200, 400_000
MIN_LETTER_SHARE = 0.5


def task_modules(split: str | None = None) -> frozenset[str]:
    """Return the top-level modules that the built-in data sets draw on, in one split or in both."""
    splits = [split] if split else ["train", "test"]
    return frozenset(module for topic in TOPICS.values() for name in splits for module in topic[name])


def standard_library() -> Path:
    """Return the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def top_level_module(relative: Path) -> str:
    """Return the importable top-level name of a file given relative to the library's folder."""
    return relative.parts[0].removesuffix(".py")


def is_test_file(relative: Path) -> bool:
    return any(part in TEST_FOLDERS for part in relative.parts[:-1])


def tests_task_module(relative: Path) -> bool:
    """Say whether a path inside a test folder belongs to a task module, judged by the start of its names.

    Errs on the side of leaving out: `test_iotests` goes with `io`.
    """
    stems = [part.removesuffix(".py").lstrip("_").removeprefix("test_") for part in relative.parts]
    names = (*(module.lstrip("_") for module in task_modules()), *OTHER_TASK_TESTS)
    return any(stem.startswith(names) for stem in stems)


def iterate_sources(root: Path) -> Iterator[Path]:
    """Yield the library's Python files relative to `root`, in an order that does not depend on the file system."""
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        machine_made = relative.parts[0].startswith(("_sysconfigdata", "config-"))
        if SKIPPED_FOLDERS.isdisjoint(relative.parts) and not machine_made:
            yield relative


def list_corpus_files(root: Path | None = None) -> list[Path]:
    """List the files that the tiny model may read, relative to `root`: none of a task module or of its tests."""
    root = root or standard_library()
    return [relative for relative in iterate_sources(root) if is_allowed(relative)]


def is_allowed(relative: Path) -> bool:
    if top_level_module(relative) in task_modules():
        return False
    return not (is_test_file(relative) and tests_task_module(relative))


def is_prose_or_code(text: str) -> bool:
    """Tell source from tables of numbers, escapes and foreign scripts, which would waste a small model's capacity."""
    letters = sum(character.isascii() and (character.isalpha() or character == " ") for character in text)
    return MIN_FILE_BYTES <= len(text) <= MAX_FILE_BYTES and letters / len(text) >= MIN_LETTER_SHARE


def read_corpus(root: Path | None = None) -> list[tuple[str, str]]:
    """Read (name, text) of every corpus document; equal texts once, the manual's pages as pages of text."""
    root = root or standard_library()
    seen: set[bytes] = set()
    documents: list[tuple[str, str]] = []
    for relative in list_corpus_files(root):
        for name, text in read_documents(root, relative):
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in seen and is_prose_or_code(text) and TASK_MARKER not in text:
                seen.add(digest)
                documents.append((name, text))
    return documents


def read_documents(root: Path, relative: Path) -> list[tuple[str, str]]:
    try:
        text = (root / relative).read_text(encoding="utf-8").strip() + "\n"
    except UnicodeDecodeError:
        return []
    if relative.as_posix() == "pydoc_data/topics.py":
        return read_manual_pages(text)
    return [(relative.as_posix(), text)]


def read_manual_pages(source: str) -> list[tuple[str, str]]:
    """Read the language reference's pages out of the dictionary literal that pydoc keeps them in."""
    tables = [node.value for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    pages: dict[str, str] = ast.literal_eval(tables[0])
    return [(f"pydoc_data/topics/{name}", page.strip() + "\n") for name, page in sorted(pages.items())]
