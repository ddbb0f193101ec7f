"""What a comparison runs: every variant under every budget, with a metric, rates to try and rows to choose by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from peftlab.comparison.jobs import share_of_machine
from peftlab.errors import PeftlabError, UsageError, nearest
from peftlab.evaluation.metrics import HIGHER_IS_BETTER
from peftlab.files import write_atomically
from peftlab.recipe.comparison import DEFAULT_RATE_EXTENSIONS, DEFAULT_RATE_FACTORS, DEFAULT_SEEDS, Candidate
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport

SOLUTIONS = "solutions.json"
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Settings:
    """How a comparison is run. `jobs` run at once; `cluster` is submitit's.

    `rates` replaces `rate_factors` and is not extended.
    """

    budgets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = tuple(range(DEFAULT_SEEDS))
    rates: tuple[float, ...] | None = None
    rate_factors: tuple[float, ...] = DEFAULT_RATE_FACTORS
    rate_extensions: int = DEFAULT_RATE_EXTENSIONS
    metric: str | None = None
    jobs: int = 1
    cluster: str | None = None
    cluster_options: dict[str, Any] = field(default_factory=dict)

    @property
    def sweeps(self) -> bool:
        return len(self.rates or self.rate_factors) > 1


@dataclass(frozen=True)
class Entry:
    """A variant under a budget (or under none). `error` says why it cannot be run."""

    candidate: Candidate
    rates: tuple[float, ...]
    budget: str | None = None
    solution: BudgetReport | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        return f"{self.candidate.name} {self.budget}" if self.budget else self.candidate.name


def open_entries(candidates: Sequence[Candidate], settings: Settings, metric: str, folder: Path) -> list[Entry]:
    """Return all variants under all budgets, each solved for once and remembered in `folder`."""
    prepared = [prepare_candidate(candidate, settings, metric) for candidate in candidates]
    entries = [
        Entry(candidate, list_rates(candidate.recipe, settings), budget)
        for budget in settings.budgets or (None,)
        for candidate in prepared
    ]
    cache = folder / SOLUTIONS
    return [entry if entry.budget is None else solve_entry(entry, cache, settings.jobs) for entry in entries]


def prepare_candidate(candidate: Candidate, settings: Settings, metric: str) -> Candidate:
    """Return the candidate with the rows, the metric and the seed of rows that every run of it shares."""
    recipe = candidate.recipe
    overrides = [f"data.seed={settings.seeds[0]}"] if recipe.data.seed is None else []
    if metric not in recipe.evaluation.metrics:
        overrides.append(f"evaluation.metrics={json.dumps([*recipe.evaluation.metrics, metric])}")
    if settings.sweeps:
        overrides += separate_test(recipe)
    return candidate.with_overrides(overrides)


def separate_test(recipe: Recipe) -> list[str]:
    """Return overrides that give a recipe test rows: those that choose a rate cannot also report the result.

    Where it names none, its evaluation rows become the test rows, and a tenth of the training rows chooses.
    """
    data = recipe.data
    if data.test is not None:
        return []
    if not isinstance(data.evaluation, str):
        return [f"data.test={data.evaluation!r}"]
    rows = [f"data.test_rows={data.evaluation_rows}"] if data.evaluation_rows else []
    return [f"data.test={json.dumps(data.evaluation)}", f"data.evaluation={VALIDATION_SHARE}", *rows]


def list_rates(recipe: Recipe, settings: Settings) -> tuple[float, ...]:
    """Return the learning rates to try, ascending, to three digits."""
    own = recipe.training.learning_rate
    return round_rates(settings.rates or [own * factor for factor in settings.rate_factors])


def round_rates(rates: Iterable[float]) -> tuple[float, ...]:
    return tuple(sorted({float(f"{rate:.3g}") for rate in rates}))


def rate_beyond(rates: Sequence[float], best: float) -> float | None:
    """Return the rate as far beyond `best` as `best` is from its neighbour; None where others lie on both sides."""
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    return best * best / (rates[1] if best == rates[0] else rates[-2])


def choose_metric(recipes: Sequence[Recipe], wanted: str | None) -> str:
    """Return the metric that all recipes can be compared by. Raises UsageError where there is none."""
    tasks = {recipe.model.task for recipe in recipes}
    if len(tasks) > 1:
        raise UsageError(f"recipes of different tasks cannot be compared: {', '.join(sorted(tasks))}")
    if any(recipe.data.evaluation is None and recipe.data.test is None for recipe in recipes):
        raise UsageError("a comparison needs evaluation rows in every recipe; set data.evaluation")
    if wanted is not None and wanted not in HIGHER_IS_BETTER:
        raise UsageError(
            f"unknown metric {wanted!r}{nearest(wanted, HIGHER_IS_BETTER)}; there is: {', '.join(HIGHER_IS_BETTER)}"
        )
    return wanted or recipes[0].task.default_metric


def note_differences(entries: Sequence[Entry]) -> list[str]:
    """Return a note for every part of the recipes that differs where a fair comparison would have it alike."""
    dumps = [entry.candidate.recipe.model_dump(mode="json") for entry in entries]
    notes = []
    for section, ignored in (("model", ()), ("data", ()), ("training", ("learning_rate",))):
        keys = [key for key in dumps[0][section] if key not in ignored]
        differing = [f"{section}.{key}" for key in keys if len({repr(dump[section][key]) for dump in dumps}) > 1]
        if differing:
            notes.append(f"the variants differ in {', '.join(differing)}")
    return notes


def solve_entry(entry: Entry, cache: Path, jobs: int) -> Entry:
    """Return the entry with the size that meets its budget, as one of `jobs`; what was solved before is not again."""
    from peftlab.budgets.budget import parse_budget
    from peftlab.budgets.solve import solve

    recipe, budget = entry.candidate.recipe, parse_budget(entry.budget)
    key = sha256(f"{recipe.model_dump_json()}\0{budget}".encode()).hexdigest()[:16]
    known = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    try:
        if key in known:
            solution = BudgetReport.model_validate(known[key], extra="ignore")
        else:
            solution = solve(recipe, budget, environment=share_of_machine(0, jobs))
        overrides = [f"{field}={json.dumps(value)}" for field, value in solution.solved.items()]
        solved = entry.candidate.with_overrides(overrides)
    except PeftlabError as error:
        return replace(entry, error=f"{entry.label}: {str(error).splitlines()[0]}")
    write_atomically(cache, json.dumps(known | {key: solution.model_dump()}, indent=2) + "\n")
    return replace(entry, candidate=solved, solution=solution)
