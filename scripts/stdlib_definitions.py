"""Owns how the definitions of the standard library's task modules are read: where each stands, and its source lines."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stdlib_corpus import TOPICS, is_test_file, iterate_sources, top_level_module

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


@dataclass(frozen=True)
class Place:
    """Where a definition stands: topic, split, dotted module and the names of the definitions around it."""

    topic: str
    split: str
    module: str
    outer: tuple[str, ...] = ()

    @property
    def top_level(self) -> str:
        return self.module.partition(".")[0]


@dataclass(frozen=True)
class Definition:
    place: Place
    node: Documented
    lines: list[str]


def split_of_modules() -> dict[str, tuple[str, str]]:
    return {m: (topic, split) for topic, splits in TOPICS.items() for split, names in splits.items() for m in names}


def iterate_definitions(root: Path) -> Iterator[Definition]:
    """Yield modules, classes and functions of all task modules in the order of path and line."""
    homes = split_of_modules()
    for relative in iterate_sources(root):
        home = homes.get(top_level_module(relative))
        if home is None or is_test_file(relative):
            continue
        source = (root / relative).read_text(encoding="utf-8")
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        yield from walk_definitions(ast.parse(source), Place(*home, module), source.splitlines())


def walk_definitions(node: ast.AST, place: Place, lines: list[str]) -> Iterator[Definition]:
    if isinstance(node, Documented):
        yield Definition(place, node, lines)
    inner = place
    if isinstance(node, ast.ClassDef | Function):
        inner = Place(place.topic, place.split, place.module, (*place.outer, node.name))
    for child in ast.iter_child_nodes(node):
        yield from walk_definitions(child, inner, lines)


def shuffled(definitions: list[Definition]) -> list[Definition]:
    """Fixed shuffle with the test split first, so that a text in both splits' reach goes to the held-out one."""
    mixed = list(definitions)
    random.Random(0).shuffle(mixed)
    return sorted(mixed, key=lambda definition: definition.place.split)
