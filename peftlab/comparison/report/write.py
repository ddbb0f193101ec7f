"""Writing a report: the page, its pictures, the tables for papers and the rows of all runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from peftlab.comparison.columns import filled_columns
from peftlab.comparison.findings import Findings, find
from peftlab.comparison.folder import REPORT
from peftlab.comparison.peft_bench import BenchResult, list_files, read_results
from peftlab.comparison.peft_bench_export import write_results
from peftlab.comparison.report.page import render_page
from peftlab.comparison.report.pictures import draw_all
from peftlab.comparison.rows import Table, read_table
from peftlab.comparison.tables import latex_table, markdown_table, paper_columns, run_records, write_records
from peftlab.errors import StorageError
from peftlab.files import refuse_output_file, why, write_atomically

BENCH = "peft-bench"


@dataclass(frozen=True)
class Written:
    """A report that was written: its page, all its files, what it found and what could not be done."""

    page: Path
    files: list[Path]
    table: Table
    findings: Findings
    problems: list[str]


def write_report(
    folder: Path, page: Path | None = None, verify: bool = True, imported: Sequence[Path] = (), export: bool = False
) -> Written:
    """Write the report of a comparison's folder into its `report/`, the page to `page` where one is named.

    `imported` are files or folders of PEFT's method comparison that are shown beside it; with `export` the finished
    runs are also written as such files.

    Raises StorageError for a folder without a comparison, and where nothing can be written; UsageError for a page in
    the place of a file that is read.
    """
    table = read_table(folder, verify)
    problems: list[str] = []
    results = read_results(imported, problems)  # before the statistics, which take longer than a wrong path's answer
    findings = find(table)
    place = folder / REPORT
    for own in (place, place / BENCH):
        if own.is_symlink():
            raise StorageError(f"{own} is a link; a report is written in the comparison's own folder only; remove it")
    named, page = page is not None, page or place / "report.html"
    try:
        for needed in (place, page.parent):
            needed.mkdir(parents=True, exist_ok=True)
        if named:
            refuse_output_file(page, [*list_files(imported), *_records(folder, page)])
            page = page.resolve()  # a link that a user names stays, one in the folder is replaced
        exported = write_results(table, place / BENCH, problems) if export else []
        written = _write(table, findings, place, page, results, problems)
        return replace(written, files=[*written.files, *exported])
    except OSError as error:
        raise StorageError(
            f"the report cannot be written to {error.filename or page}: {why(error)}, or name another --output"
        ) from None


def _records(folder: Path, page: Path) -> list[Path]:
    """Return the page's path where it is a file of the comparison itself: one in its folder that is not a page."""
    real, place = page.resolve(), folder.resolve()
    own = real.is_relative_to(place) and not real.is_relative_to(place / REPORT)
    return [page] if own and real.suffix.lower() not in (".html", ".htm") else []


def _write(
    table: Table, findings: Findings, place: Path, page: Path, imported: Sequence[BenchResult], problems: list[str]
) -> Written:
    pictures = draw_all(table, findings, problems, imported)
    written = []
    for picture in pictures:
        write_atomically(place / f"{picture.name}.svg", picture.standalone)
        write_atomically(place / f"{picture.name}.png", picture.pixels)
        written += [place / f"{picture.name}.svg", place / f"{picture.name}.png"]
    columns = filled_columns(table, findings)
    caption = (
        f"{table.report.name}: {table.metric}, mean over seeds and 95 % interval; those that share a letter are not "
        "significantly different."
    )
    texts = {
        "table.md": markdown_table(paper_columns(columns), table.rows),
        "table.tex": latex_table(paper_columns(columns), table.rows, caption),
    }
    for name, text in texts.items():
        write_atomically(place / name, text)
        written.append(place / name)
    write_records(run_records(table), place / "rows.csv", place / "rows.parquet")
    written += [place / "rows.csv", place / "rows.parquet"]
    write_atomically(page, render_page(table, findings, columns, pictures, problems, imported))
    return Written(page, [page, *written], table, findings, [*problems, *table.problems, *findings.notes])
