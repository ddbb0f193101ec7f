"""What became of every key of a foreign configuration, and the recipe that it makes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from peftlab.errors import UsageError, one_line
from peftlab.recipe.yaml_source import parse_scalar

OFF: tuple[Any, ...] = (None, False, 0, "", "false", "none", "no", "off", (), {})
ON: tuple[Any, ...] = (True, 1, "true", "yes", "on", "1")
# YAML 1.1 lets a number have these between its digits.
GROUPED = re.compile(r"(?<=\d)_(?=\d)")
VARIABLE = re.compile(r"\$\{[^}]*\}")
TEMPLATE = "data.template"
SECTIONS = ("model", "method", "data", "training", "evaluation", "run")


class Fate(Enum):
    """What became of a key."""

    TAKEN = "taken"
    DEFAULT = "default"
    IGNORED = "ignored"
    NO_COUNTERPART = "no counterpart"
    UNKNOWN = "not known"


@dataclass(frozen=True)
class Line:
    """One key of the file: its value, its fate, and the field, the reason or the consequence; `line` is 1-based."""

    key: str
    value: Any
    fate: Fate
    text: str
    line: int | None = None

    def __str__(self) -> str:
        shown = (
            self.key
            if self.fate is Fate.DEFAULT or self.value is None
            else f"{self.key}: {one_line(plain(self.value), 60)}"
        )
        return f"{shown} -> {self.text}"


def is_on(value: Any) -> bool:
    """Whether a value turns something on, also in the capital letters of YAML 1.1 (`Yes`, `ON`)."""
    return (value.lower() if isinstance(value, str) else value) in ON


def is_off(value: Any) -> bool:
    """Whether a value turns something off, or is nothing."""
    return (value.lower() if isinstance(value, str) else value) in OFF


def plain(value: Any) -> str:
    """Return a value as YAML's flow style writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(plain(one) for one in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {plain(one)}' for key, one in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def dtype_name(value: Any) -> str:
    return str(value).removeprefix("torch.")


@dataclass
class Sheet:
    """The keys of a configuration. Each is taken, ignored or missed once; `close` lists those that nothing asked for.

    `recipe` grows with each field that is taken. `places` has the lines of the keys, `notes` what depends on several.
    """

    values: Mapping[str, Any]
    places: Mapping[str, int] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def has(self, key: str) -> bool:
        """Whether the file sets the key to anything but nothing."""
        return self.values.get(key) not in (None, "")

    def get(self, key: str, default: Any = None) -> Any:
        return self.values[key] if self.has(key) else default

    def number(self, key: str, default: Any = None) -> Any:
        """Return a value as a number; a text such as `'2e-4'` or `2_048`, which other readers make of one, is one too.

        Raises UsageError for anything else.
        """
        value = self.get(key, default)
        value = parse_scalar(GROUPED.sub("", value)) if isinstance(value, str) else value
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{key}: {one_line(value, 60)!r} is not a number")
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{key}: {value} is not a finite number")
        return value

    def entries(self, key: str) -> list[dict[str, Any]]:
        """Return the sections that a list has. Raises UsageError for anything else."""
        value = self.get(key, ())
        if not isinstance(value, list | tuple) or not all(isinstance(one, dict) for one in value):
            raise UsageError(f"{key}: {one_line(plain(value), 60)} is not a list of sections with a path each")
        return list(value)

    def on(self, key: str, default: bool = False) -> bool:
        return is_on(self.get(key)) if self.has(key) else default

    def set(self, where: str, value: Any) -> None:
        section = self.recipe
        *parents, name = where.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value

    def peek(self, where: str) -> Any:
        """Return the recipe's value of a field, None if it has none yet."""
        value: Any = self.recipe
        for part in where.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def take(self, key: str, where: str, value: Any, note: str = "") -> None:
        """Set a field of the recipe from a key; a key that the file lacks stands for its default there.

        Raises UsageError for a variable, whose value the file does not say.
        """
        if where != TEMPLATE and (variable := VARIABLE.search(plain(value))):
            raise UsageError(f"{key}: {variable[0]} has no value in this file; write the value")
        self.set(where, value)
        self.say(key, f"{where} = {plain(value)}{f' ({note})' if note else ''}", Fate.TAKEN)

    def say(self, key: str, text: str, fate: Fate) -> None:
        value = self.values[key] if key in self.values else self.inside(key)
        if value in (None, "") and fate is Fate.TAKEN:
            fate, text = Fate.DEFAULT, f"{text} (their default)"
        self.done.add(key)
        self.lines.append(Line(key, value, fate, text, self.places.get(key) or self.places.get(key.partition(".")[0])))

    def inside(self, key: str) -> Any:
        """Return what the entries of a list have under a name, `datasets.type`: one value if they agree."""
        parent, *names = key.split(".")
        entries = self.values.get(parent)
        found = []
        for value in entries if isinstance(entries, list | tuple) else ():
            for name in names:
                value = value.get(name) if isinstance(value, dict) else None
            found.append(value)
        return found[0] if found and all(value == found[0] for value in found) else found or None

    def copy(self, key: str, where: str, default: Any = None) -> None:
        """Take a text as it is; without one, their default where it is not None."""
        if (value := self.get(key, default)) is not None:
            self.take(key, where, str(value))

    def copy_dtype(self, key: str, where: str) -> None:
        """Take the name of a type, with or without torch's own."""
        if self.has(key):
            self.take(key, where, dtype_name(self.get(key)))

    def copy_number(self, key: str, where: str, default: Any = None) -> None:
        if (value := self.number(key, default)) is not None:
            self.take(key, where, value)

    def copy_flag(self, key: str, where: str, default: bool | None = None) -> None:
        if self.has(key) or default is not None:
            self.take(key, where, self.on(key, bool(default)))

    def ignore(self, key: str, why: str) -> None:
        if key in self.values:
            self.say(key, why, Fate.IGNORED)

    def miss(self, key: str, consequence: str) -> None:
        """Say what is otherwise, because a key has no counterpart; it may be a default that the file does not name."""
        self.say(key, consequence, Fate.NO_COUNTERPART)

    def ignore_all(self, reasons: Mapping[str, str]) -> None:
        """Ignore keys, given with their reason; a name that ends with a star stands for all that begin so."""
        for name, why in reasons.items():
            for key in self.find(name):
                self.ignore(key, why)

    def miss_all(self, consequences: Mapping[str, str]) -> None:
        """Miss those of the keys that are on."""
        for name, consequence in consequences.items():
            for key in self.find(name):
                if is_off(self.values[key]):
                    self.ignore(key, "off")
                else:
                    self.miss(key, consequence)

    def find(self, name: str) -> list[str]:
        if name.endswith("*"):
            return [key for key in self.values if key.startswith(name[:-1]) and key not in self.done]
        return [name] if name in self.values and name not in self.done else []

    def close(self) -> None:
        """List every key that is left: without a value it is off, with one it is not known."""
        for key, value in self.values.items():
            if key in self.done:
                continue
            if value in (None, "", (), {}):
                self.ignore(key, "not set")
            else:
                self.say(key, "not known; what it changes is not in the recipe", Fate.UNKNOWN)
        place = {key: number for number, key in enumerate(self.values)}
        self.lines.sort(key=lambda line: place.get(line.key, place.get(line.key.partition(".")[0], len(place))))

    def sections(self) -> dict[str, Any]:
        """Return the recipe's values, its sections in their usual order."""
        return {name: self.recipe[name] for name in SECTIONS if name in self.recipe}
