"""The README and the pages, and what their code blocks contain."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "peftlab" / "docs"
PAGES = sorted(DOCS.glob("*.md"))
FILES = [REPOSITORY / "README.md", *PAGES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One code block: the page, the line of its first line, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(language: str) -> list[Block]:
    """Return the code blocks of one language in the README and in all pages."""
    return [block for path in FILES for block in blocks_of(path) if block.language == language]


def blocks_of(path: Path) -> Iterator[Block]:
    text = read(path)
    for match in FENCE.finditer(text):
        yield Block(path.name, text[: match.start(2)].count("\n") + 1, match[1], match[2])


def prose(text: str) -> str:
    """Return a page's text in one line, without code, where words may be anything."""
    return " ".join(re.sub(r"`[^`]*`", "CODE", FENCE.sub("", text)).split())
