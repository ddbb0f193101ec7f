"""What the gauntlet found of each model type: which task works with which method, and what is refused, and why.

`families.json` beside this file has the outcomes of the last run of `scripts/gauntlet`, with its date and versions.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

FILE = Path(__file__).with_suffix(".json")


class Family(NamedTuple):
    """One model type with one task: the forms of methods that work, and why others are refused."""

    works: tuple[str, ...]
    refused: dict[str, str]


@functools.cache
def read_families() -> dict[str, Any]:
    """Return the whole file: `run` (date and versions), `types` and `unbuilt`."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def find_family(model_type: str, task: str) -> Family | None:
    """Return what is known of a model type with a task; None for one that the gauntlet did not run."""
    found = read_families()["types"].get(model_type, {}).get(task)
    return Family(tuple(found["works"]), found["refused"]) if found else None


def known_refusal(model_type: str, task: str, form: str) -> tuple[str, str] | None:
    """Return (key path, message) where a method's form is refused for every model of a type; else None.

    What is said of the model itself depends on its configuration (`is_decoder`) or on sizes of batches.
    """
    family = find_family(model_type, task)
    place, _, message = (family.refused.get(form, "") if family else "").partition(": ")
    return (place, message) if place.startswith("method.") else None
