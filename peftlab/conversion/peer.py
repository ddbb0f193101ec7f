"""What another trainer's kind of configuration is: how it is recognised, and how it becomes a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peftlab.conversion.sheet import Sheet
from peftlab.nested import flatten


@dataclass(frozen=True)
class Peer:
    """A kind of configuration. `marks` are keys that only its files have; `fill` takes the keys of a sheet."""

    name: str
    title: str
    marks: frozenset[str]
    fill: Callable[[Sheet], None]
    nested: bool = False
    """Whether keys of sections are read each by themselves, dotted."""

    def count_marks(self, values: Mapping[str, Any]) -> int:
        return len(self.marks & set(flatten(values) if self.nested else values))
