"""Models that were merged or exported, and how far they are from the trained one."""

from __future__ import annotations

from pydantic import Field

from peftlab.reports.base import Report
from peftlab.reports.memory import MemoryReport

Change = tuple[float, float | None, float | None]
"""A change with the ends of its 95 % interval, None where fewer than six rows show no chance of theirs."""


class MetricChange(Report):
    """A metric of two models on the same rows; `change` is the second's less the first's, with its 95 % interval."""

    first: float
    second: float
    change: Change


class AgreementReport(Report):
    """How far a second model's outputs are from a first one's, on the targets of the same rows.

    `largest`, `mean` and `rms` are of the absolute differences of logits, `kl` is in nats a target, `same_top` the
    share of targets with the same likeliest class, `loss_change` the change of the loss with its 95 % interval,
    `metrics` the other metrics of the recipe that need no generated text.
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
    loss_change: Change
    metrics: dict[str, MetricChange] = Field(default_factory=dict)


class MergeReport(Report):
    """A merged model: its tensors by what became of them, and how far it is from the model that was trained.

    `effect` is the `rms` of what training changed, `limit` the largest `rms` of the difference that passes.
    `agreements` are by the base that the updates were added to; `base` is the one that was chosen, `part` the rows
    that were compared. Both are empty where nothing was compared. `serve` has a command for each server that takes
    the folder. `quantized` is the comparison of what was quantised after that (`quantize` says how). `memory` is what
    the merge took of the host beside the loaded libraries, predicted (where it could be) and measured, without that.
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
    quantize: str | None = None
    quantized: AgreementReport | None = None
    quantized_limit: float | None = None
    memory: dict[str, MemoryReport] = Field(default_factory=dict)
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
