"""How a report's numbers were computed, in words: the sources of chance that were covered, and no others."""

from __future__ import annotations

from dataclasses import dataclass

from peftlab.comparison.findings import Findings
from peftlab.comparison.rows import Table
from peftlab.evaluation.resampling import REPLICATES

ROWS = f"by {REPLICATES:,} bootstrap drawings, the same rows for all runs"
SEEDS = "by Student's t"
# By whether the intervals of the metric cover the seeds, and the rows.
CHANCE = {
    (True, True): f"Its 95 % interval covers two sources of chance: the seeds, {SEEDS}, and the rows, {ROWS}.",
    (True, False): f"Its 95 % interval covers the chance of the seeds alone, {SEEDS}; that of the rows is not known.",
    (False, True): f"Its 95 % interval covers the chance of the rows alone, {ROWS}; that of the seed is not known.",
    (False, False): "It has no interval: neither the chance of the seeds nor that of the rows is known.",
}
CORRECTED = (
    "The pairs of a budget are corrected together by Holm's method; two variants share a letter exactly when they are "
    "not significantly different at 5 %. The interval of a difference is as much wider than one of 95 % as this "
    "correction asks, so that it excludes 0 exactly where the difference is significant. A variant is beaten on a cost "
    "when another is significantly better and no seed of it cost more."
)
UNTESTED = "No difference was tested."
TWO_SEEDS = "Two seeds give very wide intervals."
SOME_SINGLE = (
    "Where a variant has one seed, only the chance of the rows is known: a significant difference is then one of these "
    "trained weights, and another seed may give another."
)
ALL_SINGLE = "A significant difference is one of these trained weights; another seed may give another."


@dataclass(frozen=True)
class Method:
    """Whether any number is a mean of several seeds, and the sentences on intervals and differences."""

    several: bool
    text: str


def describe_method(table: Table, findings: Findings) -> Method:
    """Return how the intervals and differences of the comparison's metric were computed."""
    found = list(findings.quality.get(table.metric, {}).values())
    if not found:
        return Method(len(table.report.seeds) > 1, "No run has a result yet.")
    seeds, rows = any(one.of_seeds for one in found), any(one.of_rows for one in found)
    pairs = [pair for family in findings.families for pair in family.differences]
    sentences = [CHANCE[seeds, rows]]
    if any(pair.scope != "nothing" for pair in pairs):
        sentences += ["Differences are paired by row."] * rows + [CORRECTED]
        if rows and not all(one.of_seeds for one in found):
            sentences.append(SOME_SINGLE if seeds else ALL_SINGLE)
    elif pairs:
        sentences.append(UNTESTED)
    if any(one.seeds == 2 for one in found):
        sentences.append(TWO_SEEDS)
    return Method(any(one.seeds > 1 for one in found), " ".join(sentences))
