"""What a comparison's folder holds, read back: its variants, their runs, and what each run scored on every row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.comparison.folder import read_comparison
from peftlab.comparison.resampling import RowScores
from peftlab.errors import StorageError
from peftlab.reports import ComparisonReport, RunResult, Trial, VariantReport
from peftlab.runs.directory import RunDirectory

RUNS = "runs"


@dataclass(frozen=True)
class Run:
    """One trial and what its run directory holds; a run that never began has no `result`."""

    trial: Trial
    result: RunResult | None = None
    recipe: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, RowScores] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.trial.status == "finished" and self.result is not None


@dataclass(frozen=True)
class Variant:
    """One variant under one budget; `label` is its name, with the budget where the comparison has several."""

    label: str
    report: VariantReport
    runs: list[Run]
    sweep: list[Run]

    @property
    def finished(self) -> list[Run]:
        """The finished seeds at the chosen rate."""
        return [run for run in self.runs if run.finished]

    @property
    def example(self) -> Run | None:
        """A run that stands for the variant: the first finished one, or else the first that left anything."""
        left = [run for run in (*self.finished, *self.runs, *self.sweep) if run.result is not None]
        return left[0] if left else None


@dataclass(frozen=True)
class Outcome:
    """A comparison as its folder has it; `problems` are lines on what could not be read."""

    folder: Path
    report: ComparisonReport
    variants: list[Variant]
    problems: list[str]

    @property
    def budgets(self) -> list[str | None]:
        return list(dict.fromkeys(variant.report.budget for variant in self.variants))

    def of_budget(self, budget: str | None) -> list[Variant]:
        return [variant for variant in self.variants if variant.report.budget == budget]

    def all_runs(self) -> Iterator[tuple[Variant, Run, str]]:
        """Yield each variant's runs once and what for: a `seed` at the chosen rate, or a `rate` of the sweep."""
        for variant in self.variants:
            seen = {run.trial.run for run in variant.runs}
            yield from ((variant, run, "seed") for run in variant.runs)
            yield from ((variant, run, "rate") for run in variant.sweep if run.trial.run not in seen)


def read_outcome(folder: Path) -> Outcome:
    """Read a comparison's folder. Raises StorageError where there is none, or its summary is damaged."""
    report = read_comparison(folder)
    problems: list[str] = []
    known: dict[str, Run] = {}
    variants = [
        Variant(
            label,
            variant,
            [_read_run(folder / RUNS, trial, known, problems) for trial in variant.trials],
            [_read_run(folder / RUNS, trial, known, problems) for trial in variant.sweep],
        )
        for label, variant in zip(_labels(report), report.variants, strict=True)
    ]
    return Outcome(folder, report, variants, problems)


def _labels(report: ComparisonReport) -> list[str]:
    """Return a name for every variant that no other has."""
    several = len({variant.budget for variant in report.variants}) > 1
    names = [f"{v.name} ({v.budget})" if several and v.budget else v.name for v in report.variants]
    count = Counter(names)
    return [name if count[name] == 1 else f"{name} #{place}" for place, name in enumerate(names, start=1)]


def _read_run(folder: Path, trial: Trial, known: dict[str, Run], problems: list[str]) -> Run:
    """Return one trial with what its directory holds; each directory is read once."""
    path = folder / trial.run
    if not path.resolve().is_relative_to(folder.resolve()):
        problems.append(f"run {trial.run!r} lies outside {folder} and is not read")
        return Run(trial)
    if trial.run not in known:
        known[trial.run] = _read_directory(path, trial, problems)
    read = known[trial.run]
    return Run(trial, read.result, read.recipe, read.history, read.scores)


def _read_directory(path: Path, trial: Trial, problems: list[str]) -> Run:
    try:
        directory = RunDirectory.open(path)
        result = directory.read_result()
    except StorageError as error:
        if trial.status == "finished":
            problems.append(str(error))
        return Run(trial)
    recipe = directory.recipe.read_text(encoding="utf-8", errors="replace") if directory.recipe.is_file() else ""
    return Run(trial, result, recipe, _read_history(directory.metrics), _read_scores(directory.scores, problems))


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics that are whole; the last one of a killed run may not be."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def _read_scores(path: Path, problems: list[str]) -> dict[str, RowScores]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {part: RowScores.of(scores) for part, scores in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"{path}: row scores cannot be read ({type(error).__name__}); the run counts without them")
        return {}
