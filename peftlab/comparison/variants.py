"""What a comparison runs: every variant under every budget, its metric, learning rates and the rows that choose."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from hashlib import sha256
from math import inf, isfinite
from pathlib import Path
from typing import Any

from peftlab.comparison.identity import hash_run, may_write_day
from peftlab.errors import PeftlabError, StorageError, UsageError, nearest
from peftlab.files import decode_json, read_text, write_atomically
from peftlab.metrics import METRICS, RENAMED
from peftlab.recipe.comparison import (
    DEFAULT_RATE_EXTENSIONS,
    DEFAULT_RATE_FACTORS,
    DEFAULT_SEEDS,
    DEFAULT_TIME_LIMIT,
    Variant,
)
from peftlab.recipe.schema import Recipe
from peftlab.recipe.space import Search
from peftlab.reports import BudgetReport
from peftlab.runs.jobs import share_of_machine

SOLUTIONS = "solutions.json"
DAY = "date.txt"
VALIDATION_SHARE = 0.1
# What may be searched under a budget: it changes neither parameters nor memory, and not the time of a step.
FREE_OF_COST = (
    "training.learning_rate", "training.schedule", "training.warmup", "training.weight_decay", "training.clip",
    "training.optimizer.betas", "training.optimizer.eps", "method.alpha",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """How a comparison is run: `jobs` at once, or on submitit's `cluster`, each for `time_limit` seconds at most.

    `rates` are learning rates; they replace `rate_factors`, which multiply each recipe's own, and are not extended.
    A `search` is in place of both. The budgets of a `frontier` are its amounts, and each size is run once.
    """

    budgets: tuple[str, ...] = ()
    frontier: str | None = None
    seeds: tuple[int, ...] = tuple(range(DEFAULT_SEEDS))
    rates: tuple[float, ...] | None = None
    rate_factors: tuple[float, ...] = DEFAULT_RATE_FACTORS
    rate_extensions: int = DEFAULT_RATE_EXTENSIONS
    search: Search | None = None
    metric: str | None = None
    time_limit: float = DEFAULT_TIME_LIMIT
    jobs: int = 1
    cluster: str | None = None
    cluster_options: dict[str, Any] = field(default_factory=dict)

    @property
    def sweeps(self) -> bool:
        return self.search is not None or len(self.rates or self.rate_factors) > 1


def open_variants(variants: Sequence[Variant], settings: Settings, metric: str, folder: Path) -> list[Variant]:
    """Return all variants under all budgets, each solved for once; solutions are kept in `folder`."""
    if not settings.sweeps:
        refuse_mixed_rows(variants)
    prepared = [prepare_variant(fix_day(variant, folder), settings, metric) for variant in variants]
    if not settings.budgets:
        return prepared
    solved = [
        solve_variant(replace(variant, budget=budget), folder / SOLUTIONS, settings.jobs)
        for budget in settings.budgets
        for variant in prepared
    ]
    return list(keep_sizes(solved)) if settings.frontier else solved


def refuse_mixed_rows(variants: Sequence[Variant]) -> None:
    """Raise UsageError where some recipes report on test rows and others, without any, on their evaluation rows."""
    without = [variant.title for variant in variants if variant.recipe.data.test is None]
    if 0 < len(without) < len(variants):
        raise UsageError(
            f"data.test: {without[0]} has no test rows, and other recipes have some, so that their results are of "
            "different rows; set data.test in every recipe or in none"
        )


def keep_sizes(variants: Sequence[Variant]) -> Iterator[Variant]:
    """Yield each size of a frontier once: where it is nearest to the amount asked; what cannot be solved stays.

    A method of few sizes then has fewer points on the curve than amounts were asked.
    """
    same: dict[tuple[str, str], list[Variant]] = {}
    for variant in variants:
        if variant.solution:
            same.setdefault(size_of(variant), []).append(variant)
    for variant in variants:
        sizes = same[size_of(variant)] if variant.solution else [variant]
        if variant is min(sizes, key=lambda one: abs(one.solution.error) if one.solution else inf):
            yield replace(variant, same_size=tuple(one.budget for one in sizes if one is not variant and one.budget))


def size_of(variant: Variant) -> tuple[str, str]:
    """Return what is equal for variants of one name that a frontier runs once."""
    return variant.name, repr(sorted(variant.solution.solved.items())) if variant.solution else ""


def fix_day(variant: Variant, folder: Path) -> Variant:
    """Return the variant with the day on which the comparison began, where its chat template can write today's.

    Trials that run after midnight, or on the day when a comparison is resumed, then have the same text.
    """
    try:
        dated = variant.recipe.data.date is None and may_write_day(variant.recipe)
    except PeftlabError:  # the run says what is wrong with the tokenizer
        return variant
    return variant.with_overrides([f'data.date="{first_day(folder)}"']) if dated else variant


def first_day(folder: Path) -> str:
    """Return the day on which the comparison began, as 2026-01-31; today's is kept for later. Raises StorageError."""
    path = folder / DAY
    if not path.exists():
        write_atomically(path, f"{date.today().isoformat()}\n")
    try:
        return date.fromisoformat(read_text(path).strip()).isoformat()
    except ValueError:
        raise StorageError(f"{path}: is not a day such as 2026-01-31; write there the day of the first run") from None


