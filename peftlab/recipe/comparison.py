"""A comparison's file: a base recipe, its variants, budgets, seeds and the learning rates to try."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from peftlab.errors import Problem, RecipeError
from peftlab.metrics import METRICS, RENAMED
from peftlab.recipe.budget import parse_budget, parse_frontier
from peftlab.recipe.choices import OneOf
from peftlab.recipe.comparison_errors import checked_by, find_file_errors, problem_at, relocate
from peftlab.recipe.load import load_recipe, recipe_name
from peftlab.recipe.overrides import COMMAND_LINE
from peftlab.recipe.schema import PositiveInt, Recipe
from peftlab.recipe.section import Section
from peftlab.recipe.space import Dimension, Range, Search, ends_of, find_faults, find_fixed, value_at
from peftlab.recipe.yaml_source import KeyPath, Source, fatal, parse_yaml, read_text
from peftlab.reports import BudgetReport

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


def _check_seeds(seeds: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Refuse a seed that comes twice: its run would agree with itself, and count as two."""
    if isinstance(seeds, tuple) and (not seeds or len(set(seeds)) < len(seeds)):
        raise ValueError("there must be at least one seed, and each once")
    return seeds


Seeds = Annotated[PositiveInt | tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], AfterValidator(_check_seeds)]
BudgetText = Annotated[str, AfterValidator(checked_by(parse_budget))]
FrontierText = Annotated[str, AfterValidator(checked_by(parse_frontier))]
Overrides = dict[str, Any]
LEARNING_RATE = "training.learning_rate"
DEFAULT_SEEDS = 3
DEFAULT_RATE_FACTORS = (0.3, 1.0, 3.0)
DEFAULT_RATE_EXTENSIONS = 2
# A run that hangs must end some day; few runs of a comparison are longer than two days.
DEFAULT_TIME_LIMIT = 48 * 3600.0


class VariantSection(Section):
    recipe: str | None = None
    """Another recipe file than the base, relative to this file."""
    method: dict[str, Any] | None = None
    """A whole `method` section in place of the recipe's."""
    overrides: Overrides = Field(default_factory=dict)
    """Fields of the recipe by key path: `method.rank: 8`."""
    search: dict[str, Range | tuple[Any, ...]] = Field(default_factory=dict)
    """What is tried with this variant alone, besides the comparison's `search.space`: `method.rank: [4, 8]`."""


class Comparison(Section):
    base: str | None = None
    """The recipe file that variants start from, relative to this file."""
    variants: Annotated[dict[str, VariantSection], Field(min_length=1)]
    """By name, what is compared: each a recipe of its own, or what it changes in the base."""
    overrides: Overrides = Field(default_factory=dict)
    """Fields of every variant's recipe by key path: `training.steps: 100`."""
    budgets: tuple[BudgetText, ...] = ()
    """Budgets such as `trainable=0.5%`, `memory=8GiB`: each variant is solved for each, and run."""
    frontier: FrontierText | None = None
    """Sizes between two budgets, in place of `budgets`: `trainable=10k..10M`, drawn as curves."""
    seeds: Seeds = DEFAULT_SEEDS
    """How many seeds (0, 1, 2, ...), or which."""
    rates: Rates | None = None
    """Learning rates to try with every variant, in place of `rate_factors`."""
    rate_factors: Rates = DEFAULT_RATE_FACTORS
    """What each variant's own learning rate is multiplied by; [1] tries no other."""
    rate_extensions: Annotated[int, Field(ge=0)] = DEFAULT_RATE_EXTENSIONS
    """How often a variant whose best learning rate is the smallest or largest tries one beyond it; not with `rates`."""
    search: Search | None = None
    """Try more than the learning rate, in place of `rates` and `rate_factors`; needs the package optuna."""
    metric: Annotated[str, OneOf(lambda: METRICS, RENAMED)] | None = None
    """Metric that chooses learning rates and is reported: loss (default), accuracy (for classifiers), f1_macro, ..."""
    time_limit: Annotated[float, Field(gt=0)] = DEFAULT_TIME_LIMIT
    """Seconds after which one run is ended and counts as failed, so that a run that hangs costs itself alone."""


@dataclass(frozen=True)
class Variant:
    """What is compared: a recipe (its file and overrides, as `peftlab train` takes them), perhaps under a budget.

    `solution` is the size that meets the budget, `same_size` are other amounts of a frontier that give this size,
    `learning_rates` are those to try, ascending, and `error` says why the variant cannot be run. `space` is what a
    search tries with this variant alone. `suggested_learning_rate` is tried early, where the recipe's own is another
    method's.
    """

    name: str
    path: Path
    overrides: tuple[str, ...]
    recipe: Recipe
    budget: str | None = None
    same_size: tuple[str, ...] = ()
    solution: BudgetReport | None = None
    learning_rates: tuple[float, ...] = ()
    space: Mapping[str, Dimension] = field(default_factory=dict)
    suggested_learning_rate: float | None = None
    error: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name} {self.budget}" if self.budget else self.name

    def with_overrides(self, overrides: Iterable[str]) -> Variant:
        """Return the variant with more overrides, of which the last for a key counts. Raises RecipeError."""
        merged = {text.partition("=")[0]: text for text in (*self.overrides, *overrides)}
        texts = tuple(merged.values())
        return replace(self, overrides=texts, recipe=load_recipe(self.path, texts))


