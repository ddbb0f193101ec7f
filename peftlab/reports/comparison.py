"""A comparison: budgets, trials, variants."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, computed_field

from peftlab.reports.base import Report


class BudgetReport(Report):
    """What a budget asks of one method, and what the size that was solved for reaches, in the budget's unit.

    `kind` trainable counts parameters, memory and stored bytes, seconds and operations the training's. `solved`
    has the recipe's fields that were set (`{"method.rank": 12}`), `step` what the next size would add or take away. A
    budget is met within 2 %, or by the largest size below it; memory, which is a limit, by what is not above it.
    `reason` says why one cannot be met, or what keeps the error above 2 %; `notes` say what was counted.
    """

    kind: Literal["trainable", "memory", "stored", "seconds", "operations"]
    asked: float = Field(gt=0)
    reached: float
    solved: dict[str, Any]
    step: float | None = None
    met: bool
    reason: str | None = None
    notes: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def error(self) -> float:
        return self.reached / self.asked - 1


class TrialReport(Report):
    """A variant at one learning rate with one seed: its run's folder under `runs/`, and what became of it.

    `validation` is the metric on the evaluation rows, which choose a learning rate; `test` the one that is reported.
    `settings` are the recipe's fields that a search tried; `stopped` is the status of a trial that it ended early.
    """

    run: str
    learning_rate: float
    seed: int
    status: str
    settings: dict[str, Any] = Field(default_factory=dict)
    error: str | None = None
    validation: float | None = None
    test: float | None = None


STOPPED = "stopped"
"""The status of a trial that a search ended early, because others were better at the same step."""


NOT_BEGUN = "not_begun"
RUNNING = "running"
UNENDED = (NOT_BEGUN, RUNNING)
"""The statuses of a trial whose run has not ended: no record is there yet, or it says that the run is going."""


class SearchReport(Report):
    """What was searched for one variant, and what it cost: trials by how they ended, seconds of all of them.

    `space` says in words what was tried of each key. `own` is the metric of the recipe's own settings on the
    evaluation rows, `best` that of the chosen ones. `ended_by` names the cap that ended the search, None before that.
    """

    space: dict[str, str]
    stopping: str
    caps: dict[str, float]
    finished: int = 0
    stopped: int = 0
    failed: int = 0
    seconds: float = 0.0
    processor_seconds: float = 0.0
    own: float | None = None
    best: float | None = None
    ended_by: str | None = None
    notes: list[str] = Field(default_factory=list)

    @property
    def trials(self) -> int:
        return self.finished + self.stopped + self.failed


class VariantReport(Report):
    """One variant of a comparison under one budget: the learning rates tried, and the seeds at the chosen one.

    `same_size` are the other amounts of a frontier for which this size, which is run once, is the nearest.
    After a search, `settings` are the chosen ones, and `sweep` has all its trials.
    """

    name: str
    method: str
    title: str
    budget: str | None = None
    same_size: list[str] = Field(default_factory=list)
    solution: BudgetReport | None = None
    learning_rate: float | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    search: SearchReport | None = None
    sweep: list[TrialReport] = Field(default_factory=list)
    trials: list[TrialReport] = Field(default_factory=list)

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the smallest or largest of several that were tried, without a search."""
        if self.search:
            return False
        rates = {trial.learning_rate for trial in self.sweep}
        return len(rates) > 1 and self.learning_rate in (min(rates), max(rates))


class ComparisonReport(Report):
    """A whole comparison; `comparison.json` in its folder, whose `runs/` contains the run directories."""

    name: str
    metric: str
    higher_is_better: bool
    seeds: list[int]
    frontier: str | None = None
    variants: list[VariantReport]
    notes: list[str] = Field(default_factory=list)
