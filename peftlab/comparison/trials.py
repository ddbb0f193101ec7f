"""A trial read back: a variant at one learning rate with one seed, and what its run directory contains."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftlab.errors import StorageError
from peftlab.metrics import RowScores
from peftlab.reports import Metrics, ParameterReport, RunResult, TrialReport
from peftlab.runs.directory import RunDirectory


@dataclass(frozen=True)
class Trial:
    """What became of a trial; one whose run never began has no `result`."""

    report: TrialReport
    result: RunResult | None = None
    recipe: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, RowScores] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.report.status == "finished" and self.result is not None

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

    def peak_bytes(self, source: str) -> int | None:
        """Return the peak of memory, `predicted` or `measured`."""
        report = self.result.memory.get(source) if self.result else None
        return report.peak_bytes if report else None


def read_trial(path: Path, report: TrialReport, problems: list[str]) -> Trial:
    """Return a trial with what its run directory contains; what cannot be read adds a line to `problems`."""
    try:
        directory = RunDirectory.open(path)
        result = directory.read_result()
    except StorageError as error:
        if report.status == "finished":
            problems.append(str(error))
        return Trial(report)
    recipe = directory.recipe.read_text(encoding="utf-8", errors="replace") if directory.recipe.is_file() else ""
    return Trial(report, result, recipe, _read_history(directory.metrics), _read_scores(directory.scores, problems))


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a run's metrics; the last one of a killed run may not be."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def _read_scores(path: Path, problems: list[str]) -> dict[str, RowScores]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {part: RowScores.of(scores) for part, scores in stored.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        problems.append(f"{path}: row scores cannot be read ({type(error).__name__}); the run counts without them")
        return {}
