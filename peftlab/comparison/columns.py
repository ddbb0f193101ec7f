"""One line a variant and its columns: what people read, and the values by which a table sorts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor, isfinite, log10

from peftlab.comparison.findings import Findings, peak_bytes
from peftlab.comparison.outcome import Outcome, Run, Variant
from peftlab.comparison.statistics import Estimate
from peftlab.quantities import format_bytes, format_count, format_seconds, format_share
from peftlab.reports import InferenceReport, ParameterReport, VariantReport

NONE = "–"
MOST_DECIMALS = 4
BUDGET_TOLERANCE = 0.02


@dataclass(frozen=True)
class Line:
    """One variant: what it is, its statistics, and the run that stands for its costs."""

    variant: Variant
    run: Run | None
    quality: Estimate | None
    change: Estimate | None
    general: Estimate | None
    letters: str
    seconds: float | None

    @property
    def status(self) -> str:
        """How many of the seeds finished, and what became of the others."""
        runs = self.variant.runs or self.variant.sweep
        lost = [run.trial.status for run in runs if not run.finished]
        told = f"{len(runs) - len(lost)} of {len(runs)}"
        return f"{told} ({', '.join(dict.fromkeys(lost)).replace('_', ' ')})" if lost else told

    @property
    def parameters(self) -> ParameterReport | None:
        return self.run.result.parameters if self.run else None

    @property
    def inference(self) -> InferenceReport | None:
        """What the result costs in use, of the first seed that measured it."""
        runs = [run.result for run in self.variant.finished]
        return next((result.inference for result in runs if result.inference), None)

    def latency(self, state: str) -> float | None:
        """Return a forward pass's time `unmerged` or `merged` as a multiple of the base model's."""
        seconds = self.inference.seconds if self.inference else {}
        return seconds[state] / seconds["base"] if state in seconds and seconds.get("base") else None


def lines_of(outcome: Outcome, findings: Findings) -> list[Line]:
    """Return a line for every variant, in the comparison's own order."""
    quality = findings.quality.get(outcome.report.metric, {})
    return [
        Line(
            variant,
            variant.example,
            quality.get(variant.label),
            findings.change.get(variant.label),
            findings.general_change.get(variant.label),
            findings.letters.get(variant.label, ""),
            cost.mean if (cost := findings.costs["seconds"].get(variant.label)) else None,
        )
        for variant in outcome.variants
    ]


def state_bytes(run: Run | None) -> int | None:
    """Return what gradients and optimiser take; each gradient is as large as its weight."""
    report = run.result.memory.get("measured") if run and run.result else None
    if report is None or not report.categories:
        return None
    return report.categories.get("trainable_weights", 0) + report.categories.get("optimiser_state", 0)


@dataclass(frozen=True)
class Column:
    """One column of the table of variants: its value, by which it sorts, the text that people read, an addition."""

    key: str
    title: str
    value: Callable[[Line], float | str | None]
    show: Callable[[Line], str]
    number: bool = True
    add: Callable[[Line], str] = lambda line: ""

    def text(self, line: Line) -> str:
        if self.value(line) is None:
            return NONE
        added = self.add(line)
        return f"{self.show(line)} ({added})" if added else self.show(line)


def filled_columns(outcome: Outcome, lines: Sequence[Line]) -> list[Column]:
    """Return the columns that at least one variant fills."""
    columns = [*_statistics(outcome.report.metric, lines), *_budgets(), *_inference(), *_runs()]
    return [column for column in columns if any(column.value(line) is not None for line in lines)]


def _statistics(metric: str, lines: Sequence[Line]) -> list[Column]:
    def name(line: Line) -> str:
        return line.variant.report.name

    return [
        Column("variant", "variant", name, name, False, _size_text),
        Column("budget", "budget", lambda line: line.variant.report.budget, _budget_text, False),
        _interval_column("quality", metric, [line.quality for line in lines], lambda line: line.quality),
        Column("group", "group", lambda line: line.letters or None, lambda line: line.letters, False),
        _interval_column("change", f"{metric}, change", [line.change for line in lines], lambda line: line.change, "+"),
        _interval_column(
            "general", "general loss, change", [line.general for line in lines], lambda line: line.general, "+"
        ),
    ]


