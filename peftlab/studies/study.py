"""What a study is: a question, a claim, what would refute it, what runs at each size, and what its results say.

The verdict is computed by one rule from ranges that are stated before anything runs: a claim names the range in which
it expects each of some quantities. A quantity whose whole interval is outside refutes the claim, one whose whole
interval is inside does not, and one whose interval is across an end leaves it undecided. The intervals of one study are
as wide as the number of its expectations asks (Bonferroni), so that a true claim is refuted in at most 5 % of studies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal

from peftlab.studies.charts import Chart
from peftlab.studies.parts import Part
from peftlab.studies.quantity import Quantity, number_text

TRIAL = "trial"
SIZES = (TRIAL, "small", "large")
"""`trial` shows in a minute that a study runs, and decides nothing; `small` is the study; `large` is longer."""
LEVEL = 0.05

Outcome = Literal["refuted", "not refuted", "undecided"]


@dataclass(frozen=True)
class Setting:
    """How a study is run: its size, its folder, and the folder of data that do not ship with peftlab."""

    size: str
    folder: Path
    data: Path | None = None


@dataclass(frozen=True)
class Expectation:
    """The range in which a claim expects one quantity; `text` says what it is, `unit` follows its figures."""

    name: str
    text: str
    least: float = -inf
    most: float = inf
    unit: str = ""

    def judge(self, found: Quantity | None) -> Outcome:
        """Return what a quantity says about the claim; nothing without a quantity."""
        if found is None:
            return "undecided"
        if found.high < self.least or found.low > self.most:
            return "refuted"
        return "not refuted" if self.least <= found.low and found.high <= self.most else "undecided"

    @property
    def range_text(self) -> str:
        """Return the range: `5 to 20`, `at least 0`, `at most 0.33`."""
        if self.least == -inf:
            return f"at most {self._number(self.most)}"
        if self.most == inf:
            return f"at least {self._number(self.least)}"
        return f"{number_text(self.least)} to {self._number(self.most)}"

    @property
    def refuted_where(self) -> str:
        """Return what would refute the claim."""
        below = f"below {self._number(self.least)}" if self.least > -inf else ""
        above = f"above {self._number(self.most)}" if self.most < inf else ""
        return f"its whole interval is {' or '.join(filter(None, [below, above]))}"

    def _number(self, value: float) -> str:
        return f"{number_text(value)}{f' {self.unit}' if self.unit else ''}"


@dataclass(frozen=True)
class Table:
    """A table of the page; the first cell of a row names it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Found:
    """What a study found: quantities by the names of its expectations, and what the page shows besides."""

    quantities: Mapping[str, Quantity | None]
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    notes: Sequence[str] = ()


def nothing_missing(setting: Setting) -> str | None:
    """Return why a study cannot run here: it can."""
    return None


@dataclass(frozen=True)
class Study:
    """A study. `parts` are what it runs, `measure` turns their results, by the parts' names, into what was found.

    `measure` gets the confidence that intervals must have. `minutes` are those of one core at each size, `missing` says
    why it cannot run here. `source` is where the claim is from.
    """

    name: str
    question: str
    claim: str
    source: str
    minutes: Mapping[str, float]
    expectations: Callable[[str], Sequence[Expectation]]
    parts: Callable[[Setting], Sequence[Part]]
    measure: Callable[[Mapping[str, Any], float], Found]
    missing: Callable[[Setting], str | None] = field(default=nothing_missing)

    def confidence(self, size: str) -> float:
        """Return the confidence of each interval, so that all of them together are right in 95 % of studies."""
        return 1 - LEVEL / max(1, len(self.expectations(size)))


def conclude(outcomes: Sequence[Outcome], size: str = "small") -> Outcome:
    """Return the verdict on a claim: refuted by any expectation, undecided where any is, otherwise not refuted.

    A trial trains too little to say anything.
    """
    if size == TRIAL:
        return "undecided"
    if "refuted" in outcomes:
        return "refuted"
    return "undecided" if "undecided" in outcomes or not outcomes else "not refuted"
