"""The page of a study: the claim, the verdict, every expectation beside what was found, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from peftlab.comparison.report.style import inline_svg
from peftlab.files import write_atomically
from peftlab.reports import ExpectationReport, StudyReport
from peftlab.studies.charts import Chart
from peftlab.studies.quantity import number_text

STYLES = "comparison/report/templates/report.css"


@dataclass(frozen=True)
class Drawn:
    """A chart as the page embeds it."""

    title: str
    caption: str
    vector: str


def write_page(report: StudyReport, charts: Sequence[Chart], path: Path) -> Path:
    """Write the page, and each picture beside it as PNG and SVG; return the page."""
    drawn = []
    for chart in charts:
        vector, pixels = chart.draw()
        write_atomically(path.parent / f"{chart.name}.svg", vector)
        write_atomically(path.parent / f"{chart.name}.png", pixels)
        drawn.append(Drawn(chart.title, chart.caption, inline_svg(vector, chart.name, chart.title)))
    write_atomically(path, render_page(report, drawn))
    return path


def render_page(report: StudyReport, charts: Sequence[Drawn]) -> str:
    """Return the page as HTML that needs no other file."""
    return (
        _environment()
        .get_template("study.html")
        .render(
            report=report,
            charts=[(chart, Markup(chart.vector)) for chart in charts],
            found=found_text,
            facts=facts_of(report),
            uncertain=any(one.low != one.high for one in report.expectations),
            style=Markup((files("peftlab") / STYLES).read_text(encoding="utf-8")),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("peftlab.studies"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def found_text(one: ExpectationReport) -> str:
    """Return what was found: `11.2 [8.9, 14.1]`, the value alone where it is exact, or that it is not known."""
    if one.value is None:
        return "not measured"
    unit = f" {one.unit}" if one.unit else ""
    if one.low is None and one.high is None:
        return f"{number_text(one.value)}{unit}, no interval"
    if one.low == one.high:
        return f"{number_text(one.value)}{unit}"
    low = "\u2212\u221e" if one.low is None else number_text(one.low)
    high = "\u221e" if one.high is None else number_text(one.high)
    return f"{number_text(one.value)} [{low}, {high}]{unit}"


def facts_of(report: StudyReport) -> list[str]:
    """Return size, time, date and machine of a study that ran."""
    versions = report.environment.get("versions", {})
    facts = [f"size {report.size}"]
    facts += [f"{report.seconds / 60:,.0f} minutes of runs"] if report.seconds is not None else []
    facts += [str(fact) for fact in (report.date, report.environment.get("device")) if fact]
    return facts + [f"{name} {versions[name]}" for name in ("peftlab", "torch") if versions.get(name)]
