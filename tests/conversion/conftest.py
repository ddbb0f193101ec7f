"""Conversions of texts, with the fields of their recipes by dotted keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftlab.conversion.convert import Conversion, convert
from peftlab.nested import flatten


class Converted:
    def __init__(self, made: Conversion):
        self.made, self.fields = made, flatten(made.recipe)
        self.fates: dict[str, set[str]] = {}
        for line in made.lines:
            self.fates.setdefault(line.fate.value, set()).add(line.key)

    def has(self, **sections: dict[str, Any]) -> None:
        """Assert that the recipe has exactly these fields."""
        assert self.fields == flatten(sections)

    def keys(self, fate: str) -> set[str]:
        return self.fates.get(fate, set())


@pytest.fixture
def converted(tmp_path: Path) -> Callable[..., Converted]:
    def run(text: str, kind: str | None = None, name: str = "config.yaml") -> Converted:
        path = tmp_path / name
        path.write_text(text)
        return Converted(convert(path, kind))

    return run
