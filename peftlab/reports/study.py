"""A study: its claim, what was expected, what was found, and the verdict."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from peftlab.reports.base import Report


class ExpectationReport(Report):
    """The range, `least` to `most`, in which a claim expects a quantity, and what was found of it.

    `refuted_where` says in words what would refute the claim. `outcome` is None until the study has run; `value` is
    None where the quantity could not be computed, and its interval, `low` to `high`, where it is not known.
    """

    name: str
    text: str
    least: float | None = None
    most: float | None = None
    unit: str = ""
    expected: str
    refuted_where: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    outcome: str | None = None


class TableReport(Report):
    """A table of a study; the first cell of a row names it."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


class StudyReport(Report):
    """One study, `study.json` in its folder: before it runs without outcomes, afterwards with the verdict.

    `verdict` is refuted, not refuted, undecided, or skipped with the reason in `notes`. `confidence` is that of each
    interval. `seconds` are those of all runs and plans, one after another. `data` says that a folder of data was named.
    """

    name: str
    size: str
    question: str
    claim: str
    source: str
    minutes: float
    data: bool = False
    confidence: float
    expectations: list[ExpectationReport]
    runs: list[str]
    verdict: str | None = None
    tables: list[TableReport] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)
    seconds: float | None = None
    date: str | None = None
    environment: dict[str, Any] = Field(default_factory=dict)
