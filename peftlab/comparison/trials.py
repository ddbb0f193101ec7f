"""A trial read back: a variant at one learning rate with one seed, and what its run directory contains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError
from peftlab.files import read_text
from peftlab.metrics import METRICS as KNOWN
from peftlab.metrics import RowScores
from peftlab.reports import (
    NOT_BEGUN,
    RUNNING,
    STOPPED,
    UNENDED,
    Metrics,
    ParameterReport,
    RunResult,
    TrialReport,
)
from peftlab.runs.catalogue import is_in_use
from peftlab.runs.digests import METRICS, RECORD, SCORES, TEXTS, WEIGHTS, find_faults
from peftlab.runs.directory import RunDirectory, text_scores
from peftlab.runs.figures import check_record, compare_figures
from peftlab.runs.outcomes import read_record
from peftlab.runs.scores import read_scores
from peftlab.training.metrics_file import read_lines

DAMAGED = "damaged"
# What earlier versions wrote of a run that had not begun, with the status `failed`.
NOT_RUN = "it has not run yet"


@dataclass(frozen=True)
class Trial:
    """What became of a trial; one whose run never began has no `result`, and a damaged one says so in its report."""

    report: TrialReport
    result: RunResult | None = None
    recipe: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, RowScores] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.report.status == "finished" and self.result is not None

    @property
    def stopped(self) -> bool:
        """Whether a search ended it early."""
        return self.report.status == STOPPED

    @property
    def unended(self) -> bool:
        """Whether its run has not begun, or is going."""
        return self.report.status in UNENDED

    @property
    def lost(self) -> bool:
        """Whether its run failed or is damaged."""
        return not (self.finished or self.stopped or self.unended)

    @property
    def tested(self) -> bool:
        """Whether it was measured on test rows."""
        return "test_after" in self.metrics

    def has_value(self, metric: str, tested: bool | None = None) -> bool:
        """Return whether the metric that is reported is a finite number, or its rows alone give one.

        `tested` says whether the one on the test rows is reported; by default it is where the trial has some.
        """
        part = "test_after" if (self.tested if tested is None else tested) else "after"
        found = self.metrics.get(part, {})
        if metric in found:
            return (value := found[metric]) is not None and isfinite(value)
        rows = [self.scores[name] for name in (part, text_scores(part)) if name in self.scores]
        known = KNOWN.get(metric)
        return known is not None and any(known.suits(one) and isfinite(known.of_rows(one)) for one in rows)

    @property
    def metrics(self) -> dict[str, Metrics]:
        return self.result.metrics if self.result else {}

    @property
    def parameters(self) -> ParameterReport | None:
        return self.result.parameters if self.result else None

    @property
    def training_seconds(self) -> float | None:
        return self.result.seconds.get("training") if self.result else None

    @property
    def update_bytes(self) -> int | None:
        """The bytes of gradients and optimiser state; each gradient is as large as its weight."""
        report = self.result.memory.get("measured") if self.result else None
        if report is None or not report.categories:
            return None
        return report.categories.get("trainable_weights", 0) + report.categories.get("optimiser_state", 0)

    def reported_as(self, report: TrialReport) -> Trial:
        """Return the trial under another report of the same run; a damaged one stays damaged."""
        if self.report.status != DAMAGED or report.status != "finished":
            return replace(self, report=report)
        return damaged(report, self.report.error or "")

    def peak_bytes(self, source: str) -> int | None:
        """Return the peak of memory, `predicted` or `measured`."""
        report = self.result.memory.get(source) if self.result else None
        return report.peak_bytes if report else None


def as_now(path: Path, report: TrialReport) -> TrialReport:
    """Return the report of a trial whose run had not ended when the comparison wrote it, as its folder says now."""
    if report.status not in UNENDED and report.error != NOT_RUN:
        return report
    record = read_record(path)
    status, error = (NOT_BEGUN, None) if record is None else (record.status, record.error)
    if status == RUNNING and not is_in_use(path):
        status, error = "killed", "its process has ended; the same `peftlab compare` runs it again"
    elif status == "finished":
        status, error = "ended", "it ended after the comparison; the same `peftlab compare` counts it"
    return report.model_copy(update={"status": status, "error": error})


def read_trial(path: Path, report: TrialReport, problems: list[str], verify: bool = True) -> Trial:
    """Return a trial with what its run directory contains.

    A finished one of which anything is missing or changed counts as lost, and adds a line to `problems`; `verify`
    compares its files with the digests that the run wrote.
    """
    try:
        return _read(path, report, verify)
    except StorageError as error:
        if report.status != "finished":
            return Trial(report)
        problems.append(f"{error}; the run counts as lost")
        return damaged(report, str(error))


def damaged(report: TrialReport, error: str) -> Trial:
    """Return a trial of which nothing is used."""
    return Trial(report.model_copy(update={"status": DAMAGED, "error": error, "validation": None, "test": None}))


def _read(path: Path, report: TrialReport, verify: bool) -> Trial:
    directory = RunDirectory.open(path)
    if verify and report.status == "finished":
        # Weights are large, and a report does not use them: their sizes must do.
        faults = find_faults(path, (*RECORD, METRICS, SCORES, TEXTS)) | find_faults(path, [WEIGHTS], contents=False)
        if faults:
            raise StorageError(next(iter(faults.values())))
    result = directory.read_result()
    check_record(directory, result)
    recipe = read_text(directory.recipe) if directory.recipe.exists() else ""
    scores = read_scores(directory.scores)
    compare_figures(directory, result, scores)
    return Trial(report, result, recipe, read_lines(directory.metrics)[0], scores)
