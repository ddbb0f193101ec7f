"""Claims about the words of the code: messages, docstrings, comments and names are in plain technical English."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from .idioms import find_idioms

PACKAGE = Path(__file__).resolve().parents[1] / "peftlab"

# What is right although a pattern finds it, with the reason.
ALLOWED = {
    r"`rates`|`rate_factors`|--rates\b": "fields of comparison files and an option, kept for files of version 0.1.0",
    r"^(default |parse )?rates?( factors| extensions)?$": "the names of these fields in code, and of one in a loop",
    r"rate_(factors|extensions)": "the same fields in comparison files",
    r"-rate-": "a part of the names of run directories, by which a comparison of version 0.1.0 is found",
}

TAGS = re.compile(r"<(script|style)\b.*?</\1>|\{[{%#].*?[}%#]\}|<[^>]*>", re.DOTALL)


def files_of(room: str) -> list[Path]:
    """Return the modules and templates of a folder, or a single module."""
    single = PACKAGE / f"{room}.py"
    return [single] if single.is_file() else files_under(PACKAGE / room)


def files_under(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in TEXTS)


def read_module(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every comment, string and name of a module."""
    source = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    yield from texts_in(ast.parse(source))


def texts_in(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of the strings and names in a node. A name is given as words: `takeUp` as `take up`."""
    inner = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        inner = [part for part in inner if not isinstance(part, ast.Constant)]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif isinstance(node, ast.Name | ast.arg | ast.Attribute | ast.FunctionDef | ast.ClassDef):
        (name,) = (getattr(node, field) for field in ("id", "arg", "attr", "name") if hasattr(node, field))
        yield node.lineno, re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).replace("_", " ").strip().lower()
    for child in inner:
        yield from texts_in(child)


def read_template(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what a page's template says, without its tags."""
    yield 1, TAGS.sub(" ", path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a shell script or a recipe."""
    yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


TEXTS = {".py": read_module, ".html": read_template, ".yaml": read_lines, "": read_lines}


def idioms_of(path: Path) -> list[str]:
    """Return the forbidden idioms of a file, each with its place."""
    found = []
    for line, text in TEXTS[path.suffix](path):
        for allowed in ALLOWED:
            text = re.sub(allowed, "NAME", text)
        found += [f"{path.name}:{line}: {idiom}" for idiom in find_idioms(text)]
    return found


ROOMS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("room", ROOMS)
def test_words_are_plain(room):
    assert [idiom for path in files_of(room) for idiom in idioms_of(path)] == []


@pytest.mark.parametrize("folder", ["scripts", "configs", "recipes"])
def test_words_around_the_package_are_plain(folder):
    files = files_under(PACKAGE.parent / folder)
    assert files and [idiom for path in files for idiom in idioms_of(path)] == []


def test_an_idiom_is_found_in_strings_comments_docstrings_and_names(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        '"""The folder holds a run."""\n'
        "# The next step goes on.\n"
        "def take_up(told):\n"
        "    raise ValueError(f'{told} is no {told}')\n"
        "class HoldsRows:\n"
        "    rates = 'the rate'\n",
        encoding="utf-8",
    )
    places = [(found.split(":")[1], found.rpartition("say ")[2]) for found in idioms_of(module)]
    assert sorted(places) == [
        ("1", "contains"),
        ("2", "continues, resumes"),
        ("3", "given, reported"),
        ("3", "restore, reopen"),
        ("4", "given, reported"),
        ("4", "given, reported"),
        ("4", "is not a valid ..."),
        ("5", "contains"),
        ("6", "learning rate"),
    ]
