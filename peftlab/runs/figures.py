"""Figures that are in two files of a run must agree: the losses of its record and those of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftlab.errors import StorageError
from peftlab.metrics import RowScores
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory

# Both are computed from the same numbers; a sum in another order differs by less.
TOLERANCE = 1e-6


def check_record(directory: RunDirectory, result: RunResult) -> None:
    """Raise StorageError for a record without the recipe of a run, which every run writes first."""
    recipe = result.recipe
    parts = [recipe.get(name) for name in ("model", "method", "data", "training", "run")]
    if not all(isinstance(part, dict) for part in parts) or not isinstance(recipe["method"].get("type"), str):
        raise StorageError(f"{directory.result}: is damaged: it does not contain the recipe of a run")


def compare_figures(directory: RunDirectory, result: RunResult, scores: Mapping[str, RowScores]) -> None:
    """Raise StorageError if the row scores of an evaluation do not make the loss that the record has of it."""
    for name, rows in scores.items():
        recorded = result.metrics.get(name, {}).get("loss")
        if recorded is None or rows.loss is None or rows.count is None:
            continue
        loss = float(np.sum(rows.loss) / np.sum(rows.count))
        if not math.isclose(loss, recorded, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise StorageError(
                f"{directory.scores}: does not belong to {directory.result.name}: the loss {name.replace('_', ' ')} "
                f"is {loss:.6g} there and {recorded:.6g} here"
            )
