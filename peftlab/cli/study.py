"""`peftlab study`: claims about methods, tested by runs on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug
from peftlab.errors import ComparisonError, UsageError, nearest

if TYPE_CHECKING:
    from rich.table import Table

    from peftlab.reports import StudyReport
    from peftlab.studies.run import Ran

Name = Annotated[
    str | None, typer.Argument(metavar="NAME", help="Study to run; without a name, all are listed.", show_default=False)
]
Size = Annotated[
    str, typer.Option("--size", metavar="SIZE", help="small, large (longer, larger), or trial (a minute, to try it).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show claim, what would refute it and all runs; run nothing.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", metavar="FOLDER", help="Folder of the study (default: runs/studies/NAME-SIZE)."),
]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="Folder of data that a study needs and peftlab does not have."),
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="How many runs at once on this machine.")]
STUDIES_FOLDER = Path("runs/studies")


@answers
def study(
    name: Name = None,
    size: Size = "small",
    dry_run: DryRun = False,
    data: DataFolder = None,
    output: Output = None,
    jobs: Jobs = 1,
    as_json: AsJson = False,
    debug: Debug = False,
) -> Any:
    """Test a published claim by runs on this machine. The same command resumes a study that was stopped."""
    from peftlab.studies.registry import STUDIES, find_study
    from peftlab.studies.run import announce, run_study
    from peftlab.studies.study import SIZES, Setting

    if size not in SIZES:
        raise UsageError(f"--size {size!r}: unknown{nearest(size, SIZES)}; known: {', '.join(SIZES)}")
    if name is None:
        used = {"--size": size != "small", "--dry-run": dry_run, "--data": data, "--output": output, "--jobs": jobs > 1}
        if ignored := [option for option, one in used.items() if one]:
            raise UsageError(f"{ignored[0]} is for one study: name it; `peftlab study` lists all")
        listed = [
            {"name": one.name, "question": one.question, "claim": one.claim, "minutes": dict(one.minutes)}
            for one in STUDIES.values()
        ]
        return {"studies": listed}, lambda: show_list(listed), 0
    found = find_study(name)
    if data is not None and not data.is_dir():
        raise UsageError(f"--data {data}: is not a folder")
    setting = Setting(size, output or STUDIES_FOLDER / f"{name}-{size}", data)
    if dry_run:
        announced = announce(found, setting)
        return announced.model_dump(), lambda: show_announced(announced), 0
    if found.missing(setting) is None:
        show_before(announce(found, setting))
    ran = run_study(found, setting, jobs=jobs)
    answer = ran.report.model_dump() | {"page": None if ran.page is None else str(ran.page)}
    return answer, lambda: show_ran(ran), ComparisonError.exit_code if ran.report.failures else 0


def show_list(studies: list[dict[str, Any]]) -> None:
    from peftlab.cli.render import plain_table, show

    table = plain_table("study", "question", "small", "large")
    table.columns[1].justify = "left"
    table.columns[1].overflow = "fold"
    for one in studies:
        times = [f"{one['minutes'][size]:g} min" for size in ("small", "large")]
        table.add_row(one["name"], one["question"], *times)
    show(table)
    show("\nMinutes are of one core. peftlab study NAME --dry-run shows what a study claims, what would refute it, and "
         "what it runs.")  # fmt: skip


def show_before(report: StudyReport) -> None:
    """Print the claim and what would refute it to standard error, before anything runs."""
    import sys

    for line in announce_lines(report):
        print(line, file=sys.stderr, flush=True)


def announce_lines(report: StudyReport) -> Iterator[str]:
    yield report.question
    yield f"claim: {report.claim}"
    yield f"source: {report.source}"
    yield "The claim is refuted if the whole interval of one of these is outside the range expected of it:"
    yield from (f"  {one.text}: {one.expected}" for one in report.expectations)


def show_announced(report: StudyReport) -> None:
    from peftlab.cli.render import show

    lines = [*announce_lines(report), "", f"about {report.minutes:g} minutes on one core, at size {report.size}:"]
    show("\n".join([*lines, *report.runs, *(f"note: {note}" for note in report.notes)]))


def show_ran(ran: Ran) -> None:
    from peftlab.cli.render import show

    report = ran.report
    if ran.page is None:
        show("\n".join([f"The study is {report.verdict}.", *(f"note: {note}" for note in report.notes)]))
        return
    show(expectation_table(report))
    lines = ["", f"The claim is {report.verdict}.", *(f"note: {note}" for note in report.notes)]
    show("\n".join([*lines, *(f"failed: {failure}" for failure in report.failures)]))
    print(f"page: {ran.page}")  # unwrapped, to be copied


def expectation_table(report: StudyReport) -> Table:
    """Return each quantity with its range, what was found, and what it says."""
    from peftlab.cli.render import plain_table
    from peftlab.studies.page import found_text

    table = plain_table("quantity", "expected", "found", "the claim is")
    table.columns[0].overflow = "fold"
    for one in report.expectations:
        table.add_row(one.text, one.expected, found_text(one), one.outcome or "–")
    return table
