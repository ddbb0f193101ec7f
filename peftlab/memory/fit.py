"""Whether a recipe fits into a budget, the largest that does, and what would make it fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from peftlab.errors import UsageError, nearest
from peftlab.recipe.schema import Recipe
from peftlab.reports import MemoryReport

MAXIMIZED = {
    "batch_size": "training.batch_size",
    "max_length": "data.max_length",
    "rank": "method.rank",
}
SMALLEST_LENGTH = 128
MOST_TRIALS = 14

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


def maximize(recipe: Recipe, field: str, capacity_bytes: int, predict: Predict) -> tuple[int, MemoryReport]:
    """Return the largest value of `field` (a key of `MAXIMIZED`) that fits, and the report for it.

    Memory grows with all three, nearly along a line, so that few trials are needed. Raises UsageError for an
    unknown field, for one that the method lacks, and where not even the smallest fits.
    """
    path = _path_of(field, recipe)

    def trial(value: int) -> MemoryReport:
        return predict(with_settings(recipe, {path: value}))

    return largest_fitting(trial, capacity_bytes, path, _limit(path, recipe))


def largest_fitting(
    trial: Callable[[int], MemoryReport], capacity_bytes: int, what: str, limit: int = 1 << 24
) -> tuple[int, MemoryReport]:
    """Return the largest whole number up to `limit` whose report needs no more than the capacity."""
    low, best = 1, trial(1)
    if best.needed_bytes > capacity_bytes:
        over = (best.needed_bytes - capacity_bytes) / 2**30
        raise UsageError(f"{what}=1 already needs {over:.2f} GiB more than there is; change something else")
    high, high_needs = None, 0
    guess = 2
    for _ in range(MOST_TRIALS):
        if low >= limit or (high is not None and high - low <= 1):
            break
        report = trial(min(guess, limit))
        if report.needed_bytes <= capacity_bytes:
            growth = (report.needed_bytes - best.needed_bytes) / (min(guess, limit) - low)
            low, best = min(guess, limit), report
        else:
            growth = (report.needed_bytes - best.needed_bytes) / (guess - low)
            high, high_needs = guess, report.needed_bytes
        room = int((capacity_bytes - best.needed_bytes) / growth) if growth > 0 else low
        guess = low + max(1, room)
        if high is not None:
            guess = min(guess, high - 1)
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


def _limit(path: str, recipe: Recipe) -> int:
    return 1 << 20 if path != "method.rank" else 1 << 14
