"""Running a study: its folder, its parts in their order, the verdict, and what is written."""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from peftlab.checkpoint.lock import RunLock
from peftlab.errors import StorageError
from peftlab.files import read_json, why, write_atomically
from peftlab.reports import ExpectationReport, StudyReport, TableReport
from peftlab.studies.page import write_page
from peftlab.studies.parts import Part
from peftlab.studies.quantity import Quantity
from peftlab.studies.study import TRIAL, Expectation, Found, Setting, Study, conclude

TRIED = "A trial trains too little to decide anything: its figures only show that the study runs."
SETTING, SUMMARY, PAGE, LOCK = "setting.json", "study.json", "study.html", ".lock"


@dataclass(frozen=True)
class Ran:
    """A study that was run, with its page; None where it was skipped."""

    report: StudyReport
    page: Path | None


def announce(study: Study, setting: Setting) -> StudyReport:
    """Return a study before it runs: its claim, what would refute it, and what it will run. Writes nothing."""
    return StudyReport(
        name=study.name,
        size=setting.size,
        question=study.question,
        claim=study.claim,
        source=study.source,
        minutes=study.minutes[setting.size],
        data=setting.data is not None,
        confidence=study.confidence(setting.size),
        expectations=[expectation_report(one) for one in study.expectations(setting.size)],
        runs=[line for part in study.parts(setting) for line in part.lines()],
        notes=[f"cannot run here: it {reason}"] if (reason := study.missing(setting)) else [],
    )


def run_study(study: Study, setting: Setting, *, jobs: int = 1) -> Ran:
    """Run a study in its folder, or resume it, and write `study.json` and its page.

    A study that cannot run here is skipped, with the reason. Raises StorageError for the folder.
    """
    announced = announce(study, setting)
    if study.missing(setting):
        return Ran(announced.model_copy(update={"verdict": "skipped"}), None)
    try:
        with claimed(study, setting):
            results = {part.name: run_part(part, setting.folder, jobs) for part in study.parts(setting)}
            found = study.measure(results, announced.confidence)
            report = judge(announced, study.expectations(setting.size), found, results)
            write_atomically(setting.folder / SUMMARY, report.model_dump_json(indent=1) + "\n")
            return Ran(report, write_page(report, list(found.charts), setting.folder / PAGE))
    except OSError as error:
        place = error.filename or setting.folder
        raise StorageError(f"{place}: {why(error)}; the same command continues the study") from None


def run_part(part: Part, folder: Path, jobs: int) -> Any:
    print(part.lines()[0], file=sys.stderr, flush=True)
    return part.run(folder, jobs)


@contextmanager
def claimed(study: Study, setting: Setting) -> Iterator[None]:
    """Make the study's folder, or reopen it, and keep other processes out of it.

    Raises StorageError for a folder of anything else.
    """
    folder, own = setting.folder, {"study": study.name, "size": setting.size}
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; name another --output")
    path = folder / SETTING
    if path.exists():
        known = read_json(path)
        if known != own:
            other = f"{known.get('study')} at size {known.get('size')}" if isinstance(known, dict) else "something else"
            raise StorageError(f"{folder} contains the study {other}; name another --output")
    elif folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} contains files that are not a study of peftlab; name another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(own) + "\n")
    with RunLock(folder / LOCK):
        yield


def judge(
    announced: StudyReport, expectations: Sequence[Expectation], found: Found, results: Mapping[str, Any]
) -> StudyReport:
    """Return the report of a study that ran: each quantity beside its range, and the verdict."""
    outcomes = [one.judge(found.quantities.get(one.name)) for one in expectations]
    return announced.model_copy(
        update={
            "verdict": conclude(outcomes, announced.size),
            "expectations": [
                expectation_report(one).model_copy(
                    update={"outcome": outcome, **figures(found.quantities.get(one.name))}
                )
                for one, outcome in zip(expectations, outcomes, strict=True)
            ],
            "tables": [
                TableReport(title=one.title, columns=[*one.columns], rows=[[*row] for row in one.rows], note=one.note)
                for one in found.tables
            ],
            "notes": [*([TRIED] if announced.size == TRIAL else []), *found.notes, *notes_of(results)],
            "failures": [line for result in results.values() for line in result.failures],
            "seconds": sum(result.seconds for result in results.values()),
            "date": datetime.date.today().isoformat(),
            "environment": describe_machine(),
        }
    )


def notes_of(results: Mapping[str, Any]) -> list[str]:
    """Return what limits the parts' results, each with its part where there are several."""
    return [f"{name}: {note}" if len(results) > 1 else note for name, one in results.items() for note in one.notes]


def figures(found: Quantity | None) -> dict[str, float | None]:
    """Return a quantity's figures as a report has them: None for what is not known."""
    if found is None:
        return {"value": None, "low": None, "high": None}
    return {
        name: value if isfinite(value) else None
        for name, value in (("value", found.value), ("low", found.low), ("high", found.high))
    }


def expectation_report(one: Expectation) -> ExpectationReport:
    return ExpectationReport(
        name=one.name,
        text=one.text,
        least=one.least if isfinite(one.least) else None,
        most=one.most if isfinite(one.most) else None,
        unit=one.unit,
        expected=one.range_text,
        refuted_where=one.refuted_where,
    )


def describe_machine() -> dict[str, Any]:
    """Return the machine and the versions that the study ran on."""
    from peftlab.runs.environment import source_commit
    from peftlab.runs.versions import describe_versions
    from peftlab.world.hardware import device_name, pick_device

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": describe_versions(),
        "commit": source_commit(),
        "device": device_name(pick_device("auto")),
    }
