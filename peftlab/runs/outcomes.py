"""The outcome of a run in another process: from its record, the signal that killed it, or the end of its log."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from peftlab.errors import StorageError
from peftlab.reports import RunResult
from peftlab.runs.directory import RunDirectory

ERROR_PREFIX = "peftlab: error: "
OUT_OF_MEMORY_HINT = " (the system may have run out of memory)"
RecordIdentity = tuple[int, int] | None


def read_outcome(folder: Path, log: Path, exit_code: int, record_before: RecordIdentity) -> tuple[str, str | None]:
    """Return status and error of the run in `folder` whose process ended; a failure without a record is `failed`.

    `exit_code` is minus the number of the signal that killed it, `record_before` what `identify_record` returned
    when it started.
    """
    record = read_record(folder)
    if record and exit_code and identify_record(folder) == record_before:
        record = None  # of an earlier attempt
    if record and record.status != "running":
        return record.status, record.error
    if exit_code < 0:
        return "failed", f"killed by {name_signal(-exit_code)}; its log is {log}"
    line = read_last_line(log)
    if line.startswith(ERROR_PREFIX):
        return "failed", line.removeprefix(ERROR_PREFIX)
    return "failed", f"exit code {exit_code} and no complete record; its log {log} ends with: {line or '(nothing)'}"


def read_record(folder: Path) -> RunResult | None:
    """Return the record in a run directory, None where there is none that can be read."""
    try:
        return RunDirectory.open(folder).read_result()
    except StorageError:
        return None


def identify_record(folder: Path) -> RecordIdentity:
    """Return what changes whenever a run directory's record is written; None without a record."""
    try:
        status = RunDirectory(folder).result.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def name_signal(number: int) -> str:
    """Return a signal's name, with what usually sends it where that helps."""
    with contextlib.suppress(ValueError):
        name = signal.Signals(number).name
        return name + (OUT_OF_MEMORY_HINT if number == signal.SIGKILL else "")
    return f"signal {number}"


def read_last_line(log: Path) -> str:
    """Return the last line of a log that is not blank."""
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""
    return ""
