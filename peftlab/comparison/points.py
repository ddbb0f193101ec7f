"""A point of what a comparison tries: fields of a recipe and their values, as overrides."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftlab.recipe.comparison import LEARNING_RATE


@dataclass(frozen=True)
class Point:
    """Fields by key path with their values as JSON; equal points give equal recipes."""

    values: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Point:
        return cls(tuple(sorted((key, json.dumps(value)) for key, value in settings.items())))

    @classmethod
    def at_learning_rate(cls, learning_rate: float) -> Point:
        return cls.of({LEARNING_RATE: learning_rate})

    @property
    def settings(self) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in self.values}

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values]

    def __str__(self) -> str:
        return ", ".join(
            f"{key.rpartition('.')[2].replace('_', ' ')} {text_of(json.loads(v))}" for key, v in self.values
        )


def text_of(value: Any) -> str:
    """Return a value in a few characters."""
    return f"{value:.3g}" if isinstance(value, float) else json.dumps(value).strip('"')
