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
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftlab.comparison.beginning import MOST_TRIALS, Beginning, Tried
from peftlab.comparison.points import Point
from peftlab.comparison.proposals import Proposals
from peftlab.comparison.stopping import PARTS, Stopping
from peftlab.comparison.variants import spare_trial
from peftlab.errors import StorageError
from peftlab.recipe.comparison import LEARNING_RATE, Variant
from peftlab.recipe.space import Dimension, Range, Search, describe, value_at
from peftlab.reports import STOPPED, RunResult, SearchReport, TrialReport
from peftlab.runs.directory import RunDirectory
from peftlab.runs.jobs import Ending, Job
from peftlab.runs.outcomes import read_record
from peftlab.runs.phases import PHASES, PROCESSOR
from peftlab.training.metrics_file import read_lines

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Attempt:
    """One trial while it runs: optuna's trial, which decides whether to stop it, its point and its job.

    A `whole` one is not stopped: the first ones, as a higher learning rate and another schedule may be behind for long
    and end ahead.
    """

    trial: optuna.Trial
    point: Point
    job: Job
    whole: bool = False


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
    stopping: Stopping = field(init=False)
    proposals: Proposals = field(init=False)
    attempt: Attempt | None = None
    seen: int = 0

    def __post_init__(self) -> None:
        self.space = {
            key: dimension.for_recipe(value_at(self.variant.recipe, key)) if isinstance(dimension, Range) else dimension
            for key, dimension in {**self.settings.space, **self.variant.space}.items()
        }
        described = json.dumps(
            [self.identity, self.metric, self.settings.stopping, PARTS, sorted(map(str, self.space.items()))]
        )
        name = f"{self.variant.title} {sha256(described.encode()).hexdigest()[:12]}"
        self.beginning = Beginning(self.own, self.space, self.variant.suggested_learning_rate)
        drawn = 0 if self.beginning.learning_rates else MOST_TRIALS
        self.stopping = Stopping(self.settings.stopping, self.variant.recipe, self.space, self.own)
        self.proposals = Proposals(
            name, self.storage, self.space, self.higher_is_better, self.stopping.build_pruner(), drawn
        )

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, in their order."""
        return self.proposals.trials

    @property
    def own(self) -> Point:
        """The recipe's own settings of what is searched."""
        return Point.of({key: value_at(self.variant.recipe, key) for key in self.space})

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
        first = self.beginning.next(self.tried(), self.best())
        trial, point = self.proposals.ask(first)
        job = self.plan(point, self.trial_overrides(point))
        self.attempt, self.seen = Attempt(trial, point, job, whole=first is not None), 0
        return job

    def trial_overrides(self, point: Point) -> list[str]:
        """Return what is different in a trial: the evaluation rows alone are measured, also during training."""
        overrides = spare_trial(self.variant.recipe)
        if self.stopping.is_on:
            overrides.append(f"evaluation.every={self.stopping.every(point)}")
        return overrides

    def should_stop(self) -> bool:
        """Read what the trial has measured since the last time, and return whether others did better at that part."""
        attempt = self.attempt
        assert attempt is not None
        if not self.stopping.is_on:
            return False
        for line in self._evaluations(attempt.job)[self.seen :]:
            self.seen += 1
            value, part = line.get(self.metric), self.stopping.part_at(line["step"], attempt.point)
            if part is None or not isinstance(value, float | int):
                continue
            attempt.trial.report(value, part)
            if (
                attempt.trial.should_prune() and not attempt.whole
            ):  # asked anyway: it is what later trials are compared with
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
        best = self._best_trial()
        return self.own if best is None else point_of(best)

    def _best_trial(self) -> optuna.trial.FrozenTrial | None:
        values = {
            trial.number: trial.value for trial in self.trials if trial.value is not None and isfinite(trial.value)
        }
        if not values:
            return None
        return self.trials[(max if self.higher_is_better else min)(values, key=values.__getitem__)]

    def tried(self) -> list[Tried]:
        """Return the points of the trials that have ended, with their losses."""
        sign = -1 if self.higher_is_better else 1
        return [Tried(point_of(trial), None if trial.value is None else sign * trial.value) for trial in self.trials]

    def report(self) -> SearchReport:
        values: dict[Point, float] = {}
        trials = self.trials
        for trial in trials:
            if trial.value is not None:
                values.setdefault(point_of(trial), trial.value)
        statuses, spent = [trial.user_attrs["status"] for trial in trials], self.spent
        return SearchReport(
            space={key: describe(dimension) for key, dimension in self.space.items()},
            stopping=self.stopping.rule,
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
        if why := self.stopping.why_not():
            yield f"no trial was stopped early: {why}"
        if not self.beginning.has_own:
            yield "the recipe's own settings are outside the space and were not tried"
        at_end = [
            key
            for key, value in self.best().settings.items()
            if isinstance(dimension := self.space[key], Range) and dimension.is_near_end(value)
        ]
        if at_end and self.trials:
            yield f"the best {', '.join(at_end)} is at an end of its range: a better one may be beyond it"


def point_of(trial: optuna.trial.FrozenTrial) -> Point:
    return Point.of(trial.user_attrs["point"])


def _final(result: RunResult | None, metric: str) -> float | None:
    """Return the metric of a finished run on the evaluation rows, None where it has no finite value."""
    if result is None or result.status != "finished":
        return None
    value = result.metrics.get("after", {}).get(metric)
    return value if value is not None and isfinite(value) else None
