"""What a check of a recipe is: a small function that finds a contradiction, with the fields that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from peftlab.recipe.schema import Recipe
from peftlab.recipe.yaml_source import KeyPath

Found = Iterator[tuple[str, str]]
"""Key paths, dotted, and messages."""
Find = Callable[[Recipe], Found]


class Check(NamedTuple):
    reads: tuple[str, ...]
    find: Find

    def reads_any(self, wrong: KeyPath) -> bool:
        """Whether one of its fields is `wrong`, contains it, or is inside of it."""
        return any(overlaps(tuple(field.split(".")), wrong) for field in self.reads)


def overlaps(field: KeyPath, wrong: KeyPath) -> bool:
    """Whether a field is wrong itself, contains something wrong, or is inside of it."""
    length = min(len(field), len(wrong))
    return field[:length] == wrong[:length]


def checks_into(checks: list[Check]) -> Callable[..., Callable[[Find], Find]]:
    """Return a decorator, called with the fields that a function reads, which enters the function into `checks`."""

    def reads(*fields: str) -> Callable[[Find], Find]:
        def enter(find: Find) -> Find:
            checks.append(Check(fields, find))
            return find

        return enter

    return reads
