"""Whether a recipe fits into a budget, the largest that does, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peftlab.errors import MethodError, ModelError, UsageError, nearest
from peftlab.memory.blueprint import LayersToRecompute
from peftlab.methods import METHODS
from peftlab.quantities import format_bytes
from peftlab.recipe.checkpointing import OFFLOAD, Checkpointing
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
CHECKPOINTING = "training.gradient_checkpointing"

Predict = Callable[[Recipe], MemoryReport]


@dataclass(frozen=True)
class Change:
    """Settings that make a recipe fit, as written on the command line, and its predicted memory with them."""

    settings: dict[str, Any]
    report: MemoryReport

    def __str__(self) -> str:
        return " ".join(f"{key}={show_setting(value)}" for key, value in self.settings.items())

    def describe(self) -> str:
        return f"{self} needs {format_bytes(self.report.needed_bytes)}"


def show_setting(value: Any) -> str:
    """Return a setting's value as written on the command line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {show_setting(item)}" for key, item in value.items()) + "}"
    return str(value).lower()


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
        raise UsageError(f"even {path}={step} needs {over} more than is available; change something else")
    count, report = largest_fitting(trial, smallest, capacity_bytes, limit)
    return count * step, report


def largest_fitting(
    trial: Callable[[int], MemoryReport], smallest: MemoryReport, capacity_bytes: int, limit: int
) -> tuple[int, MemoryReport]:
    """Return the largest count from 1 (`smallest`, which fits) to `limit` that fits, and its report.

    Memory grows nearly linearly, so each guess is where the line through the last two trials meets the capacity.
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
    """Return the first `most` changes that make the recipe fit, each of them predicted.

    First those that keep the result equal: checkpointing, the step in more pieces, or both if neither is enough;
    then the largest shorter length, and other methods.
    """
    found: list[Change] = []
    for change in _changes(recipe, capacity_bytes, predict):
        found.append(change)
        if len(found) == most:
            break
    return found


def _changes(recipe: Recipe, capacity_bytes: int, predict: Predict) -> Iterator[Change]:
    def fitting(settings: dict[str, Any]) -> Iterator[Change]:
        report = predict(with_settings(recipe, settings))
        if report.needed_bytes <= capacity_bytes:
            yield Change(settings, report)

    checkpointing = {CHECKPOINTING: True}
    can_checkpoint = recipe.method.supports_gradient_checkpointing and not recomputes_all(recipe)
    equal = list(fitting(checkpointing)) if can_checkpoint else []
    yield from equal
    split = largest_split(recipe, capacity_bytes, predict)
    if split is not None:
        yield split
    elif can_checkpoint and not equal:
        both = largest_split(with_settings(recipe, checkpointing), capacity_bytes, predict)
        if both is not None:
            yield Change({**checkpointing, **both.settings}, both.report)
    yield from _shorter(recipe, capacity_bytes, predict)
    for name, method in METHODS.items():
        if method.suggested_when_memory_is_short and recipe.method.type != name:
            with suppress(MethodError):  # a method that cannot be applied to this model is not a remedy
                yield from fitting({"method": {"type": name}})


def _shorter(recipe: Recipe, capacity_bytes: int, predict: Predict) -> Iterator[Change]:
    """Yield the largest length below the recipe's that fits, unless it is below `SMALLEST_LENGTH`."""
    most = (recipe.data.max_length - 1) // LENGTH_STEP

    def trial(count: int) -> MemoryReport:
        return predict(with_settings(recipe, {"data.max_length": count * LENGTH_STEP}))

    least = SMALLEST_LENGTH // LENGTH_STEP
    if most < least or (smallest := trial(least)).needed_bytes > capacity_bytes:
        return
    count, report = largest_fitting(lambda extra: trial(least - 1 + extra), smallest, capacity_bytes, most - least + 1)
    yield Change({"data.max_length": (least - 1 + count) * LENGTH_STEP}, report)


def recomputes_all(recipe: Recipe) -> bool:
    """Return whether every layer is recomputed already."""
    wanted = recipe.training.gradient_checkpointing
    return wanted is True or wanted == OFFLOAD


def fewest_recomputed(
    recipe: Recipe, report: MemoryReport, capacity_bytes: int, predict: Predict, layers: LayersToRecompute
) -> Change | None:
    """Return the smallest number of recomputed layers that fits; the last resort on CUDA are inputs on the host.

    `report` is the plan of none, which does not fit. None where not even that fits, or the method has no layers to
    recompute. Memory falls nearly linearly with each further layer, so each guess is where the line through the
    nearest numbers that do not and do fit meets the capacity.
    """
    if not recipe.method.supports_gradient_checkpointing or layers.number == 0:
        return None

    def change(wanted: Checkpointing) -> Change:
        return Change({CHECKPOINTING: wanted}, predict(with_settings(recipe, {CHECKPOINTING: wanted})))

    try:
        best = change(True)
    except (MethodError, ModelError):  # it has no checkpointing, or cannot be traced with it
        return None
    if best.report.needed_bytes > capacity_bytes:
        offloaded = change(OFFLOAD) if report.device == "cuda" else best
        return offloaded if offloaded.report.needed_bytes <= capacity_bytes else None
    low, too_much, high = 0, report, layers.number
    while layers.separate and high - low > 1:
        slope = (too_much.needed_bytes - best.report.needed_bytes) / (high - low)
        guess = low + math.ceil((too_much.needed_bytes - capacity_bytes) / max(slope, 1.0))
        found = change(min(max(guess, low + 1), high - 1))
        number = found.settings[CHECKPOINTING]
        if found.report.needed_bytes <= capacity_bytes:
            high, best = number, found
        else:
            low, too_much = number, found.report
    return best


def largest_split(recipe: Recipe, capacity_bytes: int, predict: Predict) -> Change | None:
    """Return the largest smaller micro-batch that fits, with as many more of them as keep the step's rows.

    It divides the step's rows. None if not even one row fits, or the micro-batch has one row already.
    """
    training = recipe.training
    rows = training.batch_size * training.gradient_accumulation
    sizes = [size for size in range(1, training.batch_size) if rows % size == 0]
    best: Change | None = None
    while sizes:
        size = sizes[0 if best is None else len(sizes) // 2]  # one row first: if that does not fit, nothing does
        settings = {"training.batch_size": size, "training.gradient_accumulation": rows // size}
        report = predict(with_settings(recipe, settings))
        fits = report.needed_bytes <= capacity_bytes
        best = Change(settings, report) if fits else best
        sizes = [other for other in sizes if (other > size) == fits and other != size]
    return best


def _path_of(field: str, recipe: Recipe) -> str:
    if field not in MAXIMIZED:
        raise UsageError(f"cannot maximize {field!r}{nearest(field, MAXIMIZED)}; known: {', '.join(MAXIMIZED)}")
    path = MAXIMIZED[field]
    if path == "method.rank" and not hasattr(recipe.method, "rank"):
        raise UsageError(f"cannot maximize rank: method {recipe.method.type} has none")
    return path
