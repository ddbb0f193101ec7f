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

from peftlab.comparison.beginning import MOST_TRIALS, Beginning, Tried
from peftlab.comparison.points import Point
from peftlab.comparison.proposals import Proposals, build_pruner
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

# Trials are compared after a third and after two thirds of their steps: the better half continues each time. Earlier, a
# trial with a long warm-up is behind that ends ahead.
PARTS, REDUCTION = 3, 2
# Trials that differ in these have other rows at the same step.
BATCHES = {"training.batch_size", "training.gradient_accumulation"}
# What these evaluations may take of a trial. A forward pass takes a third of a row's step.
EVALUATION_SHARE, FORWARD = 0.2, 1 / 3


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
        parts = None if self.steps_of(self.own) is None else PARTS
        pruner = build_pruner(self.settings.stopping if self.is_compared else "none", parts, REDUCTION)
        self.proposals = Proposals(name, self.storage, self.space, self.higher_is_better, pruner, drawn)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that have ended, in their order."""
        return self.proposals.trials

    @property
    def own(self) -> Point:
        """The recipe's own settings of what is searched."""
        return Point.of({key: value_at(self.variant.recipe, key) for key in self.space})

    def value_in(self, point: Point, key: str) -> Any:
        """Return the value of a recipe's key in the trial of a point."""
        return point.settings.get(key, value_at(self.variant.recipe, key))

    def rows_per_step(self, point: Point) -> int:
        return self.value_in(point, "training.batch_size") * self.value_in(point, "training.gradient_accumulation")

    def steps_of(self, point: Point) -> int | None:
        """Return the steps of a point's trial; None where a recipe in epochs does not say how many rows it reads."""
        steps, epochs = self.value_in(point, "training.steps"), self.value_in(point, "training.epochs")
        rows = self.value_in(point, "data.train_rows")
        if steps is not None or rows is None:
            return steps
        return ceil(epochs * rows / self.rows_per_step(point))

    @property
    def is_compared(self) -> bool:
        """Whether trials are compared while they run, so that the worse can be stopped."""
        if self.settings.stopping == "none" or self.evaluation_share > EVALUATION_SHARE:
            return False
        return self.compared_every(self.own) is not None

    def compared_every(self, point: Point) -> int | None:
        """Return the steps between two evaluations of a trial that may stop it: equal parts of every trial.

        Where its steps are not known, as many as the recipe has; None where trials then have different batches.
        """
        if (steps := self.steps_of(point)) is not None:
            return ceil(steps / PARTS)
        return None if BATCHES & self.space.keys() else self.variant.recipe.evaluation.every

    @property
    def evaluation_share(self) -> float:
        """What comparisons cost as a share of a trial's training; 0 where the number of rows is not known before."""
        data, steps = self.variant.recipe.data, self.steps_of(self.own)
        rows = data.evaluation if isinstance(data.evaluation, int) else data.evaluation_rows
        if rows is None or steps is None:
            return 0.0
        return (PARTS - 1) * rows * FORWARD / (steps * self.rows_per_step(self.own))

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
        if self.is_compared:
            overrides.append(f"evaluation.every={self.compared_every(point)}")
        return overrides

    def should_stop(self) -> bool:
        """Read what the trial has measured since the last time, and return whether others did better at that part."""
        attempt = self.attempt
        assert attempt is not None
        every, steps = self.compared_every(attempt.point), self.steps_of(attempt.point)
        if not self.is_compared or every is None:
            return False
        for line in self._evaluations(attempt.job)[self.seen :]:
            self.seen += 1
            value, (part, rest) = line.get(self.metric), divmod(line["step"], every)
            if part == 0 or rest or line["step"] == steps or not isinstance(value, float | int):
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
            stopping=self.settings.stopping if self.is_compared else "none",
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
        if self.settings.stopping != "none" and self.evaluation_share > EVALUATION_SHARE:
            yield (
                f"no trial was stopped early: the evaluations for it would take {self.evaluation_share:.0%} of a trial"
            )
        elif self.settings.stopping != "none" and not self.is_compared:
            yield "no trial was stopped early: set training.steps, or training.epochs and data.train_rows"
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
