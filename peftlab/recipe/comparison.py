"""A comparison's file: a base recipe, its variants, budgets, seeds and the rates to try."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from peftlab.errors import Problem, RecipeError, nearest
from peftlab.recipe.load import load_recipe, recipe_name
from peftlab.recipe.overrides import COMMAND_LINE
from peftlab.recipe.schema import PositiveInt, Recipe, Section
from peftlab.recipe.yaml_source import KeyPath, Source, dotted, fatal, parse_yaml, read_text

Rates = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
Overrides = dict[str, Any]
DEFAULT_SEEDS = 3
DEFAULT_RATE_FACTORS = (0.3, 1.0, 3.0)
DEFAULT_RATE_EXTENSIONS = 2


class Variant(Section):
    recipe: str | None = None
    """Another recipe file than the base, relative to this file."""
    method: dict[str, Any] | None = None
    """A whole `method` section in place of the recipe's."""
    overrides: Overrides = Field(default_factory=dict)
    """Fields of the recipe by key path: `method.rank: 8`."""


class Comparison(Section):
    base: str | None = None
    """The recipe file that variants start from, relative to this file."""
    variants: Annotated[dict[str, Variant], Field(min_length=1)]
    """By name, what is compared: each a recipe of its own, or what it changes in the base."""
    overrides: Overrides = Field(default_factory=dict)
    """Fields of every variant's recipe by key path: `training.steps: 100`."""
    budgets: tuple[str, ...] = ()
    """Budgets such as `trainable=0.5%`, `memory=8GiB`: each variant is solved for each, and run."""
    seeds: PositiveInt | tuple[Annotated[int, Field(ge=0, lt=2**32)], ...] = DEFAULT_SEEDS
    """How many seeds (0, 1, 2, ...), or which."""
    rates: Rates | None = None
    """Learning rates to try with every variant, in place of `rate_factors`."""
    rate_factors: Rates = DEFAULT_RATE_FACTORS
    """What each variant's own learning rate is multiplied with; [1] tries no other."""
    rate_extensions: Annotated[int, Field(ge=0)] = DEFAULT_RATE_EXTENSIONS
    """How often a variant that did best at the last rate on a side tries one beyond it; not with `rates`."""
    metric: str | None = None
    """What a rate is chosen and a variant reported by: loss (the default), accuracy (for classifiers), f1, ..."""


@dataclass(frozen=True)
class Candidate:
    """One variant as `peftlab train` takes it: a recipe file and overrides, and the recipe that they make."""

    name: str
    path: Path
    overrides: tuple[str, ...]
    recipe: Recipe

    def with_overrides(self, overrides: Sequence[str]) -> Candidate:
        """Return the candidate with more overrides, of which the last for a key counts."""
        merged = {text.partition("=")[0]: text for text in (*self.overrides, *overrides)}
        return Candidate(self.name, self.path, tuple(merged.values()), load_recipe(self.path, list(merged.values())))


def list_candidates(paths: Sequence[Path], overrides: Sequence[str]) -> list[Candidate]:
    """Return recipe files as candidates; one that comes twice gets a number. Raises RecipeError with all problems."""
    names = [recipe_name(path) for path in paths]
    names = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, start=1)]
    found, problems = [], []
    for name, path in zip(names, paths, strict=True):
        try:
            found.append(Candidate(name, path, tuple(overrides), load_recipe(path, overrides)))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))  # a bad override is the same for every file
    return found


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> tuple[Comparison, list[Candidate]]:
    """Return a comparison and its candidates. Raises RecipeError with every problem of the file and its recipes."""
    source = parse_yaml(read_text(path), str(path))
    if not isinstance(source.value, dict):
        raise fatal("holds no mapping; a comparison has `base` and `variants`", str(path), source.lines.get((), 1))
    comparison, problems = check_comparison(source, path)
    candidates: list[Candidate] = []
    for name, variant in comparison.variants.items() if comparison else ():
        try:
            candidates.append(build_candidate(comparison, name, variant, path, overrides))
        except RecipeError as error:
            problems += [replace_place(problem, source, path, name) for problem in error.problems]
    if problems := [*source.problems, *problems]:
        raise RecipeError(list(dict.fromkeys(problems)))
    return comparison, candidates


def check_comparison(source: Source, path: Path) -> tuple[Comparison | None, list[Problem]]:
    """Return the comparison, or None, and what does not fit its schema."""
    try:
        return Comparison.model_validate(source.value, strict=True), []
    except ValidationError as error:
        found: dict[KeyPath, Problem] = {}
        for entry in error.errors(include_url=False):
            key = tuple(part for part in entry["loc"] if str(part) in map(str, flat_keys(source)))
            found.setdefault(key, problem_at(source, path, key, explain(entry, key)))
        return None, list(found.values())


def flat_keys(source: Source) -> set[str | int]:
    """Return every key of the file: pydantic's locations also name the members of unions."""
    return {part for key in source.lines for part in key}


def explain(entry: Any, key: KeyPath) -> str:
    if entry["type"] == "extra_forbidden":
        known = Variant.model_fields if key[0] == "variants" else Comparison.model_fields
        return f"unknown key{nearest(str(key[-1]), known) or '; known here: ' + ', '.join(known)}"
    if entry["type"] == "missing":
        return f"has no {entry['loc'][-1]!r}"
    message = entry["msg"][0].lower() + entry["msg"][1:]
    return f"{message}, got {entry['input']!r}"


def problem_at(source: Source, path: Path, key: KeyPath, message: str) -> Problem:
    """Return the problem with the nearest known line of `key`."""
    for length in range(len(key), -1, -1):
        if key[:length] in source.lines:
            return Problem(dotted(key), message, str(path), source.lines[key[:length]])
    return Problem(dotted(key), message, str(path))


def replace_place(problem: Problem, source: Source, path: Path, name: str) -> Problem:
    """Return a problem of a variant's recipe at the line that set it, where this file did."""
    if problem.file != COMMAND_LINE:
        return problem
    key = ("variants", name)
    for candidate in ((*key, "overrides", problem.path), ("overrides", problem.path), (*key, *problem.path.split("."))):
        if candidate in source.lines:
            key = candidate
    return problem_at(source, path, key, problem.message)


def build_candidate(
    comparison: Comparison, name: str, variant: Variant, path: Path, overrides: Sequence[str]
) -> Candidate:
    """Return one variant with its recipe. Raises RecipeError."""
    file = variant.recipe or comparison.base
    if file is None:
        raise RecipeError([Problem("", "has no recipe, and the comparison has no base", COMMAND_LINE)])
    given = {**comparison.overrides, **variant.overrides}
    texts = {key: f"{key}={json.dumps(value)}" for key, value in given.items()}
    if variant.method is not None:
        texts = {"method": f"method={json.dumps(variant.method)}"} | texts
    texts |= {text.partition("=")[0]: text for text in overrides}
    recipe_path = path.parent / file
    return Candidate(name, recipe_path, tuple(texts.values()), load_recipe(recipe_path, list(texts.values())))