def _interval_column(
    key: str, title: str, found: Sequence[Estimate | None], of: Callable[[Line], Estimate | None], sign: str = ""
) -> Column:
    """Return a column of intervals, all with the decimals that the narrowest deserves."""
    digits = shared_decimals(found)
    return Column(
        key,
        title,
        lambda line: estimate.mean if (estimate := of(line)) else None,
        lambda line: interval_text(of(line), digits, sign),
    )


def _budgets() -> list[Column]:
    return [
        Column("trainable", "trainable", lambda line: line.parameters and line.parameters.trainable, _count_text),
        Column(
            "stored",
            "stored",
            lambda line: line.parameters and line.parameters.stored_bytes,
            lambda line: format_bytes(line.parameters.stored_bytes),
        ),
        Column(
            "state",
            "gradients, optimiser",
            lambda line: state_bytes(line.run),
            lambda line: format_bytes(state_bytes(line.run)),
        ),
        Column(
            "memory",
            "peak memory",
            lambda line: peak_bytes(line.run, "measured"),
            lambda line: format_bytes(peak_bytes(line.run, "measured")),
        ),
        Column("seconds", "seconds", lambda line: line.seconds, lambda line: format_seconds(line.seconds)),
    ]


def _inference() -> list[Column]:
    return [
        Column(
            "extra",
            "extra in use",
            lambda line: line.inference and line.inference.extra_parameters,
            lambda line: format_count(line.inference.extra_parameters),
        ),
        Column("latency", "latency", lambda line: line.latency("unmerged"), _latency_text),
    ]


def _runs() -> list[Column]:
    return [
        Column(
            "rate",
            "rate",
            lambda line: line.variant.report.learning_rate,
            lambda line: f"{line.variant.report.learning_rate:.3g}",
        ),
        Column("seeds", "seeds", lambda line: len(line.variant.finished), lambda line: line.status),
    ]


def _size_text(line: Line) -> str:
    """Return the size that the budget was solved for: without it nobody knows which LoRA this is."""
    solution = line.variant.report.solution
    field, size = next(iter(solution.solved.items()), (None, None)) if solution else (None, None)
    return f"{field.rpartition('.')[2]} {size}" if field else ""


def _count_text(line: Line) -> str:
    return f"{format_count(line.parameters.trainable)} ({format_share(line.parameters.fraction)})"


def _latency_text(line: Line) -> str:
    merged = line.latency("merged")
    return f"×{line.latency('unmerged'):.2f}" + (f", merged ×{merged:.2f}" if merged is not None else "")


def _budget_text(line: Line) -> str:
    """Return the budget, and by how much the solved size misses it where it does."""
    report = line.variant.report
    missed = missed_text(report)
    return f"{report.budget} (off {missed})" if missed else str(report.budget)


def missed_text(report: VariantReport) -> str | None:
    """Return by how much the solved size misses the budget, `−74 %`; None where it is within 2 %."""
    error = report.solution.error if report.solution else 0.0
    return signed(f"{100 * error:+.0f} %") if abs(error) > BUDGET_TOLERANCE else None


def interval_text(found: Estimate, digits: int, sign: str = "") -> str:
    """Return `mean [low, high]`, or the mean alone where there is no interval."""
    texts = [signed(f"{value:{sign}.{digits}f}") for value in (found.mean, found.low, found.high)]
    return texts[0] if found.low == found.high else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def signed(text: str) -> str:
    """Return a number with a true minus."""
    return text.replace("-", "−")


def shared_decimals(found: Sequence[Estimate | None]) -> int:
    """Return the decimals that show two figures of the narrowest interval's half."""
    halves = [(one.high - one.low) / 2 for one in found if one is not None]
    widths = [half for half in halves if half > 0 and isfinite(half)]
    return min(MOST_DECIMALS, max(0, 1 - floor(log10(min(widths))))) if widths else 3
