"""Writing a report: the page, its pictures, the tables for papers and the rows of all runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from peftlab.comparison.columns import filled_columns, lines_of
from peftlab.comparison.findings import Findings, find
from peftlab.comparison.outcome import Outcome, read_outcome
from peftlab.comparison.report.page import render_page
from peftlab.comparison.report.pictures import draw_all
from peftlab.comparison.tables import latex_table, markdown_table, paper_columns, run_rows, write_rows
from peftlab.errors import StorageError
from peftlab.files import write_atomically

FOLDER = "report"


@dataclass(frozen=True)
class Written:
    """A report that was written: its page, all its files, what it found and what could not be done."""

    page: Path
    files: list[Path]
    outcome: Outcome
    findings: Findings
    problems: list[str]


def write_report(folder: Path, page: Path | None = None) -> Written:
    """Write the report of a comparison's folder into its `report/`, the page to `page` where one is named.

    Raises StorageError for a folder that holds no comparison, and where nothing can be written.
    """
    outcome = read_outcome(folder)
    findings = find(outcome)
    place = folder / FOLDER
    page = page or place / "report.html"
    try:
        for needed in (place, page.parent):
            needed.mkdir(parents=True, exist_ok=True)
        return _write(outcome, findings, place, page)
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {error.filename or page}: {error.strerror}; name another --output"
        ) from None


def _write(outcome: Outcome, findings: Findings, place: Path, page: Path) -> Written:
    problems: list[str] = []
    pictures = draw_all(outcome, findings, problems)
    written = []
    for picture in pictures:
        write_atomically(place / f"{picture.name}.svg", picture.standalone)
        (place / f"{picture.name}.png").write_bytes(picture.pixels)
        written += [place / f"{picture.name}.svg", place / f"{picture.name}.png"]
    lines = lines_of(outcome, findings)
    columns = filled_columns(outcome, lines)
    metric = outcome.report.metric
    caption = f"{outcome.report.name}: {metric}, mean over seeds and 95 % interval; those that share a letter"
    texts = {
        "table.md": markdown_table(paper_columns(columns), lines),
        "table.tex": latex_table(paper_columns(columns), lines, f"{caption} cannot be told apart."),
    }
    for name, text in texts.items():
        write_atomically(place / name, text)
        written.append(place / name)
    write_rows(run_rows(outcome), place / "rows.csv", place / "rows.parquet")
    written += [place / "rows.csv", place / "rows.parquet"]
    write_atomically(page, render_page(outcome, findings, lines, columns, pictures, problems))
    return Written(page, [page, *written], outcome, findings, [*problems, *outcome.problems, *findings.notes])
