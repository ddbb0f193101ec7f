"""The report types that every command shares: parameters, memory and the result of a run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field


class Report(BaseModel):
    # JSON has no NaN and no infinity: as texts they come back as the numbers that they are.
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


class CountRow(Report):
    """Parameters of one group: a kind or a layer."""

    name: str
    total: int
    trainable: int


class ParameterReport(Report):
    """Logical counts: a 4-bit weight counts as what it stands for, a tied weight once.

    `active` is what one token uses (less than `total` only with experts), `stored_bytes` what the result of
    the run takes on disk as tensors. `notes` say what is not counted or gets no update.
    """

    total: int
    trainable: int
    active: int
    stored_bytes: int
    kinds: list[CountRow]
    layers: list[CountRow]
    notes: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def fraction(self) -> float:
        return self.trainable / self.total if self.total else 0.0


class DevicePhase(Report):
    """CUDA's measurements of one phase: the allocator's peaks, and what all processes together use of the device.

    `inactive_split_bytes` is the peak of what is free in blocks that other tensors keep from being given back: the
    fragmentation. `outside_bytes` is what was used at the end of the phase and is not the allocator's, other
    processes included.
    """

    allocated_bytes: int
    reserved_bytes: int
    inactive_split_bytes: int
    used_bytes: int
    outside_bytes: int = 0

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def fragmentation_bytes(self) -> int:
        return self.inactive_split_bytes


PHASES = ("load", "first_step", "steady_step", "evaluation", "generation", "save")
"""A run's phases in order; those that a run does not have are in no report."""


class MemoryReport(Report):
    """Peak memory in bytes, predicted or measured, by category (at the peak) and by phase (its own peak).

    `peak_bytes` is what tensors take; `overheads` is what the device loses besides (the allocator's slack, the
    CUDA context), `capacity_bytes` what it has. A measurement on CUDA has the allocator's own numbers in
    `device_phases`. A plan also says what it maximised and what would make it fit.
    """

    source: Literal["measured", "predicted"]
    device: str
    peak_bytes: int
    categories: dict[str, int] = Field(default_factory=dict)
    phases: dict[str, int] = Field(default_factory=dict)
    device_phases: dict[str, DevicePhase] = Field(default_factory=dict)
    overheads: dict[str, int] = Field(default_factory=dict)
    capacity_bytes: int | None = None
    maximized: dict[str, int] = Field(default_factory=dict)
    remedies: list[str] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def needed_bytes(self) -> int:
        return self.peak_bytes + sum(self.overheads.values())

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def residual_bytes(self) -> int:
        """What the categories do not explain of the peak."""
        return self.peak_bytes - sum(self.categories.values()) if self.categories else 0

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def fits(self) -> bool | None:
        return None if self.capacity_bytes is None else self.needed_bytes <= self.capacity_bytes

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use, which mypy does not know
    @property
    def spare_bytes(self) -> int | None:
        return None if self.capacity_bytes is None else self.capacity_bytes - self.needed_bytes


class MethodPlan(Report):
    """One method on one model, planned: what it trains, takes and costs, or why it cannot be applied.

    `relative_step_time` is the floating-point operations of a step as a part of full fine-tuning's.
    """

    method: str
    title: str
    trainable: int = 0
    fraction: float = 0.0
    relative_step_time: float = 0.0
    memory: MemoryReport | None = None
    error: str | None = None


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


class SpeedReport(Report):
    """Every switch of `training.speed`, in the recipe's order."""

    switches: list[SwitchReport] = Field(default_factory=list)

    def describe(self) -> str:
        """Return one line: what is used, and why the others are not."""
        names = (f"{one.name} ({one.part})" if one.part else one.name for one in self.switches if one.used)
        used = ", ".join(names) or "none"
        others = "".join(f"; no {one.name}: {one.reason}" for one in self.switches if not one.used)
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


class AgreementReport(Report):
    """How far a second model's outputs are from a first one's, on the targets of the same rows.

    `largest`, `mean` and `rms` are of the absolute differences of logits, `kl` is in nats a target, `same_top` the
    share of targets with the same likeliest class, `loss_change` the change of the loss with its 95 % interval.
    """

    rows: int
    targets: int
    largest: float
    mean: float
    rms: float
    kl: float
    same_top: float
    loss_first: float
    loss_second: float
    loss_change: tuple[float, float, float]