def prepare_variant(variant: Variant, settings: Settings, metric: str) -> Variant:
    """Return the variant with its learning rates, and the rows, metric and data seed that all its runs share."""
    recipe = variant.recipe
    overrides = [f"data.seed={settings.seeds[0]}"] if recipe.data.seed is None else []
    if metric not in recipe.evaluation.metrics:
        overrides.append(f"evaluation.metrics={json.dumps([*recipe.evaluation.metrics, metric])}")
    if settings.sweeps:
        overrides += separate_test(recipe)
    own = recipe.training.learning_rate
    learning_rates = settings.rates or [own * factor for factor in settings.rate_factors]
    return replace(variant.with_overrides(overrides), learning_rates=round_learning_rates(learning_rates))


def separate_test(recipe: Recipe) -> list[str]:
    """Return overrides that give a recipe test rows: rows that choose a learning rate cannot also report the result.

    Where it names none, its evaluation rows become the test rows, and a tenth of the training rows chooses.
    """
    data = recipe.data
    if data.test is not None:
        return []
    if not isinstance(data.evaluation, str | tuple):
        return [f"data.test={data.evaluation!r}"]
    rows = [f"data.test_rows={data.evaluation_rows}"] if data.evaluation_rows else []
    source = json.dumps(recipe.model_dump(mode="json")["data"]["evaluation"])
    return [f"data.test={source}", f"data.evaluation={VALIDATION_SHARE}", *rows]


def spare_trial(recipe: Recipe) -> list[str]:
    """Return overrides for a trial that only chooses: it measures the evaluation rows, and not those that report."""
    spared: dict[str, Any] = {"evaluation.generation.examples": 0, "data.general": None}
    if isinstance(recipe.data.test, str | tuple):  # rows held out of the training rows must stay so
        spared |= {"data.test": None, "data.test_rows": None}
    return [f"{key}={json.dumps(value)}" for key, value in spared.items()]


