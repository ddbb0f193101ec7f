"""YAML text as plain values, with the line of every key: YAML 1.2, data only, within fixed limits."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from peftlab.errors import Problem, RecipeError

LIMIT_BYTES = 1_000_000
LIMIT_NODES = 10_000
LIMIT_DEPTH = 20
LIMIT_DIGITS = 40
LIMIT_KEY_SHOWN = 60

KeyPath = tuple[str | int, ...]

# The core schema of YAML 1.2.2, section 10.3.2: `no` is a text, `1e-4` a number.
NULL = re.compile(r"null|Null|NULL|~|")
BOOLEAN = re.compile(r"true|True|TRUE|false|False|FALSE")
INTEGER = re.compile(r"[-+]?[0-9]+")
RADIX_INTEGER = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Source:
    """The values of one YAML text (lists as tuples), the line of every key path, and the problems of the text."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read_text(path: Path) -> str:
    """Return the text of a recipe file. Raises RecipeError, one line, for anything but a small UTF-8 file."""
    try:
        with open(path, "rb") as file:
            content = file.read(LIMIT_BYTES + 1)
    except FileNotFoundError:
        raise fatal("no such file", path) from None
    except IsADirectoryError:
        raise fatal("is a folder, not a recipe file", path) from None
    except (OSError, ValueError) as error:
        raise fatal(f"cannot be read: {getattr(error, 'strerror', None) or error}", path) from None
    if len(content) > LIMIT_BYTES:
        raise fatal(f"is larger than {LIMIT_BYTES:,} bytes, too large for a recipe", path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise fatal("is not UTF-8 text; save it in that encoding", path, line) from None


def parse_yaml(text: str, file: str | None) -> Source:
    """Parse one YAML document. Raises RecipeError if it cannot be parsed; other faults are in `problems`.

    What is returned is the caller's own, to be changed.
    """
    return copy.deepcopy(_parse(text, file))


@lru_cache(maxsize=256)  # a comparison loads its recipes again for each trial, which takes 20 ms of parsing each
def _parse(text: str, file: str | None) -> Source:
    try:
        return Parser(text, file).parse()
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise fatal(f"not valid YAML: {explain_syntax(error)}", file, mark.line + 1 if mark else None) from None
    except YAMLError as error:
        reason = getattr(error, "reason", None) or str(error).splitlines()[0]
        raise fatal(f"not valid YAML: {reason}", file) from None


def explain_syntax(error: MarkedYAMLError) -> str:
    """Return the syntax error in one line of plain words."""
    fault = " ".join(str(error.problem or error.context).split())
    if "'\\t'" in fault:
        return "a tab in the indentation; use spaces"
    if "mapping values are not allowed" in fault:
        return "a second ': ' on one line; quote the text or fix the indentation"
    return fault


def parse_scalar(text: str) -> Any:
    """Return the value of an unquoted scalar by the core schema of YAML 1.2."""
    if NULL.fullmatch(text):
        return None
    if BOOLEAN.fullmatch(text):
        return text.lower() == "true"
    if len(text) > LIMIT_DIGITS:
        return text
    if INTEGER.fullmatch(text):
        return int(text)
    if RADIX_INTEGER.fullmatch(text):
        return int(text, 0)
    if NUMBER.fullmatch(text):
        return float(text)
    if NOT_FINITE.fullmatch(text):
        return float(text.replace(".", "", 1))
    return text


def fatal(message: str, file: str | Path | None, line: int | None = None) -> RecipeError:
    return RecipeError([Problem("", message, str(file) if file else None, line)])


class Parser:
    """Builds values from the events of one document; counts nodes, aliases included, to limit their number."""

    def __init__(self, text: str, file: str | None):
        self.events: Iterator[Event] = YAML(typ="safe", pure=True).parse(text)
        self.file = file
        self.source = Source()
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.nodes = 0

    def parse(self) -> Source:
        documents = 0
        for event in self.events:
            if isinstance(event, StreamEndEvent):
                break
            if isinstance(event, DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise fatal("contains a second YAML document; write one recipe per file", self.file, line_of(event))
                self.source.value = self.read_node(next(self.events), ())
        return self.source

    def read_node(self, event: Event, path: KeyPath) -> Any:
        """Return the value that starts with `event`."""
        if len(path) > LIMIT_DEPTH:
            raise fatal(f"is nested deeper than {LIMIT_DEPTH} levels", self.file, line_of(event))
        self.source.lines.setdefault(path, line_of(event))
        before = self.nodes
        self.count_nodes(1, event)
        if isinstance(event, AliasEvent):
            return self.read_alias(event)
        assert isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent)  # no other event begins a node
        if event.tag is not None:
            self.report(path, f"tags such as {event.tag!r} are not allowed in a recipe", event)
        value = self.read_content(event, path)
        if event.anchor:
            self.anchors[event.anchor] = (value, self.nodes - before)
        return value

    def read_content(self, event: Event, path: KeyPath) -> Any:
        if isinstance(event, MappingStartEvent):
            return self.read_mapping(path)
        if isinstance(event, SequenceStartEvent):
            return self.read_sequence(path)
        assert isinstance(event, ScalarEvent)  # the third and last kind of node
        return parse_scalar(event.value) if event.style is None else event.value

    def read_alias(self, event: AliasEvent) -> Any:
        if event.anchor not in self.anchors:
            raise fatal(f"alias *{one_line(event.anchor)} has no anchor before it", self.file, line_of(event))
        value, nodes = self.anchors[event.anchor]
        self.count_nodes(nodes, event)
        return value

    def read_sequence(self, path: KeyPath) -> tuple[Any, ...]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            items.append(self.read_node(event, (*path, len(items))))
        return tuple(items)

    def read_mapping(self, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.read_key(event, path)
            key_path = (*path, key)
            if key in values:
                first = self.source.lines[key_path]
                self.report(key_path, f"given twice; first on line {first}", event)
                self.read_node(next(self.events), key_path)
                continue
            self.source.lines.setdefault(key_path, line_of(event))
            values[key] = self.read_node(next(self.events), key_path)
        return values

    def read_key(self, event: Event, path: KeyPath) -> str:
        if not isinstance(event, ScalarEvent):
            raise fatal("a key must be a plain name", self.file, line_of(event))
        self.count_nodes(1, event)
        return event.value

    def count_nodes(self, count: int, event: Event) -> None:
        self.nodes += count
        if self.nodes > LIMIT_NODES:
            raise fatal(f"contains more than {LIMIT_NODES:,} values, counting aliases", self.file, line_of(event))

    def report(self, path: KeyPath, message: str, event: Event) -> None:
        self.source.problems.append(Problem(dotted(path), message, self.file, line_of(event)))


def line_of(event: Event) -> int:
    return event.start_mark.line + 1


def dotted(path: KeyPath) -> str:
    """Return a key path as users write it, on one line: `method.targets[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{one_line(part)}" for part in path).removeprefix(".")


def one_line(key: str) -> str:
    return key if key.isprintable() and len(key) <= LIMIT_KEY_SHOWN else repr(key[:LIMIT_KEY_SHOWN])
