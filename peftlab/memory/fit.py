"""Whether a recipe fits into a budget, the largest that does, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peftlab.errors import UsageError, nearest
from peftlab.memory.sizes import format_bytes
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport

MAXIMIZED = {
    "batch_size": "training.batch_size",
    "max_length": "data.max_length",
    "rank": "method.rank",
}
SMALLEST_LENGTH = 128
LENGTH_STEP = 32
LARGEST = 1 << 16

Predict = Callable[[Recipe], MemoryReport]


@dataclass(frozen=True)
class Change:
    """Settings that make a recipe fit, as one would write them on the command line, and what it takes then."""

    settings: dict[str, Any]
    report: MemoryReport

    def __str__(self) -> str:
        return " ".join(f"{key}={str(value).lower()}" for key, value in self.settings.items())


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """Return the recipe with settings by key path changed, checked like any recipe."""
    values = recipe.model_dump()
    for path, value in settings.items():
        section, _, field = path.partition(".")
        if field:
            values[section][field] = value
        else:
            values[section] = value
    return Recipe.model_validate(values)


def maximize(
    recipe: Recipe, field: str, capacity_bytes: int, predict: Predict, longest: int
) -> tuple[int, MemoryReport]:
    """Return the largest value of `field` (a key of `MAXIMIZED`) that fits, and the report for it.

    Lengths go in steps of `LENGTH_STEP` up to `longest`, the model's positions. Raises UsageError for an unknown
    field, for one that the method lacks, and where not even the smallest value fits.
    """
    path = _path_of(field, recipe)
    step = min(LENGTH_STEP, longest) if field == "max_length" else 1
    limit = longest // step if field == "max_length" else LARGEST

    def trial(count: int) -> MemoryReport:
        return predict(with_settings(recipe, {path: count * step}))

    smallest = trial(1)
    if smallest.needed_bytes > capacity_bytes:
        over = format_bytes(smallest.needed_bytes - capacity_bytes)
        raise UsageError(f"even {path}={step} needs {over} more than there is; change something else")
    count, report = largest_fitting(trial, smallest, capacity_bytes, limit)
    return count * step, report


def largest_fitting(
    trial: Callable[[int], MemoryReport], smallest: MemoryReport, capacity_bytes: int, limit: int
) -> tuple[int, MemoryReport]:
    """Return the largest count from 1 (`smallest`, which fits) to `limit` that fits, and its report.

    Memory grows nearly along a line, so each guess is where the line through the last two trials meets the
    capacity.
    """
    low, best, high, guess = 1, smallest, limit + 1, 2
    while high - low > 1:
        guess = min(guess, high - 1)
        report = trial(guess)
        growth = max((report.needed_bytes - best.needed_bytes) / (guess - low), 1.0)
        if report.needed_bytes <= capacity_bytes:
            low, best = guess, report
        else:
            high = guess
        guess = low + max(1, int((capacity_bytes - best.needed_bytes) / growth))
    return low, best


def remedies(recipe: Recipe, capacity_bytes: int, predict: Predict, most: int = 3) -> list[Change]:
    """Return the first changes that make the recipe fit, the gentlest first, each of them predicted."""
    found = []
    for settings in _candidates(recipe):
        if len(found) == most:
            break
        report = predict(with_settings(recipe, settings))
        if report.needed_bytes <= capacity_bytes:
            found.append(Change(settings, report))
    return found


def _candidates(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Yield changes that keep the result equal (checkpointing, a step in more pieces), then those that do not."""
    training, checkpointing = recipe.training, {}
    if recipe.method.supports_gradient_checkpointing and not training.gradient_checkpointing:
        checkpointing = {"training.gradient_checkpointing": True}
        yield checkpointing
    split: dict[str, Any] = {}
    if training.batch_size > 1:
        step_rows = training.batch_size * training.gradient_accumulation
        split = {"training.batch_size": 1, "training.gradient_accumulation": step_rows}
        yield split
        if checkpointing:
            yield {**checkpointing, **split}
    if recipe.data.max_length >= 2 * SMALLEST_LENGTH:
        yield {**checkpointing, **split, "data.max_length": recipe.data.max_length // 2}
    for method in ("lora", "qlora"):
        if recipe.method.type != method:
            yield {**split, "method": {"type": method}}


def _path_of(field: str, recipe: Recipe) -> str:
    if field not in MAXIMIZED:
        raise UsageError(f"cannot maximize {field!r}{nearest(field, MAXIMIZED)}; known: {', '.join(MAXIMIZED)}")
    path = MAXIMIZED[field]
    if path == "method.rank" and not hasattr(recipe.method, "rank"):
        raise UsageError(f"cannot maximize rank: method {recipe.method.type} has none")
    return path
