"""How many steps a training takes in a number of seconds, by the pace of a short run on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from peftlab.budgets.budget import Budget
from peftlab.budgets.size import TOLERANCE
from peftlab.errors import UsageError
from peftlab.memory.fit import with_settings
from peftlab.recipe.dump import dump_recipe
from peftlab.recipe.schema import Recipe
from peftlab.reports import BudgetReport
from peftlab.runs.directory import RunDirectory
from peftlab.training.loop import AUDITED_STEPS

MEASURED_STEPS = 20
# What loading may take besides, before the measuring run is stopped.
LOADING_SECONDS = 60.0


@dataclass(frozen=True)
class Pace:
    """Seconds of the first steps, which warm up and are audited, and of each step after them."""

    first_steps: int
    first_seconds: float
    step_seconds: float
    measured: int

    def seconds(self, steps: int) -> float:
        """Return how long a training of so many steps takes."""
        if steps <= self.first_steps:
            return self.first_seconds * steps / self.first_steps
        return self.first_seconds + (steps - self.first_steps) * self.step_seconds

    def steps(self, seconds: float) -> int:
        """Return the number of steps, at least one, whose time is nearest."""
        if seconds <= self.first_seconds:
            return max(1, round(self.first_steps * seconds / self.first_seconds))
        return self.first_steps + round((seconds - self.first_seconds) / self.step_seconds)


def solve_seconds(recipe: Recipe, budget: Budget, environment: Mapping[str, str]) -> BudgetReport:
    """Solve for the steps that take so long at the pace of a short run here, evaluations and checkpoints apart."""
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
        met=exact or error <= step / 2,
        reason=None if exact else f"one step takes {step:.3g} s",
        notes=[
            f"by the pace of {pace.measured} steps on this machine just now, {pace.step_seconds:.3g} s each; "
            "evaluations and checkpoints during the training come on top"
        ],
    )


def measure_pace(recipe: Recipe, limit_seconds: float, environment: Mapping[str, str]) -> Pace:
    """Run the recipe's first steps in a process of its own and return their pace.

    Raises UsageError if that run fails, with its error.
    """
    with tempfile.TemporaryDirectory(prefix="peftlab-pace-") as folder:
        path, output = Path(folder, "recipe.yaml"), Path(folder, "run")
        path.write_text(dump_recipe(probe_recipe(recipe, output, limit_seconds)), encoding="utf-8")
        command = [sys.executable, "-m", "peftlab", "train", str(path)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | environment
        )
        times = read_times(RunDirectory(output).metrics)
    if not times:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        told = told.removeprefix("peftlab: error: ")
        raise UsageError(f"seconds: the run that was to measure the pace failed: {told}")
    return read_pace(times)


def probe_recipe(recipe: Recipe, output: Path, limit_seconds: float) -> Recipe:
    """Return the recipe's first steps alone, each of them timed, which take no longer than the budget itself."""
    alone = {
        "training.steps": AUDITED_STEPS + MEASURED_STEPS,
        "training.epochs": None,
        "training.warmup": 0,
        **dict.fromkeys(("data.evaluation", "data.evaluation_rows", "data.test", "data.test_rows", "data.general")),
        "evaluation.every": None,
        "evaluation.metrics": ("loss",),
        "run.output": str(output),
        "run.log_every": 1,
        "run.save_every": None,
        "run.stop_after": None,
        "run.max_seconds": LOADING_SECONDS + limit_seconds,
        "run.plan": "off",
        "run.trackers": (),
    }
    return with_settings(recipe, alone)


def read_times(metrics: Path) -> list[float]:
    """Return the seconds at which each step of a run ended; none if it did not come so far."""
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return [line["seconds"] for line in map(json.loads, lines) if line["event"] == "train"]


def read_pace(times: Sequence[float]) -> Pace:
    """Return the pace of steps that ended at these seconds."""
    if len(times) == 1:
        return Pace(1, times[0], times[0], 1)
    first = min(AUDITED_STEPS, len(times) - 1)
    measured = len(times) - first
    return Pace(first, times[first - 1], (times[-1] - times[first - 1]) / measured, measured)