class MergeReport(Report):
    """A merged model: its tensors by what became of them, and how far it is from the model that was trained.

    `effect` is the `rms` of what training changed, `limit` the largest `rms` of the difference that passes.
    `agreements` are by the base that the updates were added to; `base` is the one that was chosen, `part` the rows
    that were compared. Both are empty where nothing was compared. `serve` has a command for each server that takes
    the folder.
    """

    run: str
    folder: str
    dtype: str
    base: str
    tensors: dict[str, int]
    part: str | None = None
    effect: float | None = None
    limit: float | None = None
    agreements: dict[str, AgreementReport] = Field(default_factory=dict)
    serve: dict[str, str] = Field(default_factory=dict)


class ExportReport(Report):
    """What was written of a run for other software: files with their bytes, and what became of its tensors.

    `agreement` says how far what was written is from the trained model, `limit` the largest `rms` that passes; None
    where nothing was compared. `serve` has a command for each server that takes the folder, `notes` what to know.
    """

    run: str
    folder: str
    to: str
    dtype: str | None = None
    files: dict[str, int] = Field(default_factory=dict)
    tensors: dict[str, int] = Field(default_factory=dict)
    part: str | None = None
    effect: float | None = None
    limit: float | None = None
    agreement: AgreementReport | None = None
    serve: dict[str, str] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


class Span(Report):
    """Neighbouring tokens of one row as text, all of them supervised or none."""

    text: str
    tokens: int
    supervised: bool


class RowView(Report):
    """One row as the model sees it; `label` is a classified row's."""

    tokens: int
    supervised: int
    spans: list[Span]
    label: str | None = None


class RowReport(Report):
    """One row of a recipe's data before any training: what the model gets, and what is unusual about it.

    `index` counts the part's examples from 0. `prompt` is the text that generation would be given, None where the
    row has none. `supervised` has the supervised pieces in order, decoded with their special tokens, `ids` the
    tokens. A row that is dropped has no ids; the reason is among its `faults`.
    """

    index: int
    prompt: str | None
    supervised: list[str]
    ids: list[int]
    spans: list[Span]
    label: str | None = None
    faults: list[str] = Field(default_factory=list)


class LengthBin(Report):
    """Rows of `first` to `last` tokens."""

    first: int
    last: int
    rows: int


class StepsReport(Report):
    """What training steps take: rows and tokens of a step, and the share of padding in its batches, as means."""

    steps: int
    epochs: float
    rows: int
    tokens: float
    supervised: float
    padding: float


class DataReport(Report):
    """What a model will see of a recipe's data. `data` is the part of a run's result on its rows.

    `refusal` is the reason why training would refuse the data. `part` names the rows that `rows` and `lengths` are of.
    """

    part: str
    data: dict[str, Any]
    ends: list[str]
    steps: StepsReport | None
    lengths: list[LengthBin]
    notes: list[str]
    refusal: str | None
    rows: list[RowReport]


class DryRunReport(Report):
    """What a run would start with: everything up to its first step, and what the longest rows took."""

    recipe: dict[str, Any]
    steps: int
    data: dict[str, Any]
    rows: list[RowView]
    parameters: ParameterReport
    memory: dict[str, MemoryReport]


class BudgetReport(Report):
    """What a budget asks of one method, and what the size that was solved for reaches, in the budget's unit.

    `kind` trainable counts parameters, memory and stored bytes, seconds the training's. `solved` has the recipe's
    fields that were set (`{"method.rank": 12}`), `step` what the next size would add or take away. A budget is met
    within 2 %, or by the largest size below it; memory, which is a limit, by what is not above it. `reason` says why
    one cannot be met, or what keeps the error above 2 %; `notes` say what was counted.
    """

    kind: Literal["trainable", "memory", "stored", "seconds"]
    asked: float
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
    """

    run: str
    learning_rate: float
    seed: int
    status: str
    error: str | None = None
    validation: float | None = None
    test: float | None = None


class VariantReport(Report):
    """One variant of a comparison under one budget: the learning rates tried, and the seeds at the chosen one."""

    name: str
    method: str
    title: str
    budget: str | None = None
    solution: BudgetReport | None = None
    learning_rate: float | None = None
    sweep: list[TrialReport] = Field(default_factory=list)
    trials: list[TrialReport] = Field(default_factory=list)

    @property
    def at_edge(self) -> bool:
        """Whether the chosen learning rate is the smallest or largest of several that were tried."""
        rates = {trial.learning_rate for trial in self.sweep}
        return len(rates) > 1 and self.learning_rate in (min(rates), max(rates))


class ComparisonReport(Report):
    """A whole comparison; `comparison.json` in its folder, whose `runs/` contains the run directories."""

    name: str
    metric: str
    higher_is_better: bool
    seeds: list[int]
    variants: list[VariantReport]
    notes: list[str] = Field(default_factory=list)
