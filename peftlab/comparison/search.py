"""The search of one variant: which points it tries, which trials are stopped early, what it chose and what it cost.

A search is a function of its space and of the trials that have ended, which are kept in the comparison's folder: one
that is killed and resumed tries the same points.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.comparison.beginning import MOST_TRIALS, Beginning
from peftlab.comparison.points import LEARNING_RATE, Point
from peftlab.comparison.proposals import Proposals, build_pruner
from peftlab.comparison.variants import spare_trial
from peftlab.errors import StorageError
from peftlab.recipe.comparison import Variant
from peftlab.recipe.space import Dimension, Range, Search, describe, value_at
from peftlab.reports import STOPPED, RunResult, SearchReport, TrialReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Ending, Job
from peftlab.runs.outcomes import read_record
from peftlab.runs.record import PHASES, PROCESSOR
from peftlab.training.recorder import read_lines

if TYPE_CHECKING:
    import optuna

# Trials are compared after a sixth and after half of their steps: the best third continues each time.
PARTS, REDUCTION = 6, 3


@dataclass(frozen=True)
class Attempt:
    """One trial while it runs: optuna's trial, which decides whether to stop it, its point and its job."""

    trial: optuna.Trial
    point: Point
    job: Job


@dataclass
class VariantSearch:
    """The search of one variant. `plan` makes the job of a point, `find` the settled ending of one from before."""

    variant: Variant
    settings: Search
    metric: str
    higher_is_better: bool
    identity: str
    storage: Path
    plan: Callable[[Point, Sequence[str]], Job]
    find: Callable[[Job], Ending | None]
    space: dict[str, Dimension] = field(init=False)
    beginning: Beginning = field(init=False)
    proposals: Proposals = field(init=False)
    attempt: Attempt | None = None
    seen: int = 0

    def __post_init__(self) -> None:
        self.space = {
            key: dimension.for_recipe(value_at(self.variant.recipe, key)) if isinstance(dimension, Range) else dimension
            for key, dimension in {**self.settings.space, **self.variant.space}.items()
        }
        described = json.dumps(
            [self.identity, self.metric, self.settings.stopping, sorted(map(str, self.space.items()))]
        )
        name = f"{self.variant.title} {sha256(described.encode()).hexdigest()[:12]}"
        self.beginning = Beginning(self.own, self.space)
        drawn = len(self.beginning.learning_rates) or MOST_TRIALS
        pruner = build_pruner(self.settings.stopping, self.compared_every, self.steps, REDUCTION)
        self.proposals = Proposals(name, self.storage, self.space, self.higher_is_better, pruner, drawn)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, in their order."""
        return self.proposals.trials

    @property
    def own(self) -> Point:
        """The recipe's own settings of what is searched."""
        return Point.of({key: value_at(self.variant.recipe, key) for key in self.space})

    @property
    def steps(self) -> int | None:
        return self.variant.recipe.training.steps

    @property
    def compared_every(self) -> int | None:
        """Steps between two evaluations that may stop a trial; None where none can."""
        if self.settings.stopping == "none":
            return None
        own = self.variant.recipe.evaluation.every
        return own if self.steps is None else ceil(self.steps / PARTS)

    @property
    def spent(self) -> dict[str, float]:
        """What the trials cost, by the caps' names."""
        attributes = [trial.user_attrs for trial in self.trials]
        sums = {name: sum(one.get(name, 0.0) for one in attributes) for name in ("seconds", "processor_seconds")}
        return {"trials": len(attributes), **sums}

    @property
    def caps(self) -> dict[str, float]:
        found = {name: getattr(self.settings, name) for name in ("trials", "seconds", "processor_seconds")}
        return {name: cap for name, cap in found.items() if cap is not None}

    @property
    def ended_by(self) -> str | None:
        """The cap that is reached."""
        spent = self.spent
        return next((name for name, cap in self.caps.items() if spent[name] >= cap), None)

    def next(self) -> Job | None:
        """Return the job of the next trial; None where a cap is reached."""
        if self.ended_by:
            return None
        tried = [trial.user_attrs["point"] for trial in self.trials]
        trial, point = self.proposals.ask(self.beginning.next(tried, self.best()))
        job = self.plan(point, self.trial_overrides())
        self.attempt, self.seen = Attempt(trial, point, job), 0
        return job

    def trial_overrides(self) -> list[str]:
        """Return what is different in a trial: the evaluation rows alone are measured, also during training."""
        overrides = spare_trial(self.variant.recipe)
        if every := self.compared_every:
            overrides.append(f"evaluation.every={every}")
        return overrides

    def should_stop(self) -> bool:
        """Read what the trial has measured since the last time, and return whether others did better at that step."""
        attempt = self.attempt
        assert attempt is not None
        for line in self._evaluations(attempt.job)[self.seen :]:
            self.seen += 1
            value = line.get(self.metric)
            if line["step"] == 0 or not isinstance(value, float | int) or line["step"] == self.steps:
                continue
            attempt.trial.report(value, line["step"])
            if attempt.trial.should_prune():
                return True
        return False

    @staticmethod
    def _evaluations(job: Job) -> list[dict[str, Any]]:
        try:
            lines, _ = read_lines(RunDirectory(job.folder).metrics)
        except StorageError:  # it is being written
            return []
        return [line for line in lines if line["event"] == "evaluation"]

    def settle(self, ending: Ending, stopped: bool) -> tuple[Attempt, str]:
        """Keep how the trial ended; return it with its status. A trial that is as good as stopped counts as stopped."""
        import optuna

        attempt = self.attempt
        assert attempt is not None
        result = read_record(attempt.job.folder)
        value = _final(result, self.metric)
        stopped = stopped or self.should_stop()
        states = optuna.trial.TrialState
        if stopped or ending.status in ("diverged", "out_of_memory"):
            state, value = states.PRUNED, None
        elif value is None:
            state = states.FAIL
        else:
            state = states.COMPLETE
        status = STOPPED if stopped else ending.status
        if stopped:  # nobody resumes it
            shutil.rmtree(RunDirectory(attempt.job.folder).checkpoints, ignore_errors=True)
        attributes: dict[str, Any] = {
            "run": attempt.job.name,
            "status": status,
            "error": ending.error,
            "point": attempt.point.settings,
            **self._cost(result, attempt.job.name),
        }
        self.proposals.keep(attempt.trial, attempt.point, state, value, attributes)
        self.attempt = None
        return attempt, status

    def _cost(self, result: RunResult | None, run: str) -> dict[str, float]:
        """Return what a trial cost; the run of an earlier trial costs nothing again."""
        if result is None or any(trial.user_attrs["run"] == run for trial in self.trials):
            return {"seconds": 0.0, "processor_seconds": 0.0}
        seconds = sum(value for name, value in result.seconds.items() if name in PHASES)
        return {"seconds": seconds, "processor_seconds": result.seconds.get(PROCESSOR, 0.0)}

    def describe_trials(self, seed: int) -> list[TrialReport]:
        """Return the trials that have ended, which all had this seed, in their order."""
        own = self.variant.recipe.training.learning_rate
        return [
            TrialReport(
                run=trial.user_attrs["run"],
                learning_rate=trial.user_attrs["point"].get(LEARNING_RATE, own),
                seed=seed,
                status=trial.user_attrs["status"],
                settings=trial.user_attrs["point"],
                error=trial.user_attrs["error"] if trial.user_attrs["status"] not in ("finished", STOPPED) else None,
                validation=trial.value,
            )
            for trial in self.trials
        ]

    def best(self) -> Point:
        """Return the point of the best trial that finished; the recipe's own where none did."""
        values = {
            trial.number: trial.value for trial in self.trials if trial.value is not None and isfinite(trial.value)
        }
        if not values:
            return self.own
        number = (max if self.higher_is_better else min)(values, key=values.__getitem__)
        return Point.of(self.trials[number].user_attrs["point"])

    def report(self) -> SearchReport:
        values: dict[Point, float] = {}
        trials = self.trials
        for trial in trials:
            if trial.value is not None:
                values.setdefault(Point.of(trial.user_attrs["point"]), trial.value)
        statuses, spent = [trial.user_attrs["status"] for trial in trials], self.spent
        return SearchReport(
            space={key: describe(dimension) for key, dimension in self.space.items()},
            stopping=self.settings.stopping if self.compared_every else "none",
            caps=self.caps,
            finished=statuses.count("finished"),
            stopped=statuses.count(STOPPED),
            failed=len(statuses) - statuses.count("finished") - statuses.count(STOPPED),
            seconds=spent["seconds"],
            processor_seconds=spent["processor_seconds"],
            own=values.get(self.own),
            best=values.get(self.best()),
            ended_by=self.ended_by,
            notes=list(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        if self.settings.stopping != "none" and not self.compared_every:
            yield "no trial was stopped early: set training.steps or evaluation.every"
        if not self.beginning.has_own:
            yield "the recipe's own settings are outside the space and were not tried"
        at_end = [key for key, value in self.best().settings.items() if self._is_end(key, value)]
        if at_end and self.trials:
            yield f"the best {', '.join(at_end)} is at an end of its range: a better one may be beyond it"

    def _is_end(self, key: str, value: Any) -> bool:
        """Return whether a value is within a twentieth of its range from one of the ends."""
        dimension = self.space[key]
        if not isinstance(dimension, Range):
            return False
        if isinstance(dimension.low, int) and isinstance(dimension.high, int):
            return value in (dimension.low, dimension.high)
        if dimension.log:
            width = (dimension.high / dimension.low) ** 0.05
            return value < dimension.low * width or value > dimension.high / width
        width = (dimension.high - dimension.low) / 20
        return value < dimension.low + width or value > dimension.high - width


def _final(result: RunResult | None, metric: str) -> float | None:
    """Return the metric of a finished run on the evaluation rows, None where it has no finite value."""
    if result is None or result.status != "finished":
        return None
    value = result.metrics.get("after", {}).get(metric)
    return value if value is not None and isfinite(value) else None