def list_variants(paths: Sequence[Path], overrides: Sequence[str]) -> list[Variant]:
    """Return recipe files as variants; equal names get numbers. Raises RecipeError with all problems."""
    names = [recipe_name(path) for path in paths]
    names = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]
    found: list[Variant] = []
    problems: list[Problem] = []
    for name, path in zip(names, paths, strict=True):
        try:
            found.append(Variant(name, path, tuple(overrides), load_recipe(path, overrides)))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))  # a bad override is the same for every file
    return found


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> tuple[Comparison, list[Variant]]:
    """Return a comparison and its variants. Raises RecipeError with every problem of the file and its recipes."""
    source = parse_yaml(read_text(path), str(path))
    if not isinstance(source.value, dict):
        raise fatal("is not a mapping; a comparison has `base` and `variants`", str(path), source.lines.get((), 1))
    comparison, problems = check_comparison(source, path)
    variants: list[Variant] = []
    if comparison:
        for name, section in comparison.variants.items():
            try:
                variants.append(build_variant(comparison, name, section, path, overrides))
            except RecipeError as error:
                problems += [relocate(problem, source, path, name) for problem in error.problems]
        problems += check_search(comparison, variants, source, path)
    problems = [*source.problems, *problems]
    if problems or comparison is None:
        raise RecipeError(list(dict.fromkeys(problems)))
    return comparison, variants


def check_comparison(source: Source, path: Path) -> tuple[Comparison | None, list[Problem]]:
    """Return the comparison, or None, and what does not fit its schema."""
    try:
        comparison = Comparison.model_validate(source.value, strict=True)
    except ValidationError as error:
        return None, find_file_errors(error, Comparison, source, path)
    if comparison.frontier and comparison.budgets:
        return comparison, [problem_at(source, path, ("frontier",), "is in place of `budgets`; give one of them")]
    return comparison, []


def build_variant(
    comparison: Comparison, name: str, section: VariantSection, path: Path, overrides: Sequence[str]
) -> Variant:
    """Return one variant with its recipe. Raises RecipeError."""
    file = section.recipe or comparison.base
    if file is None:
        raise RecipeError([Problem("", "has no recipe, and the comparison has no base", COMMAND_LINE)])
    given = {**comparison.overrides, **section.overrides}
    texts = {key: f"{key}={json.dumps(value)}" for key, value in given.items()}
    if section.method is not None:
        texts = {"method": f"method={json.dumps(section.method)}"} | texts
    texts |= {text.partition("=")[0]: text for text in overrides}
    recipe_path = path.parent / file
    if not recipe_path.exists():
        raise RecipeError(
            [Problem("recipe" if section.recipe else "base", f"{recipe_path}: no such file", COMMAND_LINE)]
        )
    recipe = load_recipe(recipe_path, list(texts.values()))
    suggested = None
    if section.method is not None and LEARNING_RATE not in section.overrides:
        suggested = suggest_learning_rate(load_recipe(recipe_path), recipe)
    return Variant(
        name, recipe_path, tuple(texts.values()), recipe, space=section.search, suggested_learning_rate=suggested
    )


def suggest_learning_rate(base: Recipe, recipe: Recipe) -> float | None:
    """Return the learning rate of a recipe that has the base's, by the rule of its own method; None without one."""
    first, factor = base.method.learning_rate_factor, recipe.method.learning_rate_factor
    if first is None or factor is None or first == factor:
        return None
    return float(f"{recipe.training.learning_rate * factor / first:.3g}")


def check_search(comparison: Comparison, variants: Sequence[Variant], source: Source, path: Path) -> Iterator[Problem]:
    """Yield what is wrong with the search of a comparison's file, at the lines of its keys."""
    for variant in variants:
        place: KeyPath = ("variants", variant.name, "search")
        if variant.space and comparison.search is None:
            yield problem_at(source, path, place, "is used with the comparison's `search` only")
        for key, message in check_space(variant.space, variant):
            yield problem_at(source, path, (*place, key), message)
    if comparison.search is None:
        return
    if comparison.rates or "rate_factors" in comparison.model_fields_set:
        yield problem_at(source, path, ("search",), "is in place of `rates` and `rate_factors`; give one of them")
    if not comparison.search.space:
        yield problem_at(source, path, ("search", "space"), "is empty: name a key to search, such as training.warmup")
    for key, message in check_shared_space(comparison.search.space, variants):
        yield problem_at(source, path, ("search", "space", key), message)


def check_shared_space(space: Mapping[str, Dimension], variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """Return what is wrong with a space for some of the variants: keys and messages, each once, with the variant."""
    found: dict[tuple[str, str], list[str]] = {}
    for variant in variants:
        for problem in check_space(space, variant):
            found.setdefault(problem, []).append(variant.name)
    return [
        (key, message if len(names) == len(variants) else f"{message} (variant {', '.join(names)})")
        for (key, message), names in found.items()
    ]


def check_space(space: Mapping[str, Dimension], variant: Variant) -> Iterator[tuple[str, str]]:
    """Yield keys of a space that a variant's recipe cannot have, and why."""
    for key, dimension in space.items():
        faults = [*find_faults(dimension), *filter(None, [find_fixed(key)])]
        own = value_at(variant.recipe, key)
        if not faults and isinstance(dimension, Range) and dimension.relative:
            if not isinstance(own, int | float) or isinstance(own, bool) or not own:
                faults.append(
                    f"the recipe's own value is {json.dumps(own)}, which has no multiples; write the range itself"
                )
            else:
                dimension = dimension.for_recipe(own)
        for value in [] if faults else ends_of(dimension):
            try:
                variant.with_overrides([f"{key}={json.dumps(value)}"])
            except RecipeError as error:
                first = error.problems[0]
                faults.append(first.message if first.path == key else f"{value}: {first.path}: {first.message}")
        yield from ((key, fault) for fault in dict.fromkeys(faults))