def is_free_of_cost(key: str) -> bool:
    """Return whether a key of a recipe changes neither parameters nor memory, nor the time of a step."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE_OF_COST)


def refuse_costly(variants: Sequence[Variant], search: Search | None) -> None:
    """Raise UsageError for a search of what a budget has sized: its trials would not compare at equal budgets."""
    for variant in variants:
        for key in {**search.space, **variant.space} if search and variant.budget else ():
            if not is_free_of_cost(key):
                raise UsageError(
                    f"{key}: cannot be searched under the budget {variant.budget}, whose cost it may change; "
                    f"search {', '.join(FREE_OF_COST[:-1])} or {FREE_OF_COST[-1]}, or compare without a budget"
                )


def round_learning_rates(learning_rates: Iterable[float]) -> tuple[float, ...]:
    """Return learning rates to three digits, ascending, each once."""
    return tuple(sorted({float(f"{one:.3g}") for one in learning_rates}))


def learning_rate_beyond(tried: Sequence[float], best: float) -> float | None:
    """Return one as far beyond `best` as `best` is from its neighbour; None where others are on both sides."""
    if len(tried) < 2 or best not in (tried[0], tried[-1]):
        return None
    return best * best / (tried[1] if best == tried[0] else tried[-2])


def best_of(values: Mapping[float, float | None], higher_is_better: bool) -> float:
    """Return the learning rate of the best finite value; the smallest where none has one."""
    finite = {one: value for one, value in values.items() if value is not None and isfinite(value)}
    if not finite:
        return min(values)
    return (max if higher_is_better else min)(finite, key=finite.__getitem__)


def choose_metric(recipes: Sequence[Recipe], wanted: str | None) -> str:
    """Return the metric that all recipes can be compared by. Raises UsageError where there is none."""
    tasks = {recipe.model.task for recipe in recipes}
    if len(tasks) > 1:
        raise UsageError(f"recipes of different tasks cannot be compared: {', '.join(sorted(tasks))}")
    if any(recipe.data.evaluation is None and recipe.data.test is None for recipe in recipes):
        raise UsageError("a comparison needs evaluation rows in every recipe; set data.evaluation")
    wanted = RENAMED.get(wanted, wanted) if wanted else None
    if wanted is not None and wanted not in METRICS:
        raise UsageError(f"unknown metric {wanted!r}{nearest(wanted, METRICS)}; known: {', '.join(METRICS)}")
    return wanted or recipes[0].task.default_metric


def note_differences(variants: Sequence[Variant]) -> list[str]:
    """Return a note for every section in which the recipes differ where a fair comparison has them equal."""
    dumps = [variant.recipe.model_dump(mode="json") for variant in variants]
    notes = []
    for section, ignored in (("model", ()), ("data", ()), ("training", ("learning_rate",))):
        keys = [key for key in dumps[0][section] if key not in ignored]
        differing = [f"{section}.{key}" for key in keys if len({repr(dump[section][key]) for dump in dumps}) > 1]
        if differing:
            notes.append(f"the variants differ in {', '.join(differing)}")
    days = sorted({dump["data"]["date"] for dump in dumps if dump["data"]["date"]})
    return [*notes, *(f"a chat template that writes today's date writes {day} in all runs" for day in days)]


def read_solutions(cache: Path) -> dict[str, BudgetReport]:
    """Return the solutions that were kept; none where the file is missing or damaged, since they can be made again."""
    try:
        kept = decode_json(cache.read_bytes())
        return {key: BudgetReport.model_validate(value, extra="ignore") for key, value in kept.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def solve_variant(variant: Variant, cache: Path, jobs: int) -> Variant:
    """Return the variant in the size that meets its budget, as one of `jobs`; solutions are read from `cache`."""
    from peftlab.budgets.solve import solve
    from peftlab.recipe.budget import parse_budget

    assert variant.budget is not None
    recipe, budget = variant.recipe, parse_budget(variant.budget)
    known = read_solutions(cache)
    try:
        # By content: with other rows or weights in the same files, the budget gives another size.
        key = sha256(f"{recipe.model_dump_json()}\0{hash_run(recipe)}\0{budget}".encode()).hexdigest()[:16]
        solution = known.get(key) or solve(recipe, budget, environment=share_of_machine(0, jobs))
        solved = variant.with_overrides(f"{field}={json.dumps(value)}" for field, value in solution.solved.items())
    except PeftlabError as error:
        return replace(variant, error=f"{variant.title}: {str(error).splitlines()[0]}")
    kept = {name: one.model_dump() for name, one in (known | {key: solution}).items()}
    write_atomically(cache, json.dumps(kept, indent=2) + "\n")
    return replace(solved, solution=solution)
