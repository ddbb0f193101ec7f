"""Owns what the library's definitions say of a name: an exception, a class, a parameter or plain English."""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from stdlib_definitions import Definition, Documented, Function

# A word that is not part of a longer name, and that no markup surrounds.
BARE_WORD = re.compile(r"(?<![\w.'\"`*])[A-Za-z_]\w*(?![\w(`*'\"])")
ALWAYS_ORDINARY = frozenset({"a", "A", "i", "I"})
MIN_ORDINARY_USES = 3


@dataclass(frozen=True)
class Lexicon:
    """Names by what they are; `classes` gives the top-level modules that define each public class."""

    exceptions: frozenset[str]
    classes: dict[str, frozenset[str]]
    parameters: frozenset[str]
    ordinary: frozenset[str]


def build_lexicon(definitions: Iterable[Definition]) -> Lexicon:
    definitions = list(definitions)
    nodes = [definition.node for definition in definitions]
    exceptions = find_exceptions([node for node in nodes if isinstance(node, ast.ClassDef)])
    classes: dict[str, set[str]] = defaultdict(set)
    for definition in definitions:
        node = definition.node
        if isinstance(node, ast.ClassDef) and re.match(r"[A-Z]\w\w", node.name) and node.name not in exceptions:
            classes[node.name].add(definition.place.top_level)
    return Lexicon(
        exceptions=exceptions,
        classes={name: frozenset(modules) for name, modules in classes.items()},
        parameters=frozenset().union(*map(parameters_of, nodes)),
        ordinary=find_ordinary_words(nodes),
    )


def parameters_of(node: Documented) -> frozenset[str]:
    """Return the names in a function's signature, or in that of a class's `__init__`; empty for a module."""
    if isinstance(node, ast.ClassDef):
        found = (child for child in node.body if isinstance(child, Function) and child.name == "__init__")
        return parameters_of(init) if (init := next(found, None)) else frozenset()
    if not isinstance(node, Function):
        return frozenset()
    given = node.args
    extra = [argument for argument in (given.vararg, given.kwarg) if argument]
    return frozenset(argument.arg for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs, *extra])


def find_exceptions(classes: list[ast.ClassDef]) -> frozenset[str]:
    """Return the built-in exceptions and the capitalised classes that derive from one, by the names of their bases."""
    found = {name for name, value in vars(builtins).items() if is_exception(value)}
    while True:
        derived = {node.name for node in classes if not found.isdisjoint(map(last_name, node.bases))} - found
        if not derived:
            return frozenset(name for name in found if name[0].isupper())
        found |= derived


def is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def last_name(base: ast.expr) -> str:
    """Return the class name that a base such as `socket.error` ends in; empty where it is computed."""
    return base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""


def find_ordinary_words(nodes: Iterable[Documented]) -> frozenset[str]:
    """Return the words that docstrings use as plain English.

    A word of two letters or more is ordinary where at least 3 docstrings use it without having such a parameter, and at
    least half as many as use it with one.
    """
    own: Counter[str] = Counter()
    foreign: Counter[str] = Counter()
    for node in nodes:
        words, parameters = set(BARE_WORD.findall(ast.get_docstring(node) or "")), parameters_of(node)
        own.update(words & parameters)
        foreign.update(words - parameters)
    often = {word for word, uses in foreign.items() if uses >= MIN_ORDINARY_USES and 2 * uses >= own[word]}
    return frozenset(word for word in often if len(word) > 1) | ALWAYS_ORDINARY
