"""How many steps a training takes in a number of seconds, by the step time of a short run on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftlab.budgets.search import nearest_size, possible_steps
from peftlab.budgets.size import TOLERANCE
from peftlab.errors import UsageError
from peftlab.memory.fit import with_settings
from peftlab.recipe.budget import Budget
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Job, run_job
from peftlab.training.loop import AUDITED_STEPS

MEASURED_STEPS = 20
# Time for loading, in addition to the budget, before the measuring run is stopped.
LOADING_SECONDS = 60.0


@dataclass(frozen=True)
class Pace:
    """Seconds of the first steps, which include warm-up and the audit, and of each step after them."""

    first_steps: int
    first_seconds: float
    step_seconds: float
    measured: int

    def seconds(self, steps: int) -> float:
        """Return the seconds that a training of so many steps takes."""
        if steps <= self.first_steps:
            return self.first_seconds * steps / self.first_steps
        return self.first_seconds + (steps - self.first_steps) * self.step_seconds

    def steps(self, seconds: float) -> int:
        """Return the steps, at least one, of the nearest time; more than 2 % off, the most that take no more."""
        later = max(0.0, seconds - self.first_seconds) / self.step_seconds
        return nearest_size(
            possible_steps(self.first_steps + later, f"seconds={seconds:g}"), self.seconds, seconds, TOLERANCE
        ).size


def solve_seconds(recipe: Recipe, budget: Budget, environment: Mapping[str, str]) -> BudgetReport:
    """Return the steps that take so long by the pace of a short run here, evaluations and checkpoints not counted."""
    pace = measure_pace(recipe, budget.amount, environment)
    steps = pace.steps(budget.amount)
    reached = pace.seconds(steps)
    step = pace.seconds(steps + 1) - reached
    error = abs(reached - budget.amount)
    exact = error <= TOLERANCE * budget.amount
    return BudgetReport(
        kind="seconds",
        asked=budget.amount,
        reached=reached,
        solved={"training.steps": steps, "training.epochs": None},
        step=step,
        met=exact or (reached <= budget.amount and error <= step),
        reason=None if exact else f"one step takes {step:.3g} s",
        notes=[
            f"by {pace.measured} steps measured on this machine just now, {pace.step_seconds:.3g} s each; "
            "evaluations and checkpoints during training take additional time"
        ],
    )


def measure_pace(recipe: Recipe, limit_seconds: float, environment: Mapping[str, str]) -> Pace:
    """Run the recipe's first steps in a process of its own and return their pace.

    Raises UsageError if that run fails, with its error.
    """
    with tempfile.TemporaryDirectory(prefix="peftlab-pace-") as folder:
        path, output = Path(folder, "recipe.yaml"), Path(folder, "run")
        path.write_text(dump_recipe(probe_recipe(recipe, limit_seconds)), encoding="utf-8")
        ending = run_job(Job(path, (), output, Path(folder, "log.txt"), environment))
        times = read_times(RunDirectory(output).metrics)
    if not times:
        raise UsageError(f"seconds: the run that measures the step time failed: {ending.error}")
    return read_pace(times)


def probe_recipe(recipe: Recipe, limit_seconds: float) -> Recipe:
    """Return the recipe reduced to its first steps, each timed, which stops after the budget's seconds."""
    alone = {
        "training.steps": AUDITED_STEPS + MEASURED_STEPS,
        "training.epochs": None,
        "training.warmup": 0,
        **dict.fromkeys(("data.evaluation", "data.evaluation_rows", "data.test", "data.test_rows", "data.general")),
        "evaluation.every": None,
        "evaluation.metrics": ("loss",),
        "run.log_every": 1,
        "run.save_every": None,
        "run.stop_after": None,
        "run.max_seconds": LOADING_SECONDS + limit_seconds,
        "run.plan": "off",
        "run.trackers": (),
    }
    return with_settings(recipe, alone)


def read_times(metrics: Path) -> list[float]:
    """Return the seconds at which each step of a run ended; empty if no step was logged."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return [line["seconds"] for line in map(json.loads, lines) if line["event"] == "train"]


def read_pace(times: Sequence[float]) -> Pace:
    """Return the pace of steps that ended at these seconds."""
    if len(times) == 1:
        return Pace(1, times[0], times[0], 1)
    first = min(AUDITED_STEPS, len(times) - 1)
    measured = len(times) - first
    return Pace(first, times[first - 1], (times[-1] - times[first - 1]) / measured, measured)
