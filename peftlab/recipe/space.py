"""The space of a search: for keys of a recipe, ranges or choices, as a file or the command line has them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from peftlab.errors import RecipeError, UsageError
from peftlab.recipe.schema import PositiveInt, Recipe
from peftlab.recipe.section import Section
from peftlab.recipe.vocabulary import show
from peftlab.recipe.yaml_source import parse_yaml

DEFAULT_TRIALS = 24
EXAMPLES = "KEY=1e-4..1e-2:log, KEY=x0.1..x10:log (times each recipe's own value) or KEY=linear,cosine"
RANGE = re.compile(r"(x?)([^.:\s]*(?:\.\d*)?[^.:\s]*)\.\.(x?)([^:\s]+?)(:log)?")
# Which rows are measured, and how and where a run is kept, are the same in all trials.
FIXED = ("run", "evaluation", "data.evaluation", "data.evaluation_rows", "data.test", "data.test_rows", "data.general")
FIXED_KEYS = (*FIXED, "data.seed", "data.date", "model.name", "model.task")


class Range(Section):
    low: int | float
    """The smallest value."""
    high: int | float
    """The largest value; with two whole numbers all values are whole."""
    log: bool = False
    """Draw by the logarithm, so that each factor is as likely as any other."""
    relative: bool = False
    """Both ends are multiples of each recipe's own value, so that methods of different learning rates share a space."""

    def __str__(self) -> str:
        times = "x" if self.relative else ""
        return f"{times}{self.low:g}..{times}{self.high:g}{':log' if self.log else ''}"

    def for_recipe(self, own: Any) -> Range:
        """Return the range in the key's own unit, where the recipe's value is `own`."""
        if not self.relative:
            return self
        low, high = (float(f"{own * factor:.6g}") for factor in (self.low, self.high))
        if isinstance(own, int):
            low, high = max(1, round(low)), round(high)
        return Range(low=low, high=high, log=self.log)

    def contains(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def is_near_end(self, value: float) -> bool:
        """Return whether a value is within a twentieth of the range from one of its ends; a whole one, at an end."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return value in (self.low, self.high)
        if self.log:
            width = (self.high / self.low) ** 0.05
            return value < self.low * width or value > self.high / width
        width = (self.high - self.low) / 20
        return value < self.low + width or value > self.high - width


Choices = tuple[Any, ...]
Dimension = Range | Choices
Space = Mapping[str, Dimension]


class Search(Section):
    space: dict[str, Range | tuple[Any, ...]]
    """By key path, what to try: a range, or a list of values."""
    trials: PositiveInt = DEFAULT_TRIALS
    """The most trials of one variant."""
    seconds: float | None = Field(None, gt=0)
    """No variant starts another trial once its trials have taken so many seconds."""
    processor_seconds: float | None = Field(None, gt=0)
    """The same in seconds of processors, which other work on the machine changes little."""
    stopping: Literal["asha", "hyperband", "none"] = "asha"
    """How trials that do worse than others at the same step are stopped early."""


def parse_dimension(text: str) -> tuple[str, Dimension]:
    """Return key and dimension of `KEY=LOW..HIGH`, with `:log` or as multiples `xLOW..xHIGH`, or `KEY=A,B`.

    Raises UsageError.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    if not equals or not key or not values:
        raise UsageError(f"--search {text!r}: write {EXAMPLES}")
    if found := RANGE.fullmatch(values):
        return key, _parse_range(text, found)
    try:
        value = parse_yaml(values if values.startswith("[") else f"[{values}]", None).value
    except RecipeError:
        value = None
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"--search {text!r}: write {EXAMPLES}")
    return key, tuple(value)


def _parse_range(text: str, found: re.Match[str]) -> Range:
    first, low, second, high, log = found.groups()
    if first != second:
        raise UsageError(f"--search {text!r}: both ends are multiples (x) or neither is")
    try:
        ends = [int(end) if re.fullmatch(r"-?\d+", end) else float(end) for end in (low, high)]
    except ValueError:
        raise UsageError(f"--search {text!r}: both ends must be numbers; write {EXAMPLES}") from None
    return Range(low=ends[0], high=ends[1], log=bool(log), relative=bool(first))


def find_faults(dimension: Dimension) -> Iterator[str]:
    """Yield what is wrong with a dimension by itself."""
    if not isinstance(dimension, Range):
        if len(dimension) < 2:
            yield "needs at least two values to choose from; set a single one in the recipe"
        elif len({repr(value) for value in dimension}) < len(dimension):
            yield "names a value twice"
    elif not dimension.low < dimension.high:
        yield f"the range {dimension} is empty: low must be less than high"
    elif dimension.log and dimension.low <= 0:
        yield f"the range {dimension} has no logarithm: low must be greater than 0"


def find_fixed(key: str) -> str | None:
    """Return why a key cannot be searched, None where it can."""
    if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED_KEYS):
        return "must be the same in all trials: it decides what is measured, or where a run is kept"
    return None


def ends_of(dimension: Dimension) -> Sequence[Any]:
    """Return the values whose recipes must be right, so that all between them are."""
    return (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension


def value_at(recipe: Recipe, key: str) -> Any:
    """Return the value at a key path of a recipe as JSON has it, None where there is none."""
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def has_point(space: Space, settings: Mapping[str, Any]) -> bool:
    """Return whether settings by key path are in a space."""
    return all(
        dimension.contains(settings[key]) if isinstance(dimension, Range) else settings[key] in dimension
        for key, dimension in space.items()
    )


def describe(dimension: Dimension) -> str:
    """Return a dimension as people read it."""
    if not isinstance(dimension, Range):
        return ", ".join(map(show, dimension))
    times = ", times the recipe's own" if dimension.relative else ""
    return f"{dimension.low:g} to {dimension.high:g}{' (logarithmic)' if dimension.log else ''}{times}"
