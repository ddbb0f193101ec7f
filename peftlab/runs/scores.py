"""`scores.json`: what each held-out row scored in each evaluation of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError, one_line
from peftlab.files import read_json, why, write_atomically
from peftlab.metrics import RowScores
from peftlab.runs.directory import text_scores


def read_scores(path: Path) -> dict[str, RowScores]:
    """Return the row scores of a run by evaluation; empty without the file. Raises StorageError if it is damaged."""
    return {name: read_entry(path, name, entry) for name, entry in read_stored(path).items()}


def add_scores(path: Path, name: str, scores: RowScores) -> None:
    """Add the row scores of one evaluation to those of the others. Raises StorageError."""
    stored = read_stored(path) | {name: scores.dump()}
    try:
        write_atomically(path, json.dumps(stored) + "\n")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {why(error)}") from None


def read_stored(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise StorageError(f"{path}: is damaged: it is a {type(stored).__name__} instead of an object")
    return stored


def read_entry(path: Path, name: str, entry: Any) -> RowScores:
    """Return one evaluation's scores. Raises StorageError unless losses are finite and counts positive.

    Rows of generated texts have neither, and may lack a value of a metric.
    """
    place = f"{path}: is damaged: {one_line(name, 40)}"
    if not isinstance(entry, dict):
        raise StorageError(f"{place} is a {type(entry).__name__} instead of an object")
    try:
        scores = RowScores.of(entry)
        columns = {column: [float(value) for value in values] for column, values in scores.columns.items()}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, StopIteration) as error:
        raise StorageError(f"{place}: {one_line(error, 80)}") from None
    losses, counts = columns.get("loss"), columns.get("count")
    if (losses is None) != (counts is None) or (losses is None) != name.endswith(text_scores("")):
        raise StorageError(f"{place} lacks a column")
    known = [*(losses or ()), *(counts or ())]
    if not all(map(math.isfinite, known)) or any(math.isinf(one) for column in columns.values() for one in column):
        raise StorageError(f"{place} contains a number that is not finite")
    if not all(count > 0 for count in counts or ()):
        raise StorageError(f"{place} contains a row without targets")
    return scores
