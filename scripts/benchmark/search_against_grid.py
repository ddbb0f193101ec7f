"""Compares a search of settings with the default grid of learning rates, by processor seconds.

Usage: python scripts/benchmark/search_against_grid.py FOLDER [KEY=VALUE ...] [--file FILE] [--times N]
       [--only METHOD] [--output FILE]

For each method of a comparison with a search (recipes/comparisons/tiny-search.yaml if none is given): the default
grid (0.3, 1 and 3 times the recipe's learning rate, and up to two beyond), then a search of at most 24 trials that
begins none after N times as many processor seconds as the grid took (1 if N is not given). Both choose by the same rows
with the same seed; both report the same test rows with the same three seeds. Needs the package optuna. The same command
continues what was stopped.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from peftlab.comparison.lab import compare
from peftlab.comparison.rows import Row, read_table
from peftlab.comparison.trials import Trial
from peftlab.comparison.variants import Settings
from peftlab.recipe.comparison import Variant, load_comparison
from peftlab.runs.environment import describe_environment
from peftlab.world.open import open_world

DEFAULT = Path(__file__).resolve().parents[2] / "recipes" / "comparisons" / "tiny-search.yaml"


def main() -> None:
    arguments = read_arguments()
    comparison, variants = load_comparison(arguments.file, arguments.overrides)
    found = {}
    for variant in variants:
        if arguments.only in (None, variant.name):
            found[variant.name] = compare_ways(
                variant, comparison.search, arguments.times, arguments.folder / variant.name
            )
            print(describe(variant.name, found[variant.name]), flush=True)
    if arguments.output:
        origin = describe_environment(open_world("cpu")) | {"date": datetime.date.today().isoformat()}
        del origin["command"]
        asked = {"file": arguments.file.name, "overrides": arguments.overrides, "times": arguments.times}
        text = json.dumps({"environment": origin, **asked, "methods": found}, indent=2)
        arguments.output.write_text(text + "\n", encoding="utf-8")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of every recipe: training.steps=24")
    parser.add_argument("--file", type=Path, default=DEFAULT)
    parser.add_argument("--times", type=float, default=1.0, help="of the grid's processor seconds, for the search")
    parser.add_argument("--only")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def compare_ways(variant: Variant, search: Any, times: float, folder: Path) -> dict[str, Any]:
    """Return what the grid and the search of one method chose, cost and report."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = run(variant, Settings(metric="loss"), folder / "grid")
    cost = processor_seconds(grid.sweep)
    capped = search.model_copy(update={"processor_seconds": times * cost})
    searched = run(variant, Settings(search=capped, metric="loss"), folder / "search")
    return {"grid": summarise(grid, cost), "search": summarise(searched, searched.variant.search.processor_seconds)}


def run(variant: Variant, settings: Settings, folder: Path) -> Row:
    compare([variant], settings, folder, name=folder.name)
    return read_table(folder).rows[0]


def processor_seconds(trials: Sequence[Trial]) -> float:
    """Return the processor seconds of trials that have a result."""
    return sum(trial.result.seconds.get("processor", 0.0) for trial in trials if trial.result)


def summarise(row: Row, cost: float) -> dict[str, Any]:
    tested = [trial.report.test for trial in row.trials if trial.report.test is not None]
    found = row.variant.search
    finished = [trial for trial in row.sweep if trial.report.validation is not None]
    best = min(finished, key=lambda trial: trial.report.validation)
    return {
        "chosen": row.variant.settings or {"training.learning_rate": row.variant.learning_rate},
        "trials": len(row.sweep),
        "stopped": found.stopped if found else 0,
        "processor_seconds": round(cost, 1),
        "until_best": round(processor_seconds(row.sweep[: row.sweep.index(best) + 1]), 1),
        "validation": best.report.validation,
        "test": tested,
        "mean": fmean(tested),
        "deviation": stdev(tested) if len(tested) > 1 else None,
    }


def describe(name: str, found: dict[str, Any]) -> str:
    grid, search = found["grid"], found["search"]
    return (
        f"{name}: grid {grid['mean']:.4f} ({grid['trials']} trials, {grid['processor_seconds']} s), "
        f"search {search['mean']:.4f} ({search['trials']} trials, {search['processor_seconds']} s), "
        f"{search['mean'] - grid['mean']:+.4f}"
    )


if __name__ == "__main__":
    main()
