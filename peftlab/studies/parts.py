"""What a study runs: comparisons of recipes, and memory plans. Each says what it runs, and resumes."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.files import read_json, write_atomically
from peftlab.recipe.comparison import DEFAULT_RATE_EXTENSIONS, Variant
from peftlab.recipe.dump import dump_values
from peftlab.recipe.load import load_recipe, parse_recipe
from peftlab.reports import MemoryReport
from peftlab.studies.compared import Compared, read_compared

Values = Mapping[str, Any]
"""A recipe's values by section, as its YAML file has them."""
RECIPES = "recipes"


class Part(ABC):
    """One thing that a study runs, in a folder of its `name` within the study's."""

    name: str

    @abstractmethod
    def lines(self) -> list[str]:
        """Return what it runs, for people: a line with the count, then one for each recipe."""

    @abstractmethod
    def run(self, study: Path, jobs: int) -> Any:
        """Run what has not run yet, and return the results, which have `seconds`, `failures` and `notes`."""


@dataclass(frozen=True)
class Comparing(Part):
    """Recipes by variant that are compared; `prepare` writes the files that they need into the study's folder.

    With several `factors` their multiples of each recipe's own learning rate are tried, and up to `extensions` more
    where the best is at an end. `budgets` resize every variant.
    """

    name: str
    recipes: Mapping[str, Values]
    seeds: int = 3
    factors: Sequence[float] = (1.0,)
    extensions: int = DEFAULT_RATE_EXTENSIONS
    budgets: Sequence[str] = ()
    metric: str | None = None
    prepare: Callable[[Path], None] | None = None

    def lines(self) -> list[str]:
        count = len(self.recipes) * max(1, len(self.budgets))
        tries = len(self.factors) if len(self.factors) > 1 else 0
        each = [f"{tries} learning rates (and up to {self.extensions} more)"] if tries else []
        each += [f"{self.seeds} seed{'s' if self.seeds > 1 else ''}"]
        under = f" under {', '.join(self.budgets)}" if self.budgets else ""
        runs = f"{count * (self.seeds + tries)}{' or more' if tries and self.extensions else ''} runs"
        head = f"{self.name}: {len(self.recipes)} variants{under}, each with {' and '.join(each)}: {runs}"
        return [head, *(f"  {label}: {describe(values)}" for label, values in self.recipes.items())]

    def run(self, study: Path, jobs: int) -> Compared:
        from peftlab.comparison.lab import compare
        from peftlab.comparison.report.write import write_report
        from peftlab.comparison.variants import Settings

        if self.prepare:
            self.prepare(study)
        settings = Settings(
            budgets=tuple(self.budgets), seeds=tuple(range(self.seeds)), rate_factors=tuple(self.factors),
            rate_extensions=self.extensions, metric=self.metric, jobs=jobs,
        )  # fmt: skip
        compare(self.write_recipes(study), settings, study / self.name, name=f"{study.name}: {self.name}")
        write_report(study / self.name)
        return read_compared(study / self.name)

    def write_recipes(self, study: Path) -> list[Variant]:
        """Write the recipes as files, by which each run can be repeated alone, and return them as variants."""
        folder = study / RECIPES / self.name
        folder.mkdir(parents=True, exist_ok=True)
        variants = []
        for label, values in self.recipes.items():
            path = folder / f"{label.replace(' ', '-').replace('/', '-')}.yaml"
            text = dump_values(dict(values))
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_atomically(path, text)
            variants.append(Variant(label, path, (), load_recipe(path)))
        return variants


@dataclass(frozen=True)
class Planned:
    """Predicted memory by label, with the parameters that train, and the seconds that the plans took."""

    reports: Mapping[str, MemoryReport]
    trainable: Mapping[str, int]
    total: Mapping[str, int]
    seconds: float = 0.0
    failures: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Planning(Part):
    """Recipes by label whose memory is planned for `device`; no weights are made and nothing is trained."""

    name: str
    recipes: Mapping[str, Values]
    device: str = "cuda"
    memory: str | None = None
    prepare: Callable[[Path], None] | None = None

    def lines(self) -> list[str]:
        head = f"{self.name}: {len(self.recipes)} plans, which train nothing"
        return [head, *(f"  {label}: {describe(values)}" for label, values in self.recipes.items())]

    def run(self, study: Path, jobs: int) -> Planned:
        if self.prepare:
            self.prepare(study)
        path = study / f"{self.name}.json"
        found: dict[str, Any] = read_json(path) if path.exists() else {}
        for number, (label, values) in enumerate(self.recipes.items(), start=1):
            text = dump_values(dict(values))
            if found.get(label, {}).get("recipe") != text:
                found[label] = {"recipe": text} | self.plan(text)
                write_atomically(path, json.dumps(found, indent=1) + "\n")
            peak = found[label]["memory"]["peak_bytes"]
            print(f"[{number}/{len(self.recipes)}] {label}: {peak / 1e9:,.2f} GB planned", file=sys.stderr, flush=True)
        kept = {label: found[label] for label in self.recipes}
        return Planned(
            {label: MemoryReport.model_validate(one["memory"], extra="ignore") for label, one in kept.items()},
            {label: one["trainable"] for label, one in kept.items()},
            {label: one["total"] for label, one in kept.items()},
            sum(one["seconds"] for one in kept.values()),
        )

    def plan(self, text: str) -> dict[str, Any]:
        from peftlab.runs.planner import open_planner
        from peftlab.sizes import parse_budget
        from peftlab.world.quiet import quiet_libraries

        quiet_libraries()
        begun, recipe = time.monotonic(), parse_recipe(text)
        planner = open_planner(recipe, self.device, parse_budget(self.memory) if self.memory else None)
        shape = planner.blueprint(recipe).shape
        memory = planner(recipe)
        return {
            "memory": memory.model_dump(mode="json", round_trip=True),
            "trainable": recipe.method.count_trainable(shape),
            "total": shape.total,
            "seconds": time.monotonic() - begun,
        }


def describe(values: Values) -> str:
    """Return a recipe in a few words: method and its fields, model, learning rate, steps."""
    method, training = dict(values["method"]), values["training"]
    fields = ", ".join(f"{key} {_plain(value)}" for key, value in method.items() if key != "type")
    steps = f"{training['steps']} steps" if "steps" in training else f"{training.get('epochs', 1)} epochs"
    named = f"{method['type']} ({fields})" if fields else method["type"]
    rows, learning_rate = training.get("batch_size", 8), training["learning_rate"]
    return f"{named}, {steps} of {rows} rows, learning rate {learning_rate:.3g}"


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
