"""One run: its progress, its parts, its result."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, computed_field

from peftlab.reports.base import Report
from peftlab.reports.data import RowView
from peftlab.reports.memory import CheckpointingReport, MemoryReport
from peftlab.reports.parameters import ParameterReport


class Progress(Report):
    """The progress of a run: what resume needs besides the states themselves."""

    step: int = 0
    rows: int = 0
    tokens: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    waited: int = 0
    """Evaluations since the best one."""
    ended_early: bool = False
    """Whether training ended before its last step, because `evaluation.patience` was used up."""


class AuditReport(Report):
    """What the first optimiser steps did to every tensor, by canonical name."""

    steps: int
    without_gradient: list[str]
    unmoved: list[str]
    frozen_changed: list[str]

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def clean(self) -> bool:
        return not (self.without_gradient or self.unmoved or self.frozen_changed)


class ResumeReport(Report):
    """One continuation of a run: from which step, and whether it equals a run that never stopped, or why not."""

    step: int
    exact: bool
    reasons: list[str] = Field(default_factory=list)


class SplitReport(Report):
    """How `training.fit` split a step anew: what the recipe asked for, and what the plan said would fit."""

    asked_batch_size: int
    asked_gradient_accumulation: int
    batch_size: int
    gradient_accumulation: int

    @classmethod
    def of(cls, asked: Any, used: Any) -> SplitReport:
        """Return the report of two recipes."""
        return cls(
            asked_batch_size=asked.training.batch_size,
            asked_gradient_accumulation=asked.training.gradient_accumulation,
            batch_size=used.training.batch_size,
            gradient_accumulation=used.training.gradient_accumulation,
        )


class InferenceReport(Report):
    """What the trained result costs where it is used, as it is and, where it can be, merged into the base.

    `seconds` are medians of one forward pass of `rows` rows of `tokens` tokens: `base`, `unmerged`, `merged`;
    `relative` the median of each one's seconds to the base's, taken in turns; `weight_bytes` what the weights of
    each take in memory. A quantised base is merged dequantised.
    """

    rows: int
    tokens: int
    extra_parameters: int
    extra_parameters_merged: int | None
    seconds: dict[str, float]
    relative: dict[str, float] = Field(default_factory=dict)
    weight_bytes: dict[str, int] = Field(default_factory=dict)


class SwitchReport(Report):
    """One switch of `training.speed` in a run: whether the speed-up is used, and what it does or why it is not.

    `part` says for how much of the model, and why not for the rest, where it is not used for all of it.
    """

    name: str
    used: bool
    reason: str
    part: str = ""


class CallbackReport(Report):
    """What `PeftlabCallback` saw of another trainer's run; `peftlab.json` in its output folder.

    `memory` has the categories of the state and the peak of training: allocated bytes on CUDA, the process's resident
    bytes on the CPU. `log` are the trainer's own lines with a loss.
    """

    model: str
    parameters: ParameterReport
    versions: dict[str, str | None]
    start_step: int = 0
    steps: int = 0
    finished: bool = False
    audit: AuditReport | None = None
    memory: MemoryReport | None = None
    log: list[dict[str, Any]] = Field(default_factory=list)


class SpeedReport(Report):
    """Every switch of `training.speed`, in the recipe's order."""

    switches: list[SwitchReport] = Field(default_factory=list)

    def describe(self) -> str:
        """Return one line: what is used, and why the others are not."""
        names = (f"{one.name} ({one.part})" if one.part else one.name for one in self.switches if one.used)
        used = ", ".join(names) or "none"
        reasons: dict[str, list[str]] = {}
        for one in self.switches:
            if not one.used:
                reasons.setdefault(one.reason, []).append(one.name)
        others = "".join(f"; no {', '.join(names)}: {reason}" for reason, names in reasons.items())
        return f"speed-ups: {used}{others}"

    def uses(self, name: str) -> bool:
        """Return whether the speed-up of this name is used."""
        return any(one.used for one in self.switches if one.name == name)

    def with_switch(self, known: SwitchReport) -> SpeedReport:
        """Return the report with what is known of one switch in place of what it says."""
        return SpeedReport(switches=[known if one.name == known.name else one for one in self.switches])


Status = Literal["running", "finished", "interrupted", "out_of_memory", "diverged", "failed"]


Metrics = dict[str, float | None]
"""Values by the metrics' names; None where one is undefined."""


class RunResult(Report):
    """Everything that is known of one run; `result.json` in its directory.

    `metrics` are by the time of measurement (`before`, `test_after`), and so is `undefined`, the reason for each
    metric that has no value. `signatures` are the settings of metrics of generated text, by the metric's name.
    `saved_step` is the step whose weights are saved: the last one, or with `run.keep` the best; None before that.
    """

    status: Status
    name: str
    recipe: dict[str, Any]
    environment: dict[str, Any]
    parameters: ParameterReport | None = None
    memory: dict[str, MemoryReport] = Field(default_factory=dict)
    split: SplitReport | None = None
    checkpointing: CheckpointingReport | None = None
    speed: SpeedReport | None = None
    audit: AuditReport | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    progress: Progress = Field(default_factory=Progress)
    saved_step: int | None = None
    metrics: dict[str, Metrics] = Field(default_factory=dict)
    undefined: dict[str, dict[str, str]] = Field(default_factory=dict)
    signatures: dict[str, str] = Field(default_factory=dict)
    examples: list[dict[str, str]] = Field(default_factory=list)
    seconds: dict[str, float] = Field(default_factory=dict)
    inference: InferenceReport | None = None
    resumes: list[ResumeReport] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    error: str | None = None


class DryRunReport(Report):
    """What a run would start with: everything up to its first step, and what the longest rows took."""

    recipe: dict[str, Any]
    steps: int
    data: dict[str, Any]
    rows: list[RowView]
    parameters: ParameterReport
    memory: dict[str, MemoryReport]
