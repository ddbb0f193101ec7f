"""`peftlab verify`: whether a run's files are what the run wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peftlab.cli.answer import answers
from peftlab.cli.options import AsJson, Debug
from peftlab.errors import StorageError
from peftlab.quantities import number

Runs = Annotated[
    list[str], typer.Argument(metavar="RUN", help="Directories of runs, or folders of comparisons.", show_default=False)
]


@answers
def verify(runs: Runs, as_json: AsJson = False, debug: Debug = False) -> Any:
    """Compare every file of runs with the digests that they wrote. (verify-resume tests that resuming is exact.)"""
    from peftlab.comparison.folder import list_runs
    from peftlab.runs.examination import examine

    found = [examine(run) for name in runs for run in list_runs(Path(name))]
    good = not any(one["faults"] for one in found)
    return {"ok": good, "runs": found}, lambda: show_found(found), 0 if good else StorageError.exit_code


def show_found(found: list[dict[str, Any]]) -> None:
    for one in found:
        for fault in one["faults"]:
            print(fault)
        for note in one["notes"]:
            print(f"note: {note}")
        if not one["faults"]:
            print(f"ok  {one['run']}: {describe(one)}")


def describe(one: dict[str, Any]) -> str:
    """Return what was compared in a run without faults."""
    checkpoints = sum(name.startswith("checkpoints/") for name in one["files"])
    files = len(one["files"]) - checkpoints
    more = f", {number(checkpoints, 'checkpoint')}" if checkpoints else ""
    if not one["digests"]:
        return f"no digests (an earlier version wrote it, or it was killed); what can be read agrees{more}"
    return f"{number(files, 'file')}{more}"
