"""A comparison's folder: what is where, claiming and clearing it, and reading its report."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

from pydantic import ValidationError

from peftlab.checkpoint.lock import RunLock
from peftlab.comparison.variants import DAY, SOLUTIONS
from peftlab.errors import StorageError
from peftlab.files import parse_json, read_text, write_atomically
from peftlab.metrics import METRICS
from peftlab.reports import ComparisonReport
from peftlab.runs.directory import MARKER
from peftlab.runs.jobs import GRACE_SECONDS

RUNS, LOGS, REPORT = "runs", "logs", "report"
SUMMARY = "comparison.json"
PICTURE = "memory.png"
SEARCHES = "search.db"


def claim(folder: Path) -> None:
    """Make the folder, or reopen it. Raises StorageError rather than touch what is not a comparison's."""
    if (folder / "result.json").exists():
        raise StorageError(f"{folder} is the folder of a run; name another --output")
    try:
        if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).is_file():
            raise StorageError(f"{folder} contains files that are not a comparison of peftlab; name another --output")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / MARKER, json.dumps({"schema": 1}) + "\n")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}; name another --output") from None


def clear(folder: Path) -> None:
    """Remove an earlier comparison's runs, logs and reports, and nothing else."""
    for name in (RUNS, LOGS, REPORT):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (SUMMARY, PICTURE, SOLUTIONS, DAY, SEARCHES):
        (folder / name).unlink(missing_ok=True)


def clean(folder: Path) -> None:
    """Remove the half files of killed processes. Requires the lock."""
    for place, names in ((folder, (MARKER, SUMMARY, PICTURE, SOLUTIONS, DAY)), (folder / REPORT, ("*",))):
        for half in [path for name in names for path in place.glob(f".{name}.*")]:
            if half.suffix[1:].isdecimal() and half.is_file() and not half.is_symlink():
                half.unlink()


def wait_until_free(folder: Path) -> None:
    """Wait while a run of an earlier, killed comparison still saves its checkpoint here."""
    until = time.monotonic() + GRACE_SECONDS
    while folder.is_dir():
        try:
            with RunLock(folder / ".lock"):
                return
        except StorageError:
            if time.monotonic() > until:
                return
            time.sleep(0.5)


def list_runs(folder: Path) -> list[Path]:
    """Return the run directories of a comparison, or the folder itself if it is not a comparison's."""
    if not (folder / SUMMARY).exists():
        return [folder]
    return sorted(path.parent for path in (folder / RUNS).glob(f"*/{MARKER}"))


def read_comparison(folder: Path) -> ComparisonReport:
    """Return a comparison's report. Raises StorageError where there is none."""
    path = folder / SUMMARY
    if not path.exists():
        raise StorageError(
            f"{folder} is not the folder of a comparison (no {SUMMARY} in it); name one that `peftlab compare` wrote"
        )
    text = read_text(path)
    parse_json(path, text)
    try:
        report = ComparisonReport.model_validate_json(text, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise StorageError(
            f"{path}: {place + ': ' if place else ''}{first['msg']}; the file is damaged: start the comparison again"
        ) from None
    if report.metric in METRICS and METRICS[report.metric].higher_is_better != report.higher_is_better:
        raise StorageError(
            f"{path}: higher_is_better: is {str(report.higher_is_better).lower()}, which is wrong for {report.metric}; "
            "the file is damaged: start the comparison again"
        )
    return report
