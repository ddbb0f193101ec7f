"""The lines of a run's `metrics.jsonl`, read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peftlab.files import read_text

EVENTS = ("train", "evaluation")


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the lines of a `metrics.jsonl`, and the numbers of those that cannot be read, which are left out.

    The last one of a killed run may be half a line: it is left out without a number. Raises StorageError for what
    is not a file of text.
    """
    text = read_text(path) if path.exists() else ""
    lines, unreadable = [], []
    whole, _, half = text.rpartition("\n")
    for number, one in enumerate([*whole.split("\n"), half], start=1):
        if line := parse_line(one):
            lines.append(line)
        elif one.strip() and one is not half:
            unreadable.append(number)
    return lines, unreadable


def parse_line(text: str) -> dict[str, Any] | None:
    """Return a line of `metrics.jsonl`, None for what is not one."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or line.get("event") not in EVENTS or type(line.get("step")) is not int:
        return None
    return line if all(isinstance(value, (str, int, float, type(None))) for value in line.values()) else None
